#!/usr/bin/env bash
# Full SFT against selective, pruned, random and oracle segments on the toy world; the first argument is the output
# folder, and the same command goes on where it stopped. STEPS=short: two seeds, a few minutes on two cores.
set -euo pipefail
out=${1:?usage: examples/selective_sft.sh OUT}
python=$(dirname "$0")/../.venv/bin/python
[ -x "$python" ] || python=python
sizes=(--seeds "${SEEDS:-10}")
[ "${STEPS:-}" = short ] && sizes=(--seeds 2 --traces 32 --epochs 2 --problems 64)
exec "$python" "$(dirname "$0")/../scripts/compare_sft.py" "$out" --arms training "${sizes[@]}"

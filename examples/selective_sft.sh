#!/usr/bin/env bash
# Full SFT against selective, pruned, random and oracle segments on the toy world; the first argument is the output
# folder, and the same command goes on where it stopped. STEPS=short: two seeds, a few minutes on two cores.
# TRACES=redundant: full, planted and measured segments, normalised per batch and per trace, on traces of which a third
# is needed. Two processes share the seeds of a folder by SEEDS=5 FIRST=0 and SEEDS=5 FIRST=5.
set -euo pipefail
out=${1:?usage: $0 OUT}
here=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-$here/.venv/bin/python}
asked=(--arms training)
if [ "${TRACES:-}" = redundant ]; then
  asked=(--arms power --redundancy detours --most-steps 5 --traces 64 --epochs 5 --lr 1e-3)
  asked+=(--max-tokens 320 --budget 160 data.train_batch_size=8)
fi
sizes=(--seeds "${SEEDS:-10}" --first "${FIRST:-0}")
[ "${STEPS:-}" = short ] && sizes=(--seeds 2 --traces 32 --epochs 2 --problems 64)
exec "$python" "$here/scripts/compare_sft.py" "$out" "${asked[@]}" "${sizes[@]}"

#!/usr/bin/env bash
# Every measure, masking and pruning, at 45% kept tokens, then IG at every tau and beta, all against full SFT with the
# same steps; the first argument is the output folder, and the same command goes on where it stopped.
# STEPS=short: one seed of few traces.
set -euo pipefail
out=${1:?usage: $0 OUT}
here=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-$here/.venv/bin/python}
sizes=(--seeds "${SEEDS:-5}")
[ "${STEPS:-}" = short ] && sizes=(--seeds 1 --traces 16 --epochs 1 --problems 32)
"$python" "$here/scripts/compare_sft.py" "$out/measures" --arms measures "${sizes[@]}"
exec "$python" "$here/scripts/compare_sft.py" "$out/grid" --arms grid "${sizes[@]}"

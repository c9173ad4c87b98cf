#!/usr/bin/env bash
# The paper's tables 1 to 4, 7 and 8 and figures 2 to 5 by name: first the cells and their cost, then all that is not
# done yet, then the tables. The same command goes on where it stopped.
#
#   examples/paper_tables.sh OUT table2 figure5          on eight GPUs; --plan: the cells and their cost alone; further
#                                                        key=value go to segrl evaluate
#   TRACES=limo.jsonl examples/paper_tables.sh OUT ...   a copy of GAIR/LIMO
#   PRESET=toy_cpu TRACES=toy.jsonl examples/paper_tables.sh OUT table2   the bundled model on a CPU
set -euo pipefail
out=${1:?usage: $0 OUT NAME ... [--plan] [key=value ...]}
here=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-$here/.venv/bin/python}
toy=()
if [ "${PRESET:-}" = toy_cpu ]; then toy=(--toy); fi

exec "$python" "$here/scripts/paper_tables.py" "$out" "${TRACES:-GAIR/LIMO}" "${@:2}" "${toy[@]}"

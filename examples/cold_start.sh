#!/usr/bin/env bash
# The paper's cold start: traces with answers, as LIMO's, are attributed, their important segments selected and trained
# on, and the model scored by the paper's protocol: OUT/sft/model, OUT/scores/results.md. The same command goes on where
# it stopped.
#
#   examples/cold_start.sh TRACES OUT                      R1-Distill-Qwen-1.5B on eight GPUs; TRACES: GAIR/LIMO, or jsonl
#                                                          or parquet; further key=value go to segrl sft
#   PRESET=r1_distill_qwen_7b examples/cold_start.sh ...   another preset
#   PRESET=toy_cpu examples/cold_start.sh TRACES OUT       the bundled model on a CPU, then 64 toy problems
set -euo pipefail
traces=${1:?usage: $0 TRACES OUT [key=value ...]} out=${2:?usage: $0 TRACES OUT [key=value ...]}
here=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-$here/.venv/bin/python}
preset=${PRESET:-r1_distill_qwen_1.5b}
protocol=paper
if [ "$preset" = toy_cpu ]; then protocol=toy_cpu; fi

"$python" -m segrl sft "preset=$preset" "traces=$traces" "out=$out/sft" "${@:3}"
PRESET=$protocol exec "$here/examples/evaluate_math.sh" "$out/sft/model" "$out/scores"

#!/usr/bin/env bash
# GRPO on problems of mathematics, validated on AIME24, AMC23 and MATH500 on the way, then scored by the paper's
# protocol: OUT/grpo/model, OUT/scores/results.md. The same command goes on where it stopped.
#
#   examples/grpo_math.sh OUT                  R1-Distill-Qwen-1.5B on eight GPUs; further key=value go to segrl grpo
#   examples/grpo_math.sh OUT method=uniform   plain GRPO, without segment weights; docs/methods.md has the methods
#   PRESET=r1_distill_qwen_7b DATA=train.jsonl examples/grpo_math.sh OUT   another preset, problems of your own
#   BENCHMARKS=folder examples/grpo_math.sh OUT                            local copies, <folder>/aime24.jsonl and so on
#   PRESET=toy_cpu examples/grpo_math.sh OUT                               the toy world on a CPU
set -euo pipefail
out=${1:?usage: $0 OUT [key=value ...]}
here=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-$here/.venv/bin/python}
preset=${PRESET:-r1_distill_qwen_1.5b}
copy() { echo "${BENCHMARKS:+$BENCHMARKS/}$1${BENCHMARKS:+.jsonl}"; }

protocol=paper
problems=("data_path=${DATA:-agentica-org/DeepScaleR-Preview-Dataset}"
  "val_path=[$(copy aime24),$(copy amc23),$(copy math500)]")
if [ "$preset" = toy_cpu ]; then protocol=toy_cpu problems=(); fi

"$python" -m segrl grpo "preset=$preset" "${problems[@]}" "out=$out/grpo" "${@:2}"
PRESET=$protocol exec "$here/examples/evaluate_math.sh" "$out/grpo/model" "$out/scores"

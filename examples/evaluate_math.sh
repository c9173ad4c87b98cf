#!/usr/bin/env bash
# A model on the paper's six benchmarks by its protocol: greedy once, sampled 6 or 32 times; one table, OUT/results.md.
# The same command goes on where it stopped.
#
#   examples/evaluate_math.sh MODEL OUT                  a folder or hub id, sampled with vLLM; further key=value follow,
#                                                        such as generation.vllm.engine.tensor_parallel_size=4
#   examples/evaluate_math.sh NAME OUT backend=openai server=http://host:8000/v1   any server of OpenAI's protocol
#   BENCHMARKS=folder examples/evaluate_math.sh ...      local copies, <folder>/aime24.jsonl and so on
#   PRESET=toy_cpu examples/evaluate_math.sh MODEL OUT   64 toy problems on a CPU; MODEL=null: the bundled model
set -euo pipefail
model=${1:?usage: $0 MODEL OUT [key=value ...]} out=${2:?usage: $0 MODEL OUT [key=value ...]}
here=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-$here/.venv/bin/python}

exec "$python" -m segrl evaluate "preset=${PRESET:-paper}" "model_path=$model" "out=$out" \
  ${BENCHMARKS:+"data_path=$BENCHMARKS"} "${@:3}"

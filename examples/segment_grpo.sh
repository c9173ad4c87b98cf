#!/usr/bin/env bash
# Do segment weights help GRPO on the toy world? Arms against uniform, paired by seed; see examples/segment_grpo.yaml.
#
#   examples/segment_grpo.sh OUT               the full grid: ten seeds of every arm; what is done is not done again
#   STEPS=short examples/segment_grpo.sh OUT   three arms, one seed, a few steps
set -euo pipefail
out=${1:?usage: $0 OUT}
here=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-$here/.venv/bin/python}

"$python" "$here/scripts/compare_grpo.py" run "$out" "$here/examples/segment_grpo.yaml" ${STEPS:+--size "$STEPS"}
"$python" "$here/scripts/compare_grpo.py" compare "$out" "$here/examples/segment_grpo.yaml"

#!/usr/bin/env bash
# Do segment weights help GRPO on the toy world? Arms against uniform, paired by seed; see examples/segment_grpo.yaml.
#
#   examples/segment_grpo.sh OUT                      two seeds of three arms, what six can show (OUT/power.md), the other
#                                                     four, then one seed of every other arm; what is done is not done again
#   STEPS=pilot examples/segment_grpo.sh OUT          some of these: pilot, full, exploratory; and control, likely, short
#   taskset -c 0 examples/segment_grpo.sh OUT &       on two cores, a cell at a time on each; SEEDS=0,2,4 names seeds that
#   taskset -c 1 examples/segment_grpo.sh OUT         one of them takes, the pilot's apart
#   BEST=grail examples/segment_grpo.sh OTHER_OUT     another arm in question
#
# If best minus uniform is null, the null says nothing before STEPS=control has run: could the grid see a difference?
set -euo pipefail
out=${1:?usage: $0 OUT}
here=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-$here/.venv/bin/python}

grid() { "$python" "$here/scripts/compare_grpo.py" "$1" "$out" "$here/examples/segment_grpo.yaml" ${BEST:+"best=$BEST"} "${@:2}"; }

compare=
for size in ${STEPS:-pilot full exploratory}; do
    if [[ $size == pilot ]]; then
        grid run --size pilot
        grid power
    else
        grid run --size "$size" ${SEEDS:+--seeds "$SEEDS"}
        compare=yes
    fi
done
if [[ $compare ]]; then  # after the pilot alone the differences are not looked at
    grid compare
fi

#!/usr/bin/env bash
# A pretrained model from end to end, without a GPU: SmolLM2-135M-Instruct learns short word problems from solutions that
# say more than they need. Selective SFT by first_and_last, full SFT, SFT on random thoughts of as many tokens; then GRPO on
# verl, Ray and vLLM from the selective model; all on the same 200 problems, OUT/results.md. The same command goes on where
# it stopped.
#
# The solutions are those of the problems' generator: the model as it is answers none of these problems.
#
#   examples/smollm2.sh OUT                everything, in hours; OUT/stages has the minutes of each stage
#   STAGES="sft" examples/smollm2.sh OUT   some of these: problems base sft grpo page
#   SIZE=short examples/smollm2.sh OUT     a few problems and steps, to see that all of it runs
#   MODEL=folder METHODS="support uniform" SEEDS="0 1" ARMS="full selective random" examples/smollm2.sh OUT
#   ARMS=planted examples/smollm2.sh OUT   a control: SFT on the steps that the problem needs, and no others
#   DTYPE=float32 examples/smollm2.sh OUT  where bfloat16 is no faster: on a CPU without avx512_bf16 or amx_bf16
set -euo pipefail
out=${1:?usage: $0 OUT}
here=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-$here/.venv/bin/python}
arms=${ARMS:-full selective random} seeds=${SEEDS:-0 1} methods=${METHODS:-support uniform} dtype=${DTYPE:-bfloat16}
traces=1024 problems=200 samples=4 epochs=2 steps=60
if [ "${SIZE:-}" = short ]; then traces=16 problems=8 samples=2 epochs=1 steps=2; fi
cores=$(nproc)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$cores} VLLM_CPU_OMP_THREADS_BIND=nobind
mkdir -p "$out/stages"

segrl() { "$python" -m segrl "$@"; }

free() { awk '/^MemAvailable/ {print $2}' /proc/meminfo; }

# stage NAME COMMAND...: run it unless it has ended well before; note its minutes, over all starts, and the memory it took
stage() {
  local name=$1 began=$SECONDS most=0 before taken note=$out/stages/.$1
  shift
  if [ -e "$out/stages/$name" ]; then return; fi
  if [ -e "$note" ]; then read -r began most <"$note" && began=$((SECONDS - began)); fi
  echo "== $name"
  before=$(free)
  set -m  # a process group of its own, so that what it started ends with it
  "$@" &
  local process=$!
  set +m
  trap "kill -- -$process 2>/dev/null" EXIT
  while kill -0 $process 2>/dev/null; do
    taken=$((before - $(free)))
    if ((taken > most)); then most=$taken; fi
    echo "$((SECONDS - began)) $most" >"$note"
    sleep 1
  done
  wait $process
  trap - EXIT
  echo "| $name | $(((SECONDS - began + 30) / 60)) | $((most / 1048576)) |" >"$out/stages/$name"
  rm -f "$note"
}

model=${MODEL:-$out/smollm2}

problems() {
  if [ ! -e "$model/config.json" ]; then "$python" "$here/scripts/fetch_smollm2.py" "$model"; fi
  "$python" - "$out" "$traces" "$problems" $seeds <<'PYTHON'
import sys

from segrl.data import save_traces
from segrl.worlds import world_traces

out, traces, problems, seeds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]


def short(half, n, seed):
    """n traces of three steps; a problem of one half is never drawn for the other."""
    drawn = world_traces("worded", half, 8 * n, seed)
    return [trace for trace in drawn if trace.meta["n_steps"] == 3][:n]


save_traces(short("test", problems, 0), f"{out}/test.jsonl")
for seed in seeds:
    save_traces(short("dev", traces, int(seed)), f"{out}/train-{seed}.jsonl")
PYTHON
}

evaluate() {  # MODEL NAME
  segrl evaluate "model_path=$1" "data_path=$out/test.jsonl" "out=$out/scores/$2" backend=vllm "dtype=$dtype" \
    generation.n=$samples generation.max_tokens=192 generation.vllm.engine.max_model_len=448
}

choose() {  # ARM SEED: half of the thinking's tokens, by first_and_last or at random; or planted, the needed steps alone
  local measure=first_and_last share=(selection.match_tokens=0.5)
  case $1 in
    random) measure=random ;;
    planted) measure=oracle share=(selection.tau=1) ;;
  esac
  segrl select "model_path=$model" "traces=$out/train-$2.jsonl" "out=$out/selections/$1-$2.parquet" "measure=$measure" \
    segmenter=paragraphs "${share[@]}" selection.beta=1
}

sft() {  # ARM SEED
  local given=(mode=full)
  if [ "$1" != full ]; then given=("selections=$out/selections/$1-$2.parquet"); fi
  keeping segrl sft preset=toy_cpu "model_path=$model" "traces=$out/train-$2.jsonl" "out=$out/sft/$1-$2" "${given[@]}" \
    "trainer.total_epochs=$epochs" data.train_batch_size=8 data.max_length=448 data.max_token_len_per_gpu=2240 \
    model.override_config.attn_implementation=eager engine.reshard_after_forward=false \
    optim.lr=5e-4 "engine.mixed_precision.param_dtype=$dtype"
}

grpo() {  # METHOD
  VERL_FILE_LOGGER_PATH=$out/grpo/$1/metrics.jsonl \
    keeping segrl grpo preset=toy_cpu "method=$1" "model_path=$out/sft/selective-0/model" \
    "data_path=$out/train-0.jsonl" "out=$out/grpo/$1" "segrl.dump_dir=$out/grpo/$1/rollouts" segrl.segmenter=paragraphs \
    "trainer.logger=[console,file]" "trainer.total_training_steps=$steps" trainer.save_freq=5 data.train_batch_size=8 \
    data.max_response_length=160 actor_rollout_ref.rollout.n=8 "actor_rollout_ref.rollout.dtype=$dtype" \
    actor_rollout_ref.rollout.max_model_len=448 actor_rollout_ref.actor.optim.lr=2e-5 \
    actor_rollout_ref.model.override_config.attn_implementation=eager \
    actor_rollout_ref.actor.ppo_max_token_len_per_gpu=1024 actor_rollout_ref.actor.fsdp_config.reshard_after_forward=false \
    "actor_rollout_ref.actor.fsdp_config.mixed_precision.param_dtype=$dtype"
}

# keeping COMMAND...: its trainer keeps the memory that its tensors leave. Giving it back to the system and taking it
# anew takes as long as the computing, for a model of this size on a CPU.
keeping() { MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=$((16 * 2 ** 30)) "$@"; }

page() {  # of 16 problems, four responses each: what carried their answers, and what misled
  local of=("model_path=$model" "traces=$out/scores/selective-0/responses/problems" limit=64) contrast
  segrl attribute "${of[@]}" attribution.target=own "out=$out/page/attributions"
  segrl select "${of[@]}" "out=$out/page/first_and_last.parquet"
  segrl select "${of[@]}" measure=mistake "out=$out/page/mistake.parquet"
  for contrast in pmi alone; do
    segrl select "${of[@]}" "measure=$contrast" attribution.target=contrast "out=$out/page/$contrast.parquet"
  done
  segrl report "${of[@]}" "attributions=$out/page/attributions" "out=$out/report.html" \
    "selections=[$out/page/first_and_last.parquet,$out/page/mistake.parquet,$out/page/pmi.parquet,$out/page/alone.parquet]"
  for method in $methods; do
    if [ -d "$out/grpo/$method/rollouts" ]; then  # uniform weights leave none
      segrl report "rollouts=$out/grpo/$method/rollouts" "metrics=$out/grpo/$method/metrics.jsonl" \
        "out=$out/grpo-$method.html"
    fi
  done
}

# The difference of two evaluations, paired by problem; nothing where one of them was not made yet.
difference() {  # TITLE A B
  if [ -e "$out/scores/$2/results.md" ] && [ -e "$out/scores/$3/results.md" ]; then
    echo "$1"
    segrl compare "a=$out/scores/$2" "b=$out/scores/$3"
  fi
}

table() {
  local arm seed method
  for seed in $seeds; do
    for arm in $arms; do difference "SFT $arm minus base, seed $seed" "$arm-$seed" base; done
    for arm in full random planted; do difference "SFT selective minus $arm, seed $seed" "selective-$seed" "$arm-$seed"; done
  done
  for method in $methods; do
    difference "GRPO $method minus SFT selective" "grpo-$method" selective-0
    if [ "$method" != uniform ]; then difference "GRPO $method minus uniform" "grpo-$method" grpo-uniform; fi
  done
}

for part in ${STAGES:-problems base sft grpo page}; do
  case $part in
    problems) stage problems problems ;;
    base) stage "evaluate base" evaluate "$model" base ;;
    sft)
      for seed in $seeds; do
        for arm in $arms; do
          if [ "$arm" != full ]; then stage "select $arm-$seed" choose "$arm" "$seed"; fi
          stage "sft $arm-$seed" sft "$arm" "$seed"
          stage "evaluate $arm-$seed" evaluate "$out/sft/$arm-$seed/model" "$arm-$seed"
        done
      done
      ;;
    grpo)
      for method in $methods; do
        stage "grpo $method" grpo "$method"
        stage "evaluate grpo-$method" evaluate "$out/grpo/$method/model" "grpo-$method"
      done
      ;;
    page) stage page page ;;
    *) echo "there is no stage $part: problems, base, sft, grpo, page" >&2 && exit 2 ;;
  esac
done
table | tee "$out/results.md"

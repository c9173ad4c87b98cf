"""What only a GPU can show: cost at the shape of a 1.5B model, flash attention, and verl's packing."""

import sys
import time
from dataclasses import replace
from threading import Event, Thread

import pytest
import torch

pytest.importorskip("verl")

from testkit.runs import bounded, dumped, metric
from testkit.tiny import byte_level_tokenizer

import segrl
from segrl import Trace, toy
from segrl.commands.config import compose
from segrl.commands.planning import PLANS, hardware_of, read_config
from segrl.cost.shape import shape_of
from segrl.importance import segment_scores
from segrl.importance.lockstep import Request, attribute_in_lockstep
from segrl.importance.ranking import spearman
from segrl.launch import editable

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(1200)]


def qwen2_1_5b(attention: str = "sdpa"):
    """Qwen2 1.5B's shape with random weights."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=151_936,
        hidden_size=1536,
        intermediate_size=8960,
        num_hidden_layers=28,
        num_attention_heads=12,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        attn_implementation=attention,
    )
    torch.manual_seed(0)
    return Qwen2ForCausalLM(config).to("cuda", torch.bfloat16)


def rollouts(count: int, tokens: int) -> list[Trace]:
    thought = "Wait, 3 + 4 = 7, so it is 7.\n\n"  # a byte is a token
    text = thought * (tokens // len(thought))
    return [segrl.tokenize(Trace(f"t{i}", "3 + 4?", text, "7"), byte_level_tokenizer()) for i in range(count)]


def seconds(work) -> float:
    work()
    torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - began


def test_one_node_costs_less_than_an_update_at_4k_tokens():
    """Both with activation checkpointing, one rollout a forward; the update without its optimiser step."""
    model, tokenizer, traces = qwen2_1_5b(), byte_level_tokenizer(), rollouts(4, 4096)
    request = Request(tokens=1, checkpointing=True)
    attribution = seconds(lambda: attribute_in_lockstep(model, traces, tokenizer, request))
    model.train().gradient_checkpointing_enable()

    def update() -> None:
        for trace in traces:
            ids = torch.cat([trace.prompt_ids, trace.response_ids])[None].cuda()
            model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        model.zero_grad()

    assert attribution < seconds(update)


def test_flash_attention_ranks_segments_as_sdpa_does():
    pytest.importorskip("flash_attn")
    [trace], tokenizer = rollouts(1, 1024), byte_level_tokenizer()
    request = Request(alphas=(0.25, 0.75), weights=(0.5, 0.5))
    strengths = []
    for attention in ("sdpa", "flash_attention_2"):
        [one] = attribute_in_lockstep(qwen2_1_5b(attention), [trace], tokenizer, request)
        strengths.append(segment_scores(one.scores_T, segrl.segment(trace)).strength_S)
    assert spearman(*strengths) > 0.95


FUSED = ["actor_rollout_ref.model.use_fused_kernels=true", "segrl.output=logp"]
ULYSSES = ["trainer.n_gpus_per_node=2", "actor_rollout_ref.actor.ulysses_sequence_parallel_size=2"]


@pytest.mark.parametrize(("gpus", "more"), [(1, []), (1, FUSED), (2, ULYSSES)])
def test_a_whole_run_with_remove_padding(gpus, more, tmp_path, plain_environment):
    """verl packs what it trains on; attribution pads its own batches, and the weights are of the same tokens."""
    pytest.importorskip("flash_attn")
    if torch.cuda.device_count() < gpus:
        pytest.skip(f"needs {gpus} GPUs")
    entry = [sys.executable, "-m", "segrl", "grpo", "preset=one_gpu", "segrl.rule=rank", f"model_path={toy.MODEL_PATH}"]
    entry += [f"out={tmp_path / 'out'}", f"segrl.dump_dir={tmp_path / 'dump'}", "trainer.total_training_steps=2"]
    entry += ["actor_rollout_ref.model.lora_rank=0", "actor_rollout_ref.model.use_remove_padding=true", *more]
    entry += [
        "data.max_prompt_length=192",
        "data.max_response_length=384",
        "actor_rollout_ref.rollout.max_model_len=640",
    ]
    log = bounded(entry, plain_environment, 900, tmp_path / "log")
    weighed = [line for step in (1, 2) for line in dumped(tmp_path, step) if line["uniform"] is None]
    assert weighed
    for line in weighed:
        assert line["advantages"] == pytest.approx([line["advantage"] * weight for weight in line["weights"]], rel=1e-4)
    assert metric(log, 2, "segrl/cost") < 1


def used() -> int:
    """Bytes of the first GPU that all processes hold."""
    free, total = torch.cuda.mem_get_info(0)
    return total - free


@pytest.fixture
def peak():
    """A call that gives the most bytes that were held since the start, beyond those held before it."""
    before, most, over = used(), [0], Event()

    def watch() -> None:
        while not over.wait(0.05):
            most[0] = max(most[0], used() - before)

    watching = Thread(target=watch, daemon=True)
    watching.start()
    yield lambda: most[0]
    over.set()
    watching.join()


# A trace of toy thoughts fills micro-batches of 16,384 tokens; vLLM serves and the actor trains short rollouts.
SFT = ["preset=r1_distill_qwen_1.5b", "nproc=1", "mode=full", "data.train_batch_size=64", "data.max_length=512"]
GRPO = ["preset=one_gpu", "segrl.rule=rank", "actor_rollout_ref.model.lora_rank=0", "data.max_prompt_length=192"]
GRPO += ["data.max_response_length=384", "actor_rollout_ref.rollout.max_model_len=640", "trainer.save_freq=-1"]


@pytest.mark.parametrize(("command", "keys", "steps"), [("sft", SFT, 2), ("grpo", GRPO, 1)])
def test_the_peak_of_a_step_is_as_planned(command, keys, steps, tmp_path, plain_environment, peak):
    """At 1.5B's shape with random weights. Adam has its moments from the second step of SFT on."""
    model, [trace] = tmp_path / "model", toy.sample_traces(1, seed=0)
    qwen2_1_5b().save_pretrained(model)
    toy.load_model()[1].save_pretrained(model)
    torch.cuda.empty_cache()
    segrl.save_traces([replace(trace, id=f"t{k}") for k in range(256)], tmp_path / "traces.jsonl")
    keys = [*keys, f"model_path={model}", f"out={tmp_path / 'out'}", f"trainer.total_training_steps={steps}"]
    keys += [f"traces={tmp_path / 'traces.jsonl'}"] if command == "sft" else []
    config = editable(compose(command, keys))
    figures = read_config(str(model))
    plan = PLANS[command](config, shape_of(figures), hardware_of(config), figures)
    bounded([sys.executable, "-m", "segrl", command, *keys], plain_environment, 900, tmp_path / "log")
    assert peak() == pytest.approx(max(phase.total for phase in plan.phases), rel=0.15)

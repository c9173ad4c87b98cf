"""Every preset on the hardware it names, and what is said and refused before a run starts."""

import json
from importlib import import_module

import pytest
from testkit.composed import changed

from segrl import toy
from segrl.commands import planning
from segrl.commands.cli import main
from segrl.commands.config import CONFIG_DIR, compose
from segrl.commands.planning import PLANS, gpu_named
from segrl.cost.hardware import GIB
from segrl.cost.shape import shape_of
from segrl.data import save_traces

pytest.importorskip("verl")


def details(hidden, layers, heads, kv, width, words, dtype="bfloat16"):
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "intermediate_size": width,
        "vocab_size": words,
        "tie_word_embeddings": False,
        "dtype": dtype,
    }


QWEN_7B, LLAMA_8B = details(3584, 28, 28, 4, 18944, 152064), details(4096, 32, 32, 8, 14336, 128256)
# The figures of their config.json.
MODELS = {
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": details(1536, 28, 12, 2, 8960, 151936),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B": QWEN_7B,
    "Qwen/Qwen2.5-7B-Instruct": QWEN_7B,
    "meta-llama/Llama-3.1-8B-Instruct": LLAMA_8B,
    "deepseek-ai/DeepSeek-R1-Distill-Llama-8B": LLAMA_8B,
}
PRESETS = [
    (command, path.stem)
    for command in ("sft", "grpo")
    for path in sorted((CONFIG_DIR / command / "preset").glob("*.yaml"))
    if path.stem != "toy_cpu"
]


def planned(command, preset, *overrides, gpu=None):
    config = changed(command, preset, *overrides)
    import_module(f"segrl.commands.{command}").complete(config)
    figures = MODELS[config.model_path]
    return PLANS[command](config, shape_of(figures), gpu_named(gpu or config.gpu), figures)


def test_the_parameters_of_the_models():
    sizes = [shape_of(figures).parameters / 1e9 for figures in MODELS.values()]
    assert sizes == pytest.approx([1.777, 7.615, 7.615, 8.030, 8.030], rel=0.001)  # as their cards say


@pytest.mark.parametrize("attention", ["packed", "padded"])
@pytest.mark.parametrize(("command", "preset"), PRESETS)
def test_a_preset_fits_the_gpu_that_it_names(command, preset, attention):
    """With flash attention, and without it, where verl pads and holds more copies of the logits: too many of a micro-
    batch of 32,768 tokens."""
    model = "model" if command == "sft" else "actor_rollout_ref.model"
    overrides = [f"{model}.use_remove_padding={str(attention == 'packed').lower()}"]
    if (command, preset, attention) == ("grpo", "r1_distill_qwen_1.5b", "padded"):
        with pytest.raises(
            ValueError, match=r"log-probs needs .*: lower actor_rollout_ref.actor.ppo_max_token_len_per_"
        ):
            planned(command, preset, *overrides).check()
        overrides.append("actor_rollout_ref.actor.ppo_max_token_len_per_gpu=16384")
    planned(command, preset, *overrides).check()


@pytest.mark.parametrize("model", MODELS)
def test_the_papers_evaluation_fits_the_gpu_that_it_names(model):
    config = compose("evaluate", ["preset=paper"])
    PLANS["evaluate"](config, shape_of(MODELS[model]), gpu_named(config.gpu), MODELS[model]).check()


def test_ranks_that_cannot_share_the_heads_are_refused_with_a_batch_that_serves():
    """R1-Distill-Qwen-1.5B has 12 heads, 2 of keys: on 16 ranks two rows would leave 8 ranks to each."""
    with pytest.raises(
        ValueError, match=r"lets 8 of them share a row, .* model's 12 heads .* data.train_batch_size=16"
    ):
        planned("sft", "r1_distill_qwen_1.5b", "nproc=8", "trainer.nnodes=2")


def test_a_7b_preset_on_one_rank_is_refused_with_the_key():
    # 7.615e9 x 16 bytes are 113 GiB
    with pytest.raises(ValueError, match=r"update needs 1[2-4]\d GiB .* h100 has 79 GiB: raise nproc"):
        planned("sft", "r1_distill_qwen_7b", "nproc=1").check()


def test_vllm_that_stays_awake_counts_in_every_phase():
    asleep = planned("grpo", "r1_distill_qwen_1.5b")
    awake = planned("grpo", "r1_distill_qwen_1.5b", "actor_rollout_ref.rollout.free_cache_engine=false")
    for before, after in zip(asleep.phases[1:], awake.phases[1:], strict=True):
        assert after.total - before.total == pytest.approx(0.7 * 79 * GIB)
    asleep.check()
    with pytest.raises(ValueError, match=r"log-probs needs .*: lower actor_rollout_ref\.rollout\.gpu_memory"):
        awake.check()


def test_what_attributes_nothing_or_elsewhere_has_no_such_phase():
    for given in (
        ["segrl.rule=uniform"],
        ["segrl.rule=rank", "segrl.measure=length"],
        ["segrl.rule=rank", "segrl.attributor=frozen", "segrl.attributor_path=x"],
    ):
        assert "attribution" not in [phase.name for phase in planned("grpo", "one_gpu", *given).phases]
    weighed = planned("grpo", "one_gpu", "segrl.rule=rank")
    assert "attribution" in [phase.name for phase in weighed.phases]
    assert planned("grpo", "one_gpu").hours > weighed.hours > planned("grpo", "one_gpu", "segrl.rule=uniform").hours


def test_support_is_planned_with_the_logits_of_every_token():
    """16,384 tokens x 151,936 words x 2 bytes; a layer has fewer numbers a token."""
    tokens = "segrl.tokens_per_forward=16384"
    (phase,) = (one for one in planned("grpo", "one_gpu", tokens).phases if one.name == "attribution")
    assert phase.parts["attribution"] == 16384 * 151936 * 2


def test_the_scoring_of_a_cold_start_is_planned_by_its_forwards():
    """first_and_last reads a trace whole, from each thought on without it, on average half, and each thought alone."""
    shape, given = shape_of(QWEN_7B), {"lengths": [1000, 3000], "thoughts": [8, 20]}
    plan = PLANS["select"](changed("select", None, "dtype=bfloat16"), shape, gpu_named("h100"), QWEN_7B, **given)
    assert plan.of == "2 traces, about 20 forwards"
    flops = 7 * 1000 * shape.forward_flops(1000) + 13 * 3000 * shape.forward_flops(3000)
    assert plan.hours == pytest.approx(flops / (989e12 * 0.35) / 3600)
    assert plan.phases[0].parts["weights"] == 2 * shape.parameters
    assert PLANS["select"](changed("select", None, "measure=pmi"), shape, gpu_named("h100"), QWEN_7B) is None


def write_config(folder, figures):
    (folder / "config.json").write_text(json.dumps(figures))
    return folder


def test_what_does_not_fit_is_refused_before_anything_starts(tmp_path, capsys, monkeypatch):
    """On a CPU, the machine's memory is the limit."""
    monkeypatch.setattr(planning, "machine_memory", lambda: GIB // 2)
    save_traces(toy.sample_traces(1, seed=0), tmp_path / "traces.jsonl")
    out = [f"out={tmp_path / 'out'}", "device=cpu"]
    assert main(["attribute", f"traces={tmp_path / 'traces.jsonl'}", *out]) == 2
    said = capsys.readouterr()
    assert "plan: 1.02 million parameters on this machine of 0.5 GiB" in said.out
    assert "attribution needs" in said.err
    assert "cpu has 0.5 GiB: lower attribution.batch_tokens" in said.err
    assert not (tmp_path / "out").exists()


def test_a_remedy_of_the_plan_is_not_another_job(tmp_path, capsys, monkeypatch):
    """Nothing is claimed by a scoring that was refused; one that has begun says its plan no more."""
    traces = toy.sample_traces(1, seed=0)
    save_traces(traces, tmp_path / "traces.jsonl")
    forwards = f"1 trace, about {(len(traces[0].meta['kinds']) - 1) // 2 + 3} forwards"  # the last kind is the answer's
    command = ["select", f"traces={tmp_path / 'traces.jsonl'}", f"out={tmp_path / 's.jsonl'}", "device=cpu"]
    with monkeypatch.context() as small:
        small.setattr(planning, "machine_memory", lambda: GIB // 2)
        assert main(command) == 2
    said = capsys.readouterr()
    assert forwards in said.out
    assert "scoring needs" in said.err
    assert main([*command, "dtype=bfloat16"]) == 0
    assert forwards in capsys.readouterr().out
    assert main([*command, "dtype=bfloat16", "selection.tau=0.5"]) == 0
    assert "plan:" not in capsys.readouterr().out


@pytest.mark.parametrize("command", ["sft", "grpo"])
def test_a_training_on_a_cpu_is_planned_with_all_its_processes(command, capsys, monkeypatch):
    planning.announce(command, changed(command, "toy_cpu"))
    assert "plan: 1.02 million parameters on this machine" in capsys.readouterr().out
    monkeypatch.setattr(planning, "machine_memory", lambda: GIB)
    with pytest.raises(ValueError, match=r"update needs .* GiB \(processes .*; cpu has 1 GiB: lower .*max_token_len"):
        planning.announce(command, changed(command, "toy_cpu"))


def test_cost_says_the_plan_of_a_command_and_refuses_it(tmp_path, capsys):
    model = f"model_path={write_config(tmp_path, QWEN_7B)}"
    assert main(["cost", "evaluate", model, "gpu=h100", "backend=vllm"]) == 0  # dtype=auto: bfloat16 by config.json
    assert "KV cache 53.9" in capsys.readouterr().out  # 0.9 x 79 - 14.2 of weights - 3 of work
    assert main(["cost", "evaluate", model, "gpu=h100"]) == 0  # transformers holds it in float32
    assert "weights 28.4" in capsys.readouterr().out
    assert main(["cost", "evaluate", model, "gpu=4090", "backend=vllm", "dtype=float32"]) == 2
    assert "raise gpu_memory_utilization in generation.vllm.engine" in capsys.readouterr().err
    assert main(["cost", "select", model, "gpu=h100", "dtype=bfloat16"]) == 0
    assert "scoring" in capsys.readouterr().out
    assert main(["cost", "select", model, "gpu=h100", "measure=pmi"]) == 2
    assert "measure=pmi has no plan: alone, first_and_last, leave_one_out, shapley have one" in capsys.readouterr().err
    assert main(["cost", "attribute", model, "gpu=h1000"]) == 2
    assert "did you mean 'h100'?" in capsys.readouterr().err


def test_a_model_without_a_shape_stops_nothing(tmp_path, capsys):
    planning.announce("evaluate", changed("evaluate", None, f"model_path={write_config(tmp_path, {'vocab_size': 3})}"))
    assert capsys.readouterr().out.startswith("no plan: config.json has no num_hidden_layers")


def test_the_threshold_of_checkpointing_and_the_longest_trace_make_attributions_peak():
    config = changed("attribute", None, "dtype=bfloat16")
    peaks = [
        PLANS["attribute"](config, shape_of(QWEN_7B), gpu_named("h100"), QWEN_7B, lengths=lengths).phases[0].total
        for lengths in ([8000], [8000, 9000], [200_000])
    ]
    assert peaks[0] == peaks[1] < peaks[2]  # 9,000 tokens are checkpointed, and keep less than 8,000 that are not

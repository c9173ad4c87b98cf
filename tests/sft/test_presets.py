"""Every preset of `segrl sft`: it composes, each of its keys is read, and it makes the steps of its recipe."""

import pytest
from omegaconf import OmegaConf
from testkit.composed import changed

from segrl.commands.config import CONFIG_DIR
from segrl.commands.sft import complete
from segrl.sft.dataset import rules_of
from segrl.sft.stages import planned_steps, ranks, stage_config, stages_of

FOLDER = CONFIG_DIR / "sft" / "preset"
PRESETS = sorted(path.stem for path in FOLDER.glob("*.yaml"))
LIMO = 817  # traces
TYPED = ("model", "engine", "optim")  # verl's dataclasses, which refuse a key that they do not have


def dotted(node, prefix="") -> set[str]:
    if not isinstance(node, dict):
        return {prefix}
    return {key for name, value in node.items() for key in dotted(value, f"{prefix}.{name}".lstrip("."))}


@pytest.mark.e2e
@pytest.mark.parametrize("name", PRESETS)
def test_every_key_of_a_preset_is_one_that_is_read(name):
    pytest.importorskip("verl")
    from verl.utils.config import omega_conf_to_dataclass

    config, plain = changed("sft", name, "traces=t.jsonl"), changed("sft", None)
    keys = dotted(OmegaConf.to_container(OmegaConf.load(FOLDER / f"{name}.yaml")))
    assert all(
        OmegaConf.select(plain, key, default="none") != "none" for key in keys if key.partition(".")[0] not in TYPED
    )
    for section in ("engine", "optim"):
        omega_conf_to_dataclass(config[section])
    assert {key for key in keys if key.startswith("model.")} <= {
        *("model.use_remove_padding", "model.enable_gradient_checkpointing"),
        "model.override_config.attn_implementation",
    }
    assert stages_of(config)


def recipe(name: str, gpus: int, monkeypatch) -> tuple[list[int], int]:
    """The steps of each stage on LIMO, and how many ranks share the batch."""
    monkeypatch.setattr("segrl.commands.sft.on_cpu", lambda: False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    config = changed("sft", name)
    config.nproc = None
    complete(config)
    stages = stages_of(config)
    return [planned_steps(LIMO, stage_config(config, stage, stages)) for stage in stages], ranks(config)


@pytest.mark.e2e
@pytest.mark.parametrize("gpus", [1, 8])
@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("r1_distill_qwen_1.5b", [4080]),
        ("r1_distill_qwen_7b", [4080]),
        ("qwen2.5_7b_instruct", [2856, 1632]),
        ("llama3.1_8b_instruct", [2856, 1632]),
    ],
)
def test_the_recipes_make_the_authors_steps(name, steps, gpus, monkeypatch):
    """Batches of two: 817 * 10 / 2 = 4,085, less the half step of each epoch's odd trace, which verl leaves out."""
    assert recipe(name, gpus, monkeypatch) == (steps, min(gpus, 2))
    assert sum(steps) == 408 * {1: 10, 2: 11}[len(steps)]


@pytest.mark.e2e
@pytest.mark.parametrize("name", [name for name in PRESETS if name != "toy_cpu"])
def test_what_the_recipes_have_in_common(name):
    config = changed("sft", name)
    assert (config.optim.lr_scheduler_type, config.optim.lr_warmup_steps_ratio) == ("cosine", 0.05)
    assert (config.data.max_length, config.dtype) == (16384, "bfloat16")
    rules = rules_of(config.data.segrl)
    assert rules.too_long == "truncate"
    assert rules.think_start == ("always" if "instruct" in name else "closed")
    rates = {"r1_distill_qwen_1.5b": [3e-5], "r1_distill_qwen_7b": [1.5e-5]}
    assert [stage.lr for stage in stages_of(config)] == rates.get(name, [1.5e-5, 8e-6])

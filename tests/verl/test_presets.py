"""Every preset, as verl itself reads it."""

import importlib.metadata
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf
from testkit.composed import changed, needs_verl

from segrl import toy
from segrl.commands import grpo
from segrl.commands.config import CONFIG_DIR, ConfigError, compose
from segrl.credit.checks import check_supported
from segrl.credit.settings import CreditSettings, credit_from
from segrl.verl import checks

PRESETS = sorted(path.stem for path in (CONFIG_DIR / "grpo" / "preset").glob("*.yaml"))


def preset(name, *overrides):
    return changed("grpo", name, *overrides)


@pytest.fixture
def without_download(monkeypatch):
    """The presets name models of the hub; what is asked of their configs is known. And vLLM may be the CPU's."""
    monkeypatch.setattr(checks, "model_config", lambda model: SimpleNamespace(max_position_embeddings=131_072))
    pytest.importorskip("verl")
    from segrl.verl.platform import find_vllm_by_its_cpu_name

    monkeypatch.setattr(importlib.metadata, "version", importlib.metadata.version)  # put back afterwards
    find_vllm_by_its_cpu_name()


@pytest.mark.e2e
@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_passes_verls_own_checks_and_ours(name, without_download):
    pytest.importorskip("verl")
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import omega_conf_to_dataclass, validate_config

    config = preset(name)
    config.data.train_files = config.data.val_files = "rows.parquet"
    validate_config(config, need_reference_policy(config), need_critic(config))
    actor = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
    rollout = omega_conf_to_dataclass(config.actor_rollout_ref.rollout)
    assert actor.engine.strategy == "fsdp2"
    assert actor.engine.entropy_from_logits_with_chunking is (name != "toy_cpu")
    assert rollout.log_prob_use_dynamic_bsz == actor.use_dynamic_bsz
    assert not need_critic(config)
    assert rollout.enable_sleep_mode is (name != "toy_cpu")
    check_supported(config)
    checks.check_sizes(config)


@needs_verl
def test_the_yaml_and_the_dataclass_have_the_same_defaults():
    config = compose("grpo", ["method=uniform"])
    assert credit_from(config) == CreditSettings()
    assert set(config.segrl) == set(OmegaConf.structured(CreditSettings()))


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_samples_from_the_whole_distribution_and_keeps_two_checkpoints(name, recwarn):
    config = preset(name)
    rollout, trainer = config.actor_rollout_ref.rollout, config.trainer
    assert (rollout.top_p, rollout.top_k) == (1.0, -1)
    check_supported(config)
    assert not [one for one in recwarn if "part of the distribution" in str(one.message)]
    assert (trainer.save_freq > 0, trainer.max_actor_ckpt_to_keep) == (True, 2)
    assert "hf_model" in config.actor_rollout_ref.actor.checkpoint.save_contents


@needs_verl
def test_a_typed_budget_is_refused_with_what_to_set_in_its_place():
    with pytest.raises(ConfigError, match=r"segrl\.budget is no longer a setting: set segrl\.nodes"):
        compose("grpo", ["segrl.budget=0.25"])


def test_the_sizes_of_the_presets():
    sizes = {}
    for name in PRESETS:
        config = preset(name)
        sizes[name] = (config.model_path.rpartition("-")[2], config.trainer.nnodes * config.trainer.n_gpus_per_node)
    own = {"r1_distill_qwen_1.5b": ("1.5B", 8), "r1_distill_qwen_7b": ("7B", 8), "one_gpu": ("1.5B", 1)}
    assert sizes == own | {"two_nodes": ("7B", 16), "toy_cpu": (str(toy.MODEL_PATH).rpartition("-")[2], 1)}


def test_the_summary_counts_rollouts_updates_and_what_attribution_costs():
    config = preset("toy_cpu", "segrl.rule=uniform")
    assert grpo.summary(config, credit_from(config)) == (
        "GRPO, no weights: 60 steps, each 16 prompts x 4 = 64 rollouts, 1 mini-batch of 64, 1 optimiser step; "
        "no attribution"
    )
    ranked = ("segrl.rule=rank", "segrl.certificate_every=0")
    config = preset("toy_cpu", *ranked)
    assert grpo.summary(config, credit_from(config)) == (
        "GRPO, rule rank, measure contribution: 60 steps, each 16 prompts x 4 = 64 rollouts, 1 mini-batch of 64, 1 "
        "optimiser step; attribution takes 0.50 times the update at most; rollouts that are not weighed cost nothing"
    )
    config = preset("toy_cpu", "segrl.rule=rank", "segrl.measure=length")
    assert grpo.summary(config, credit_from(config)).endswith("no attribution")
    config = preset("toy_cpu", *ranked, "segrl.share=0.5", "segrl.every=2")
    assert "takes 0.12 times the update at most" in grpo.summary(config, credit_from(config))
    split = "actor_rollout_ref.actor.ulysses_sequence_parallel_size=2"  # both ranks of a group do the group's work
    config = preset("toy_cpu", *ranked, split)
    assert "takes 1.00 times the update at most" in grpo.summary(config, credit_from(config))


@pytest.mark.parametrize(
    ("keys", "units"),
    [
        (("method=support",), "1.33"),  # four forwards, where an update is three
        (("method=support", "segrl.forwards=2"), "0.67"),
        (("method=support", "actor_rollout_ref.rollout.temperature=0.7"), "1.67"),  # and one over the whole response
        (("method=grail",), "0.50"),  # a gradient at the input
        (("method=acpo",), "0.33"),  # one forward
        (("method=delta",), "0.33"),
        (("method=contrast", "segrl.nodes=4", "segrl.certificate_every=0"), "2.00"),
        (("method=contrast", "segrl.certificate_every=10"), "0.57"),  # two forwards more at every tenth step
    ],
)
def test_the_summary_counts_what_the_measure_reads(keys, units):
    pytest.importorskip("verl")
    config = compose("grpo", ["preset=toy_cpu", *keys])
    assert f"takes {units} times the update at most" in grpo.summary(config, credit_from(config))

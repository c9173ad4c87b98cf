"""``segrl grpo``: what can be checked before Ray starts is checked, verl's own ``main_ppo`` runs on the config, and the
last checkpoint becomes ``out/model``.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from segrl.commands.common import METRICS, say
from segrl.commands.config import needed, selected
from segrl.commands.grpo_export import check_disk, export
from segrl.commands.grpo_rows import give_rows
from segrl.commands.planning import announce, say_attention
from segrl.commands.training_plans import attribution_units
from segrl.credit.checks import check_reads_text, check_supported, times_attributed
from segrl.credit.settings import CreditSettings
from segrl.data import shards
from segrl.launch import check_device, editable, loggers, run_verl
from segrl.loading import check_weights
from segrl.report.curves import keep_metrics
from segrl.sft.stages import TRACKER
from segrl.verl.checks import (
    SEGRL_REWARD,
    SEGRL_REWARD_KEYS,
    check_gates,
    check_reward,
    check_rows,
    check_sizes,
    check_vocabularies,
    model_config,
)

# What a run must have in common with the one whose checkpoints it goes on from, beside the section `segrl`.
ARM = (
    *("actor_rollout_ref.model.path", "data_path", "data.train_files", "reward.custom_reward_function"),
    *("algorithm.adv_estimator", "algorithm.norm_adv_by_std_in_grpo", "actor_rollout_ref.actor.policy_loss.loss_mode"),
)
# Of the section `segrl`: how it is computed and what is shown, which may change.
NOT_OF_THE_ARM = (
    *("certificate_every", "fidelity_every", "fidelity_rollouts", "fidelity_nodes", "tokens_per_forward"),
    *("checkpointing", "attributor_workers", "attributor_gpus", "poll_seconds", "step_timeout", "dump_dir"),
)


def main(config: DictConfig) -> int:
    """Check, say what will be trained, train, export. The exit code."""
    needed(config, "out")
    config = editable(config)
    config.trainer.logger = loggers(config.trainer.logger)
    complete(config)
    check_device(config)
    check_weights(config.actor_rollout_ref.model.path)
    settings = check_supported(config)
    check_mode(config.trainer.v1.trainer_mode, settings)
    roles = config.actor_rollout_ref
    say_attention(roles.model, roles.actor.ulysses_sequence_parallel_size)
    announce("grpo", config)
    hf_config = model_config(config.actor_rollout_ref.model)
    check_reads_text(hf_config, settings)
    check_gates(hf_config, settings)
    check_sizes(config)
    check_vocabularies(config, settings)
    claim(config)
    not_validated = give_rows(config)
    check_rows(config)
    check_reward(config)
    check_disk(config)
    tell_workers(config)
    say(summary(config, settings))
    if not_validated:
        say(not_validated)
    if log := os.environ.get(METRICS):
        keep_metrics(log, goes_on=has_checkpoint(config))
    code = run_verl(["verl.trainer.main_ppo"], config, "grpo")
    if not code:
        say(export(config))
    return code


def claim(config: DictConfig) -> None:
    """Raise where checkpoints of another arm lie in the folder, from which verl would go on; else note the arm."""
    note = Path(config.out) / "arm.json"
    if config.trainer.resume_mode == "disable" and has_checkpoint(config):
        raise ValueError(
            f"{config.out} holds checkpoints of an earlier run, which trainer.resume_mode=disable would write over; "
            "choose another out=, or remove them"
        )
    if config.trainer.resume_mode != "auto" or not has_checkpoint(config):
        note.unlink(missing_ok=True)
    for key, (there, now) in shards.claim(note, arm(config)).items():
        raise ValueError(
            f"{config.out} holds checkpoints of another run: {key} was {there!r}, now {now!r}; choose another out=, or "
            "go on from them knowingly: trainer.resume_mode=resume_path trainer.resume_from_path=<a global_step folder>"
        )


def arm(config: DictConfig) -> dict[str, Any]:
    """What makes a run's results, by key."""
    credit = [f"segrl.{key}" for key in config.segrl if key not in NOT_OF_THE_ARM]
    return {key: selected(config, key) for key in (*credit, *ARM)}


def has_checkpoint(config: DictConfig) -> bool:
    """Whether there is a checkpoint from which verl goes on."""
    return (Path(config.trainer.default_local_dir) / TRACKER).exists()


def complete(config: DictConfig) -> None:
    """Set the keys of a frozen attributor where ``attributor_path`` is given, which is short for them. Take the keys of
    segrl's reward away where another reward is given, unless they were changed: it need not know them.
    """
    if config.attributor_path and not config.segrl.attributor_path:
        config.segrl.attributor, config.segrl.attributor_path = "frozen", config.attributor_path
    reward = config.reward.custom_reward_function
    if reward.path != SEGRL_REWARD:
        given = (reward.get("reward_kwargs") or {}).items()
        reward.reward_kwargs = {key: value for key, value in given if (key, value) not in SEGRL_REWARD_KEYS.items()}


def tell_workers(config: DictConfig) -> None:
    """Name for Ray's workers where verl's loggers write: those of a cluster that runs already do not know what this
    process does.
    """
    told = {"TENSORBOARD_DIR": os.environ.get("TENSORBOARD_DIR") or Path(config.out).absolute() / "tensorboard"}
    if log := os.environ.get(METRICS):
        told[METRICS] = Path(log).absolute()
    for name, place in told.items():
        OmegaConf.update(config, f"ray_kwargs.ray_init.runtime_env.env_vars.{name}", str(place), force_add=True)


def check_mode(mode: str, settings: CreditSettings) -> None:
    """Raise where verl's own trainer is asked for with weights: it would leave them out."""
    if settings.rule != "uniform" and not mode.startswith("segrl"):
        ours = "segrl" if mode == "sync" else f"segrl_{mode}"
        raise ValueError(
            f"trainer.v1.trainer_mode={mode} is a trainer of verl's own, which weighs nothing; take "
            f"trainer.v1.trainer_mode={ours}, or method=uniform"
        )


# --- what is said before it starts -----------------------------------------------------------------------------------


def summary(config: DictConfig, settings: CreditSettings) -> str:
    prompts, n, actor = config.data.train_batch_size, config.actor_rollout_ref.rollout.n, config.actor_rollout_ref.actor
    steps = config.trainer.total_training_steps or f"{config.trainer.total_epochs} epochs of"
    batches = prompts // actor.ppo_mini_batch_size
    updates = batches * actor.ppo_epochs
    measures = " and ".join(side.measure for side in settings.sides)
    weighing = "no weights" if settings.rule == "uniform" else f"rule {settings.rule}, measure {measures}"
    return (
        f"GRPO, {weighing}: {steps} steps, each {prompts} prompts x {n} = {prompts * n} rollouts, "
        f"{batches} mini-batch{'es' * (batches != 1)} of {actor.ppo_mini_batch_size * n}, "
        f"{updates} optimiser step{'s' * (updates != 1)}; {attribution_cost(config, settings)}"
    )


def attribution_cost(config: DictConfig, settings: CreditSettings) -> str:
    """What attribution costs, in units of verl's own update on the same rollouts."""
    if not settings.attributes:
        return "no attribution"
    cost = times_attributed(config, settings) * attribution_units(config, settings)
    return f"attribution takes {cost:.2f} times the update at most; rollouts that are not weighed cost nothing"

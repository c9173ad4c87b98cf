"""``segrl grpo``: what can be checked before Ray starts is checked, then verl's own ``main_ppo`` runs on the config."""

from __future__ import annotations

import warnings
from pathlib import Path

from omegaconf import DictConfig

from segrl import toy
from segrl.config import needed
from segrl.data import load_traces, read_rows, write_verl_parquet
from segrl.types import Trace
from segrl.verl.credit import credit_from
from segrl.verl.launch import check_device, editable, run_verl
from segrl.verl.reward import compute_score

# Losses that pick tokens by their advantage: there, weighting the advantage is not weighting the loss.
PICK_BY_ADVANTAGE = ("clip_cov", "kl_cov")


def main(config: DictConfig) -> int:
    """Check, say what will be trained, train. The exit code."""
    needed(config, "out")
    config = editable(config)
    check_device(config, "grpo_preset")
    check_supported(config)
    credit_from(config)
    for split in ("train", "val"):
        config.data[f"{split}_files"] = verl_rows(config, split)
    check_reward(config)
    print(summary(config), flush=True)
    return run_verl(["verl.trainer.main_ppo"], config, "grpo")


def check_supported(config: DictConfig) -> None:
    actor, model = config.actor_rollout_ref.actor, config.actor_rollout_ref.model
    refused = [
        (config.algorithm.adv_estimator == "gae", "algorithm.adv_estimator=gae has a critic; take grpo or rloo"),
        (actor.strategy != "fsdp2", f"actor.strategy={actor.strategy}; attribution runs on fsdp2"),
        (actor.ulysses_sequence_parallel_size > 1, "Ulysses splits the sequences that attribution needs whole"),
        (model.use_fused_kernels, "model.use_fused_kernels leaves no logits to attribute"),
    ]
    reasons = [reason for refuse, reason in refused if refuse]
    if reasons:
        raise ValueError(f"segrl grpo cannot run this: {'; '.join(reasons)}")
    if actor.policy_loss.loss_mode in PICK_BY_ADVANTAGE:
        warnings.warn(
            f"policy_loss.loss_mode={actor.policy_loss.loss_mode} picks tokens by their advantage, so weights change "
            "which tokens are picked, not only how much they count",
            stacklevel=2,
        )


def verl_rows(config: DictConfig, split: str) -> str:
    """The file of rows that verl trains on: the one given, or one written from the problems given."""
    given = {"train": config.data_path, "val": config.val_path}[split]
    if given and _is_verl_parquet(given):
        return given
    path = Path(config.out) / "data" / f"{split}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    problems = load_traces(given) if given else toy_problems(split)
    write_verl_parquet(problems, path, data_source=Path(given or "toy").stem, split=split)
    return str(path)


def toy_problems(split: str) -> list[Trace]:
    """Problems of the toy world; none stands in both splits."""
    return toy.sample_problems(2048, seed=0) if split == "train" else toy.sample_problems(128, seed=1_000_000)


def _is_verl_parquet(path: str) -> bool:
    from pyarrow.parquet import read_schema

    return Path(path).suffix == ".parquet" and {"prompt", "reward_model"} <= set(read_schema(path).names)


def check_reward(config: DictConfig) -> None:
    """The gold answer of the first row, boxed, must be right by our own reward."""
    reward = config.reward.custom_reward_function
    if reward.path != "pkg://segrl.verl.reward":
        return
    gold = read_rows(config.data.train_files)[0]["reward_model"]["ground_truth"]
    verdict = compute_score("check", f"</think>\\boxed{{{gold}}}", gold, **reward.get("reward_kwargs", {}))
    if verdict["score"] != 1.0:
        raise ValueError(
            f"{config.data.train_files}: the gold answer {gold!r} of the first row is not right by itself "
            f"({verdict['status']}); no rollout could ever score"
        )


def summary(config: DictConfig) -> str:
    prompts, n, actor = config.data.train_batch_size, config.actor_rollout_ref.rollout.n, config.actor_rollout_ref.actor
    steps = config.trainer.total_training_steps or f"{config.trainer.total_epochs} epochs of"
    updates = prompts // actor.ppo_mini_batch_size * actor.ppo_epochs
    return (
        f"GRPO, rule {config.segrl.rule}: {steps} steps, each {prompts} prompts x {n} = {prompts * n} rollouts and "
        f"{updates} updates; {attribution_cost(config.segrl)}"
    )


def attribution_cost(credit: DictConfig) -> str:
    """A gradient along the path costs half a policy step on the same tokens, the value at each end a sixth."""
    if credit.rule == "uniform":
        return "no attribution"
    return f"attribution of every rollout would cost {credit.nodes / 2 + 1 / 3:.1f} x update_actor"

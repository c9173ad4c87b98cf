"""What is checked before Ray starts, each refusal a sentence with the way out."""

from __future__ import annotations

import asyncio
import inspect
import warnings
from collections.abc import Mapping
from math import isfinite
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from segrl.attribution.target import TEMPLATE
from segrl.credit.choosing import WITHIN_GROUPS
from segrl.credit.rollout import evidence_of, make_rollout, weigh_rollout
from segrl.credit.settings import BY_GRADIENT, Credit, credit_from
from segrl.data import read_rows
from segrl.loading import load_tokenizer
from segrl.types import Stream, TokenisedTrace

OURS = "pkg://segrl.verl.reward"
# Losses that pick tokens by their advantage: there, weighting the advantage is not weighting the loss.
PICK_BY_ADVANTAGE = ("clip_cov", "kl_cov")
MEAN_ADVANTAGE = ("geo_mean",)


# --- what attribution runs on ----------------------------------------------------------------------------------------


def check_supported(config: DictConfig) -> Credit:
    """The settings of ``segrl``, if this trainer can follow them. Called under verl's own main too."""
    credit = credit_from(config)
    actor = config.actor_rollout_ref.actor
    reasons = []
    if config.algorithm.adv_estimator == "gae" or config.critic.get("enable"):
        reasons.append(f"algorithm.adv_estimator={config.algorithm.adv_estimator} has a critic; take grpo or rloo")
    if credit.attributes and credit.attributor != "frozen":
        reasons += _of_the_engine(config)
    reasons += _of_the_source(config, credit)
    if actor.policy_loss.loss_mode in MEAN_ADVANTAGE and credit.rule != "uniform":
        reasons.append(
            f"actor.policy_loss.loss_mode={actor.policy_loss.loss_mode} takes each response's mean advantage, which "
            "weights of mean one leave as it was; take another loss, or segrl.rule=uniform"
        )
    if reasons:
        raise ValueError(f"segrl grpo cannot run this: {'; '.join(reasons)}")
    if actor.policy_loss.loss_mode in PICK_BY_ADVANTAGE and credit.rule != "uniform":
        warnings.warn(
            f"policy_loss.loss_mode={actor.policy_loss.loss_mode} picks tokens by their advantage, so weights change "
            "which tokens are picked, not only how much they count",
            stacklevel=2,
        )
    check_options(credit)
    return credit


def runs_live(config: DictConfig) -> bool:
    """Whether attribution can run on verl's own actor."""
    return not _of_the_engine(config)


def compares_within_groups(config: DictConfig) -> bool:
    """Whether advantages come from the rewards of a group alone: a KL penalty, too, tells its rollouts apart."""
    return config.algorithm.adv_estimator in WITHIN_GROUPS and not config.algorithm.use_kl_in_reward


def _of_the_engine(config: DictConfig) -> list[str]:
    strategy, model = config.actor_rollout_ref.actor.strategy, config.actor_rollout_ref.model
    found = []
    if strategy != "fsdp2":
        found.append(f"actor.strategy={strategy}; attribution runs on fsdp2")
    if (model.get("tiled_mlp") or {}).get("enabled"):
        found.append(
            "model.tiled_mlp.enabled=true; attribution gives the last layer slices that verl's tiles do not take"
        )
    frozen = "; a frozen attributor works there: segrl.attributor=frozen segrl.attributor_path=..."
    return [reason + frozen for reason in found]


def _of_the_source(config: DictConfig, credit: Credit) -> list[str]:
    reasons = []
    if bypasses(config) and credit.need == "entropy_T":
        reasons.append(
            f"segrl.measure={credit.measure} reads the entropy that verl computes with the old log-probs, which "
            "algorithm.rollout_correction.bypass_mode leaves out"
        )
    if credit.attributor == "ref" and not has_reference(config):
        reasons.append("segrl.attributor=ref without a reference: set actor.use_kl_loss=true, or train with LoRA")
    if credit.sign == "signed" and credit.need != "ig":
        reasons.append("segrl.sign=signed reads the sign of integrated gradients; take segrl.measure=ig with it")
    if credit.sign == "signed" and credit.target == "gold":
        reasons.append(
            "segrl.sign=signed looks for the tokens that support a response's own answer, but segrl.target=gold "
            "explains the gold one; take segrl.target=own with it"
        )
    if credit.attributor != "live" and credit.need not in BY_GRADIENT:
        reasons.append(f"segrl.measure={credit.measure} attributes nothing; leave segrl.attributor at live")
    return reasons


def bypasses(config: DictConfig) -> bool:
    """Whether verl takes the rollout servers' log-probs for the old ones, and runs no forward for them."""
    return bool((config.algorithm.get("rollout_correction") or {}).get("bypass_mode", False))


def times_attributed(config: DictConfig, credit: Credit) -> int:
    """On how many ranks a rollout is attributed: each rank of a Ulysses group attributes the group's rollouts."""
    return 1 if credit.attributor == "frozen" else config.actor_rollout_ref.actor.ulysses_sequence_parallel_size


def has_reference(config: DictConfig) -> bool:
    """Whether the actor's workers hold a reference: a LoRA actor is its own with the adapter off."""
    model = config.actor_rollout_ref.model
    lora = (model.get("lora") or {}).get("rank", 0) or model.get("lora_rank", 0) or model.get("lora_adapter_path")
    hybrid = config.actor_rollout_ref.get("hybrid_engine", True)  # else the reference has workers of its own
    return bool(lora) or bool(
        hybrid and (config.actor_rollout_ref.actor.use_kl_loss or config.algorithm.use_kl_in_reward)
    )


def check_options(credit: Credit) -> None:
    """Segment, score and weigh a made-up response, so that a wrong option is found before Ray starts."""
    text = "one\n\nWait, two\n\nAlternatively, three</think> 4"
    ends = torch.arange(1, len(text) + 1)
    trace = TokenisedTrace(
        id="a made-up response",
        problem="",
        response=text,
        answer="4",
        prompt_ids=torch.tensor([0]),
        response_ids=ends,
        offsets_T=torch.stack([ends - 1, ends], 1),
        trainable_T=torch.ones(len(text), dtype=torch.bool),
        prompt_hash="",
    )
    rollout = make_rollout("0_0_0", trace, torch.full((len(text),), 0.5), credit)
    weigh_rollout(rollout, evidence_of(rollout, Stream(torch.linspace(-1, 1, len(text))), credit), credit, step=1)


# --- sizes -----------------------------------------------------------------------------------------------------------


def check_sizes(config: DictConfig) -> None:
    """Batches that divide, and sequences that the model and vLLM take."""
    data, roles, trainer = config.data, config.actor_rollout_ref, config.trainer
    ranks = trainer.n_gpus_per_node * trainer.nnodes // roles.actor.ulysses_sequence_parallel_size
    prompts, n, mini = data.train_batch_size, roles.rollout.n, roles.actor.ppo_mini_batch_size
    if prompts % mini:
        raise ValueError(
            f"data.train_batch_size={prompts} prompts do not divide into mini-batches of "
            f"actor.ppo_mini_batch_size={mini}; verl would fill the last one with padding"
        )
    if mini * n % ranks:
        raise ValueError(
            f"a mini-batch of {mini} prompts x {n} rollouts = {mini * n} does not divide over {ranks} "
            "data-parallel ranks; change actor.ppo_mini_batch_size or rollout.n"
        )
    if n < 2 and config.algorithm.adv_estimator in ("grpo", "rloo"):
        raise ValueError(
            f"rollout.n={n}: {config.algorithm.adv_estimator} compares the rollouts of a prompt with each other; give "
            "2 or more"
        )
    length = data.max_prompt_length + data.max_response_length
    if roles.rollout.max_model_len and roles.rollout.max_model_len < length:
        raise ValueError(
            f"rollout.max_model_len={roles.rollout.max_model_len}, but max_prompt_length={data.max_prompt_length} and "
            f"max_response_length={data.max_response_length} come to {length}"
        )
    limit = position_limit(model_config(roles.model))
    if limit and length > limit:
        raise ValueError(
            f"max_prompt_length={data.max_prompt_length} and max_response_length={data.max_response_length} come to "
            f"{length} tokens, the model {roles.model.path} takes {limit}"
        )
    if limit and length + len(TEMPLATE) > limit:
        warnings.warn(
            f"a response of all {data.max_response_length} tokens leaves no room for the answer that attribution "
            f"appends (the model takes {limit}); such responses weigh one",
            stacklevel=2,
        )


def model_config(model: DictConfig) -> Any:
    """The model's config as verl's workers have it: from code of its own if allowed, with what is overridden."""
    from transformers import AutoConfig
    from verl.utils.fs import copy_to_local
    from verl.utils.model import update_model_config

    path = copy_to_local(model.get("hf_config_path") or model.path)
    found = AutoConfig.from_pretrained(path, trust_remote_code=model.get("trust_remote_code", False))
    overrides: Any = OmegaConf.to_container(model.override_config, resolve=True)
    update_model_config(found, overrides.get("model_config", overrides))
    return found


def position_limit(found) -> int | None:
    """How many positions the model takes, where its config says so."""
    return getattr(getattr(found, "text_config", found), "max_position_embeddings", None)


def check_reads_text(found, credit: Credit) -> None:
    """Images are not handed on to attribution: scores would be those of another prompt."""
    if credit.attributes and getattr(found, "vision_config", None) is not None:
        raise ValueError(
            f"the model is a {type(found).__name__} with a vision_config, but attribution feeds token ids alone, "
            "without images; take a segrl.measure that runs no model, like entropy or length"
        )


def check_rows(config: DictConfig) -> None:
    """verl leaves the last, incomplete batch of an epoch out: fewer rows than one batch train nothing."""
    rows = len(read_rows(config.data.train_files, ["prompt"]))
    if rows < config.data.train_batch_size:
        raise ValueError(
            f"{config.data.train_files} has {rows} rows, data.train_batch_size={config.data.train_batch_size}; not one "
            "batch can be filled"
        )


def check_vocabularies(config: DictConfig, credit: Credit) -> None:
    if credit.attributor_path:
        from segrl.verl.frozen import check_vocabulary

        policy = load_tokenizer(config.actor_rollout_ref.model.path)
        check_vocabulary(policy, load_tokenizer(credit.attributor_path), credit.attributor_path)


# --- the reward ------------------------------------------------------------------------------------------------------


def check_reward(config: DictConfig) -> None:
    """Call the reward on the first row with its own gold answer, boxed: the call must fit, and ours must say right."""
    reward = config.reward.custom_reward_function
    row = read_rows(config.data.train_files)[0]
    gold = (row.get("reward_model") or {}).get("ground_truth")
    found = call_reward(config, row, f"</think>\\boxed{{{gold}}}")
    if reward.path == OURS and found["acc"] != 1.0:
        raise ValueError(
            f"{config.data.train_files}: the gold answer {gold!r} of the first row is not right by itself "
            f"({found['status']}); no rollout could ever score"
        )


def call_reward(config: DictConfig, row: Mapping[str, Any], response: str) -> dict[str, Any]:
    """What the reward says of ``response``, called as verl will call it."""
    reward = config.reward.custom_reward_function
    function, where = _reward_function(reward)
    given = {
        "data_source": row.get("data_source", "unknown"),
        "solution_str": response,
        "ground_truth": (row.get("reward_model") or {}).get("ground_truth"),
        "extra_info": row.get("extra_info") or {},
    }
    kwargs = _plain(reward.get("reward_kwargs"))
    try:
        inspect.signature(function).bind(**given, **kwargs)
    except TypeError as error:
        raise ValueError(
            f"the reward {where} cannot be called as verl does, with {', '.join([*given, *kwargs])}: {error}"
        ) from error
    try:
        found = function(**given, **kwargs)
        found = asyncio.run(found) if inspect.iscoroutine(found) else found
    except Exception as error:
        raise ValueError(
            f"the reward {where} raised {type(error).__name__}: {error}, for the first row's gold answer in a box"
        ) from error
    found = found if isinstance(found, dict) else {"score": found}
    if not isinstance(found.get("score"), (int, float)) or not isfinite(found["score"]):
        raise ValueError(f"the reward {where} gave {found!r}; expected a number, or a dict with a number as 'score'")
    return found


def _plain(node: DictConfig | None) -> dict[str, Any]:
    return {str(key): value for key, value in (node or {}).items()}


def _reward_function(reward: DictConfig) -> tuple[Any, str]:
    if not reward.path:
        from verl.utils.reward_score import default_compute_score

        return default_compute_score, "of verl for this data_source"
    from verl.utils.import_utils import load_extern_object

    where = f"{reward.path}:{reward.name}"
    try:
        return load_extern_object(module_path=reward.path, object_name=reward.name), where
    except (OSError, ImportError, AttributeError, RuntimeError) as error:
        raise ValueError(f"the reward {where} cannot be loaded: {error}") from error

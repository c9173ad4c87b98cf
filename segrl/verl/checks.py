"""Checks before Ray starts that need verl: sizes, files and the reward. Each error says what to change."""

from __future__ import annotations

import asyncio
import inspect
import warnings
from collections.abc import Mapping
from math import isfinite
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from segrl.attribution.gates import value_projections
from segrl.attribution.target import TEMPLATE
from segrl.credit.checks import check_vocabulary
from segrl.credit.choosing import WITHIN_GROUPS
from segrl.credit.settings import CreditSettings, credit_from
from segrl.data import read_rows
from segrl.launch import sharing_data
from segrl.loading import load_tokenizer, position_limit
from segrl.resolving import near
from segrl.text.prompting import THINK_END
from segrl.verl.reward import FINISH, PROMPT

SEGRL_REWARD = "pkg://segrl.verl.reward"
SEGRL_REWARD_KEYS = {"thinking": "auto", "format_weight": 0.0, "length_weight": 0.0, "length_from": 0, "length_to": 0}


# --- the model -------------------------------------------------------------------------------------------------------


def check_gates(hf_config, settings: CreditSettings) -> None:
    """Raise where the policy has no value vectors to gate.

    The check builds the model without weights. A model that brings its own code is not checked.
    """
    from transformers import AutoModelForCausalLM

    follows = settings.follows_a_path
    gated = follows and settings.path == "values" and settings.attributor != "frozen"
    if gated and not getattr(hf_config, "auto_map", None):
        with torch.device("meta"):
            value_projections(AutoModelForCausalLM.from_config(hf_config, attn_implementation="eager"))


# --- sizes -----------------------------------------------------------------------------------------------------------


def check_sizes(config: DictConfig) -> None:
    """Raise where batches do not divide, or where the model or vLLM cannot take the longest sequence."""
    data, roles, trainer = config.data, config.actor_rollout_ref, config.trainer
    ranks = sharing_data(trainer.n_gpus_per_node * trainer.nnodes, roles.actor.ulysses_sequence_parallel_size)
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
    if n < 2 and config.algorithm.adv_estimator in WITHIN_GROUPS:
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
    held = roles.actor.ppo_max_token_len_per_gpu * roles.actor.ulysses_sequence_parallel_size
    if roles.actor.use_dynamic_bsz and held < length:
        raise ValueError(
            f"actor.ppo_max_token_len_per_gpu={roles.actor.ppo_max_token_len_per_gpu}: a micro-batch holds {held} "
            f"tokens, but max_prompt_length={data.max_prompt_length} and max_response_length="
            f"{data.max_response_length} come to {length}; verl does not split a row; give {length} or more"
        )
    limit = position_limit(model_config(roles.model))
    if limit and length > limit:
        raise ValueError(
            f"max_prompt_length={data.max_prompt_length} and max_response_length={data.max_response_length} come to "
            f"{length} tokens, the model {roles.model.path} takes {limit}"
        )
    if limit and credit_from(config).reads_answers and length + len(TEMPLATE) > limit:
        warnings.warn(
            f"a response of all {data.max_response_length} tokens leaves no room for the answer that attribution "
            f"appends (the model takes {limit}); the weights of such responses are one",
            stacklevel=2,
        )


def model_config(model: DictConfig) -> Any:
    """The model's config as verl's workers load it, with ``trust_remote_code`` and ``override_config`` as set."""
    from transformers import AutoConfig
    from verl.utils.fs import copy_to_local
    from verl.utils.model import update_model_config

    path = copy_to_local(model.get("hf_config_path") or model.path)
    hf_config = AutoConfig.from_pretrained(path, trust_remote_code=model.get("trust_remote_code", False))
    overrides: Any = OmegaConf.to_container(model.override_config, resolve=True)
    update_model_config(hf_config, overrides.get("model_config", overrides))
    return hf_config


def check_rows(config: DictConfig) -> None:
    """Raise where the training rows do not fill one batch: verl leaves out an epoch's last, incomplete batch."""
    rows = sum(len(read_rows(file, ["prompt"])) for file in _train_files(config))
    if rows < config.data.train_batch_size:
        raise ValueError(
            f"{config.data.train_files} has {rows} rows, data.train_batch_size={config.data.train_batch_size}; not one "
            "batch can be filled"
        )


def _train_files(config: DictConfig) -> list[str]:
    """verl takes one file or a list of them."""
    files = config.data.train_files
    return [files] if isinstance(files, str) else list(files)


def check_vocabularies(config: DictConfig, settings: CreditSettings) -> None:
    """Raise where a frozen attributor has another vocabulary than the policy."""
    if settings.attributor_path:
        policy = load_tokenizer(config.actor_rollout_ref.model.path)
        check_vocabulary(policy, load_tokenizer(settings.attributor_path), settings.attributor_path)


# --- the reward ------------------------------------------------------------------------------------------------------


def check_reward(config: DictConfig) -> None:
    """Call the reward with the first row's gold answer in a box, and raise where that fails.

    segrl's reward must call this answer right: after ``</think>`` and, unless thinking is required, without it too.
    """
    reward = config.reward.custom_reward_function
    file, *_ = _train_files(config)
    row = read_rows(file)[0]
    gold = (row.get("reward_model") or {}).get("ground_truth")
    if reward.path != SEGRL_REWARD:
        call_reward(config, row, f"\\boxed{{{gold}}}")
        return
    for key in reward.reward_kwargs:
        if key not in SEGRL_REWARD_KEYS:
            raise ValueError(f"segrl's reward has no reward_kwargs.{key}{near(key, SEGRL_REWARD_KEYS)}")
    if gold is None or not str(gold).strip():
        raise ValueError(
            f"{file}: the first row has no reward_model.ground_truth; give every row its gold answer, or a reward of "
            "your own with reward.custom_reward_function.path"
        )
    for before in (THINK_END,) if reward.reward_kwargs.thinking == "required" else ("", THINK_END):
        response = f"{before}\\boxed{{{gold}}}"
        answer = call_reward(config, row, response)
        if answer["acc"] != 1.0:
            raise ValueError(
                f"{file}: the gold answer {gold!r} of the first row is not right by itself, "
                f"given as {response!r} ({answer['status']}); no rollout could ever score"
            )


def call_reward(config: DictConfig, row: Mapping[str, Any], response: str) -> dict[str, Any]:
    """What the reward returns for ``response``, called as verl calls it for a rollout that was not cut off."""
    reward = config.reward.custom_reward_function
    function, where = _reward_function(reward)
    given = {
        "data_source": row.get("data_source", "unknown"),
        "solution_str": response,
        "ground_truth": (row.get("reward_model") or {}).get("ground_truth"),
        "extra_info": {**(row.get("extra_info") or {}), **_ending(config, row)},
    }
    kwargs = _plain(reward.get("reward_kwargs"))
    try:
        inspect.signature(function).bind(**given, **kwargs)
    except TypeError as error:
        raise ValueError(
            f"the reward {where} cannot be called as verl does, with {', '.join([*given, *kwargs])}: {error}"
        ) from error
    try:
        answer = function(**given, **kwargs)
        answer = asyncio.run(answer) if inspect.iscoroutine(answer) else answer
    except Exception as error:
        raise ValueError(
            f"the reward {where} raised {type(error).__name__}: {error}, for the first row's gold answer in a box"
        ) from error
    answer = answer if isinstance(answer, dict) else {"score": answer}
    if not isinstance(answer.get("score"), (int, float)) or not isfinite(answer["score"]):
        raise ValueError(f"the reward {where} gave {answer!r}; expected a number, or a dict with a number as 'score'")
    return answer


def _ending(config: DictConfig, row: Mapping[str, Any]) -> dict[str, str]:
    """What segrl's reward manager adds to ``extra_info`` for a rollout that was not cut off; {} for other managers."""
    from segrl.verl.reward_manager import EndingRewardManager

    if not issubclass(_reward_manager(config), EndingRewardManager):
        return {}
    tokenizer, prompt = load_tokenizer(config.actor_rollout_ref.model.path), ""
    if tokenizer.chat_template and row.get("prompt"):
        prompt = tokenizer.apply_chat_template(list(row["prompt"]), tokenize=False, add_generation_prompt=True)
    return {PROMPT: prompt, FINISH: "stop"}


def _reward_manager(config: DictConfig) -> type:
    from verl.trainer.ppo.reward import resolve_reward_manager_cls

    manager = config.reward.reward_manager
    try:
        return resolve_reward_manager_cls(config)
    except (AssertionError, OSError, ImportError, AttributeError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"reward.reward_manager.name={manager.name} with source={manager.source} cannot be loaded: {error}; for "
            "one of verl's own set reward.reward_manager.source=register too"
        ) from error


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

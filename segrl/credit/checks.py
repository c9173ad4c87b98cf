"""Checks of the config: what GRPO with segment weights does not support. Each error says what to change.

Nothing here knows of verl, Ray or a model.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch
from omegaconf import DictConfig

from segrl.credit.choosing import WITHIN_GROUPS
from segrl.credit.rollout import evidence_of, make_rollout, weigh_rollout
from segrl.credit.settings import FROM_A_MODEL, OF_THE_ANSWER, OF_THE_RESPONSE, CreditSettings, Side, credit_from
from segrl.importance.lockstep import AFTER_PREFIXES, OF_SEGMENTS
from segrl.types import Stream, TokenisedTrace

# Losses that pick tokens by their advantage: a weight on the advantage changes the picks too.
PICK_BY_ADVANTAGE = ("clip_cov", "kl_cov")
MEAN_ADVANTAGE = ("geo_mean",)
LOG_ODDS = "segrl.output=log_odds"


def check_supported(config: DictConfig) -> CreditSettings:
    """The settings of ``segrl``; raises where this trainer does not support them. Runs under verl's own main too."""
    settings = credit_from(config)
    actor = config.actor_rollout_ref.actor
    reasons = []
    if config.algorithm.adv_estimator == "gae" or config.critic.get("enable"):
        reasons.append(f"algorithm.adv_estimator={config.algorithm.adv_estimator} has a critic; take grpo or rloo")
    if settings.attributes and settings.attributor != "frozen":
        reasons += _reasons_of_engine(config, settings)
    reasons += _reasons_of_source(config, settings)
    reasons += _reasons_of_curriculum(config, settings)
    reasons += _reasons_of_bypass(config, settings)
    if actor.policy_loss.loss_mode in MEAN_ADVANTAGE and settings.rule != "uniform":
        reasons.append(
            f"actor.policy_loss.loss_mode={actor.policy_loss.loss_mode} takes each response's mean advantage, which "
            "weights of mean one leave as it was; take another loss, or method=uniform"
        )
    if reasons:
        raise ValueError(f"segrl grpo cannot run this: {'; '.join(reasons)}")
    if actor.policy_loss.loss_mode in PICK_BY_ADVANTAGE and settings.rule != "uniform":
        warnings.warn(
            f"policy_loss.loss_mode={actor.policy_loss.loss_mode} picks tokens by their advantage, so weights change "
            "which tokens are picked, not only how much they count",
            stacklevel=2,
        )
    warn_of_cut_sampling(config.actor_rollout_ref.rollout)
    check_options(settings)
    return settings


def warn_of_cut_sampling(rollout: DictConfig) -> None:
    """Warn where sampling is cut by ``top_p`` or ``top_k``: the loss takes log-probabilities from the whole
    distribution, at the rollout's temperature."""
    cut = [f"rollout.{name}={rollout[name]}" for name in ("top_p", "top_k") if cuts(name, rollout.get(name))]
    if cut:
        warnings.warn(
            f"{' and '.join(cut)}: rollouts come from a part of the distribution, but the loss is computed on the "
            "whole of it and so trains probabilities that sampling never uses; train with rollout.top_p=1.0 and "
            "rollout.top_k=-1 (val_kwargs may differ)",
            stacklevel=3,
        )


def cuts(name: str, value: float | None) -> bool:
    """Whether such a setting leaves tokens out of sampling."""
    return value is not None and (value < 1 if name == "top_p" else value > 0)


def runs_live(config: DictConfig, settings: CreditSettings) -> bool:
    """Whether attribution can run on verl's actor."""
    return not _reasons_of_engine(config, settings)


def compares_within_groups(config: DictConfig) -> bool:
    """Whether advantages come from the rewards of a group alone; a KL penalty in the reward differs by rollout."""
    return config.algorithm.adv_estimator in WITHIN_GROUPS and not config.algorithm.use_kl_in_reward


def _reasons_of_engine(config: DictConfig, settings: CreditSettings) -> list[str]:
    strategy, model = config.actor_rollout_ref.actor.strategy, config.actor_rollout_ref.model
    reasons = []
    if strategy != "fsdp2":
        reasons.append(f"actor.strategy={strategy}; attribution runs on fsdp2")
    if settings.reads_answers and (model.get("tiled_mlp") or {}).get("enabled"):
        reasons.append(
            "model.tiled_mlp.enabled=true; attribution gives the last layer slices that verl's tiles do not take"
        )
    contrasts = any(side.explains == "contrast" for side in settings.sides)
    reads_logits = [
        *([LOG_ODDS] if settings.output == "log_odds" and settings.follows_a_path else []),
        *(["a contrast"] if contrasts else []),
        *(f"{side.key}={side.measure}" for side in settings.sides if side.need in OF_SEGMENTS),
    ]
    if model.get("use_fused_kernels") and reads_logits:
        reasons.append(
            f"model.use_fused_kernels=true gives log-probabilities and no logits, which {' and '.join(reads_logits)} "
            f"read; set it to false{', or take segrl.output=logp' * (reads_logits == [LOG_ODDS])}"
        )
    frozen = ""
    if any(side.need in (*OF_THE_ANSWER, *OF_THE_RESPONSE) for side in settings.sides):
        frozen = ", and so does a frozen attributor: segrl.attributor=frozen segrl.attributor_path=..."
    return [f"{reason}; plain GRPO works there (method=uniform){frozen}" for reason in reasons]


def _reasons_of_source(config: DictConfig, settings: CreditSettings) -> list[str]:
    reasons = [reason for side in settings.sides for reason in _reasons_of_side(config, settings, side)]
    if settings.attributor == "ref" and not has_reference(config):
        reasons.append("segrl.attributor=ref without a reference: set actor.use_kl_loss=true, or train with LoRA")
    if settings.sign == "signed" and settings.target == "gold":
        reasons.append(
            "segrl.sign=signed looks for the tokens that support a response's own answer, but segrl.target=gold "
            "explains the gold one; take segrl.target=own or contrast with it"
        )
    reasons += _reasons_of_regulation(config, settings)
    if settings.attributor != "live" and not any(side.need in FROM_A_MODEL for side in settings.sides):
        named = " and ".join(f"{side.key}={side.measure}" for side in settings.sides)
        reasons.append(f"{named} attributes nothing; leave segrl.attributor at live")
    return reasons


def _reasons_of_regulation(config: DictConfig, settings: CreditSettings) -> list[str]:
    regulation, reasons = settings.regulation, []
    compared = config.actor_rollout_ref.actor.use_kl_loss or config.algorithm.use_kl_in_reward
    if regulation.reference_weight and not compared:
        reasons.append(
            f"segrl.regulation.reference_weight={regulation.reference_weight} without the reference's "
            "log-probabilities: set actor.use_kl_loss=true, with actor.kl_loss_coef=0 where the loss is to have none"
        )
    if regulation.confidence and any(side.need != AFTER_PREFIXES for side in settings.sides):
        reasons.append("segrl.regulation.confidence reads the answer after the whole thinking; take segrl.measure=pmi")
    if regulation.confidence and any(side.explains == "contrast" for side in settings.sides):
        reasons.append(
            "segrl.regulation.confidence is the probability of one answer, which segrl.target=contrast does not give; "
            "take segrl.target=gold"
        )
    return reasons


def _reasons_of_side(config: DictConfig, settings: CreditSettings, side: Side) -> list[str]:
    reasons = []
    if settings.sign == "signed" and side.need != "ig":
        reasons.append(f"segrl.sign=signed reads the sign of attributions; take {side.key}=contribution with it")
    if side.measure == "ig" and settings.path != "embeddings":
        reasons.append(
            f"{side.key}=ig is the paper's Eq. 3 and 4 on its path over embeddings, not on segrl.path="
            f"{settings.path}; take segrl.path=embeddings segrl.output=logp segrl.quadrature=calibrated with it, or "
            f"{side.key}=strength, which is Eq. 3 on either path"
        )
    if side.compares_responses:
        reasons += _reasons_of_comparison(config, settings, side)
    return reasons


def _reasons_of_curriculum(config: DictConfig, settings: CreditSettings) -> list[str]:
    reasons = []
    if settings.curriculum.order and (config.algorithm.get("filter_groups") or {}).get("enable"):
        reasons.append(
            f"segrl.curriculum.order={settings.curriculum.order} reads how often a problem is solved, but "
            "algorithm.filter_groups.enable=true removes the groups that are always or never right first; leave one "
            "of them out"
        )
    return reasons


def _reasons_of_bypass(config: DictConfig, settings: CreditSettings) -> list[str]:
    """Settings that need verl's forward for the old log-probs, where verl runs none."""
    if not bypasses(config):
        return []
    measured = [side for side in settings.sides if side.need == "entropy_T" or side.compares_responses]
    readers = [f"{side.key}={side.measure}" for side in measured]
    if settings.cuts_by:
        readers.append(f"segrl.segmenter={settings.segmenter}")
    if settings.regulation.regulates:
        readers.append("segrl.regulation")
    if settings.curriculum.convergence_entropy is not None:
        readers.append(f"segrl.curriculum.convergence_entropy={settings.curriculum.convergence_entropy}")
    return [
        f"{reader} reads what verl computes with the old log-probs, which algorithm.rollout_correction.bypass_mode "
        "leaves out; leave one of them out"
        for reader in readers
    ]


def _reasons_of_comparison(config: DictConfig, settings: CreditSettings, side: Side) -> list[str]:
    """Why a measure that compares responses cannot run here."""
    reasons, named = [], f"{side.key}={side.measure}"
    if settings.sign not in ("both", "inverted") or len(settings.sides) > 1:
        other = f"segrl.negative_measure={settings.negative_measure}" if settings.negative_measure else "one side alone"
        reasons.append(
            f"{named} tells responses of positive from those of negative advantage, but with segrl.sign="
            f"{settings.sign} and {other} it does not read both; take segrl.sign=both and no segrl.negative_measure"
        )
    if settings.attributor != "live":
        reasons.append(
            f"{named} reads the actor's own last layer beside its log-probs, not segrl.attributor="
            f"{settings.attributor}; take segrl.attributor=live"
        )
    if updates_between(config):
        reasons.append(
            f"{named} reads the actor's last layer beside its log-probs, which are those of the last synchronisation; "
            "take trainer.v1.separate_async.parameter_sync_step=1"
        )
    return reasons


def bypasses(config: DictConfig) -> bool:
    """Whether verl takes the rollout servers' log-probs for the old ones, and runs no forward for them."""
    return bool((config.algorithm.get("rollout_correction") or {}).get("bypass_mode", False))


def logps_serve(config: DictConfig, settings: CreditSettings) -> bool:
    """Whether verl's log-probs of a response are what the attributor would read: the live actor's, at temperature 1."""
    by_actor = settings.attributor == "live" and not bypasses(config) and not updates_between(config)
    return by_actor and config.actor_rollout_ref.rollout.temperature == 1


def updates_between(config: DictConfig) -> bool:
    """Whether verl's log-probs may be of weights that were updated since: those of the last synchronisation."""
    v1 = config.trainer.v1
    return v1.trainer_mode.endswith("separate_async") and v1.separate_async.parameter_sync_step > 1


def times_attributed(config: DictConfig, settings: CreditSettings) -> int:
    """On how many ranks a rollout is attributed: each rank of a Ulysses group attributes the group's rollouts."""
    return 1 if settings.attributor == "frozen" else config.actor_rollout_ref.actor.ulysses_sequence_parallel_size


def has_reference(config: DictConfig) -> bool:
    """Whether the actor's workers hold a reference; a LoRA actor with its adapter off is one."""
    model = config.actor_rollout_ref.model
    lora = (model.get("lora") or {}).get("rank", 0) or model.get("lora_rank", 0) or model.get("lora_adapter_path")
    hybrid = config.actor_rollout_ref.get("hybrid_engine", True)  # else the reference has workers of its own
    return bool(lora) or bool(
        hybrid and (config.actor_rollout_ref.actor.use_kl_loss or config.algorithm.use_kl_in_reward)
    )


def check_options(settings: CreditSettings) -> None:
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
    for advantage in (0.5, -0.5):
        advantages_T, cutting_T = torch.full((len(text),), advantage), torch.linspace(-1, 0, len(text))
        rollout = make_rollout("0_0_0", trace, advantages_T, settings, cutting_T=cutting_T)
        of_segments = settings.side(advantage).need in OF_SEGMENTS
        stream = Stream(torch.linspace(-1, 1, len(rollout.segments.boundaries) if of_segments else len(text)))
        weigh_rollout(rollout, evidence_of(rollout, stream, settings), settings, step=1)


def check_reads_text(model_config, settings: CreditSettings) -> None:
    """Raise where the model reads images: attribution is not given them, so its scores would be of another prompt."""
    if settings.attributes and getattr(model_config, "vision_config", None) is not None:
        raise ValueError(
            f"the model is a {type(model_config).__name__} with a vision_config, but attribution feeds token ids "
            "alone, without images; take method=uniform, or a segrl.measure that runs no model, like entropy or length"
        )


def check_vocabulary(policy, attributor, path: str) -> None:
    """Raise where the two vocabularies differ: rollout ids are not tokenised again, so both models read the same."""
    policy_ids: Mapping[str, int] = policy.get_vocab()
    attributor_ids: Mapping[str, int] = attributor.get_vocab()
    if policy_ids == attributor_ids:
        return
    differing = [token for token in policy_ids if attributor_ids.get(token) != policy_ids[token]]
    differing += [token for token in attributor_ids if token not in policy_ids]
    raise ValueError(
        f"the attributor {path} has another vocabulary than the policy: {len(differing)} of {len(policy_ids)} tokens "
        f"differ, like {differing[0]!r}; a frozen attributor must read the same ids"
    )

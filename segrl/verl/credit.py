"""How a response's advantage is spread over its tokens: the ``segrl`` section of verl's config, and what it does to one
rollout. Nothing here knows of verl, Ray or a model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from statistics import fmean, median
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from segrl.grading.answer import extract
from segrl.importance import segment_scores
from segrl.resolving import near, resolve
from segrl.segmentation import segment
from segrl.selection import select
from segrl.types import Segments, SegmentScores, Selection, Trace
from segrl.weighting import SIGNS, WEIGHTINGS, weigh

TARGETS = ("own", "gold")


@dataclass
class Credit:
    """The ``segrl`` section. ``configs/grpo.yaml`` says what each key does."""

    rule: str = "rank"
    sign: str = "positive"
    warmup_steps: int = 0
    segmenter: str = "keywords"
    tau: float = 0.7
    beta: float = 1.0
    target: str = "own"
    nodes: int = 1
    quadrature: str = "midpoint"
    interpolate: str = "response"
    rows_per_forward: int = 8
    poll_seconds: float = 2.0
    dump_dir: str | None = None

    def __post_init__(self) -> None:
        resolve(self.rule, WEIGHTINGS, "weighting rule")
        for name, value, known in (("sign", self.sign, SIGNS), ("target", self.target, TARGETS)):
            if value not in known:
                raise ValueError(f"segrl.{name}={value!r}{near(value, known)}")
        for name in ("nodes", "rows_per_forward"):
            if getattr(self, name) < 1:
                raise ValueError(f"segrl.{name}={getattr(self, name)}, expected 1 or more")


def credit_from(config: DictConfig) -> Credit:
    """The settings in verl's config; what is not given keeps its default."""
    given = config.get("segrl") or {}
    known = [field.name for field in fields(Credit)]
    for key in given:
        if key not in known:
            raise ValueError(f"segrl.{key} is not a setting{near(str(key), known)}")
    return cast(Credit, OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Credit), given)))


@dataclass(frozen=True, eq=False)
class Rollout:
    """One row of verl's batch: its key in the TransferQueue, what was sampled, and the advantages verl gave it."""

    key: str
    trace: Trace
    segments: Segments
    advantages_T: Tensor

    @property
    def advantage(self) -> float:
        """The mean over the tokens that are trained; GRPO gives them all the same."""
        trained = self.trace.trainable_T
        return float(self.advantages_T[trained].mean()) if bool(trained.any()) else 0.0


@dataclass(frozen=True, eq=False)
class Weighed:
    """A rollout with what was read of it and what follows from that."""

    rollout: Rollout
    scores: SegmentScores
    selection: Selection
    weights_T: Tensor
    gap: float
    copy_share: float

    @property
    def advantages_T(self) -> Tensor:
        return self.rollout.advantages_T * self.weights_T

    @property
    def weighted_T(self) -> Tensor:
        """The tokens whose weights have mean one: trained, and part of the thinking."""
        segments = self.rollout.segments
        return self.rollout.trace.trainable_T & segments.thought_S[segments.index_T]


def rollout_trace(key: str, prompt_ids: Tensor, response_ids: Tensor, trainable_T: Tensor, tokenizer) -> Trace:
    """The trace of a rollout, with the answer it gives itself; None where it gives none."""
    trace = Trace.from_ids(
        id=key,
        problem="",
        prompt_ids=prompt_ids,
        response_ids=response_ids,
        tokenizer=tokenizer,
        trainable_T=trainable_T.bool(),
    )
    tail = tokenizer.decode(prompt_ids[-16:].tolist())  # says whether the prompt has opened the thought
    return replace(trace, answer=extract(trace.response, prompt=tail))


def make_rollout(key: str, trace: Trace, advantages_T: Tensor, credit: Credit) -> Rollout:
    return Rollout(key, trace, segment(trace, credit.segmenter), advantages_T)


def worth_attributing(rollout: Rollout, credit: Credit) -> bool:
    """Whether attribution can change anything: an advantage of the right sign, an answer, and two thoughts or more."""
    wanted = {"positive": rollout.advantage > 0, "negative": rollout.advantage < 0, "both": rollout.advantage != 0}
    return wanted[credit.sign] and rollout.trace.answer is not None and int(rollout.segments.thought_S.sum()) > 1


def weigh_rollout(
    rollout: Rollout, scores_T: Tensor, gap: float, copy_share: float, credit: Credit, step: int
) -> Weighed:
    scores = segment_scores(scores_T, rollout.segments)
    selection = select(scores, credit.tau, credit.beta)
    weights_T = weigh(
        scores,
        rollout.segments,
        selection,
        credit.rule,
        rollout.advantage,
        step,
        weighted_T=rollout.trace.trainable_T,
        sign=credit.sign,
        warmup_steps=credit.warmup_steps,
    )
    return Weighed(rollout, scores, selection, weights_T, gap, copy_share)


def credit_metrics(rollouts: Sequence[Rollout], weighed: Sequence[Weighed]) -> dict[str, float]:
    """What verl logs of a step; docs/metrics.md explains each."""
    segments = [int(one.segments.thought_S.sum()) for one in rollouts]
    metrics = {
        "segrl/attributed_share": len(weighed) / max(len(rollouts), 1),
        "segrl/segments_per_response": sum(segments) / max(len(segments), 1),
    }
    if weighed:
        metrics |= {
            "segrl/weight_ess": fmean(effective_share(one.weights_T[one.weighted_T]) for one in weighed),
            "segrl/selected_ratio": fmean(selected_ratio(one) for one in weighed),
            "segrl/gap": median(one.gap for one in weighed),
            "segrl/copy_share": fmean(one.copy_share for one in weighed),
        }
    return metrics


def effective_share(weights_T: Tensor) -> float:
    """Effective sample size of the weights over their number: one where all are equal."""
    squares = float(weights_T.square().sum()) * len(weights_T)
    return float(weights_T.sum()) ** 2 / squares if squares else 1.0


def selected_ratio(one: Weighed) -> float:
    """The share of thinking tokens that Eq. 7 keeps."""
    segments = one.rollout.segments
    kept_T = one.selection.keep_S[segments.index_T] & one.weighted_T
    return float(kept_T.sum()) / max(int(one.weighted_T.sum()), 1)


def record(one: Weighed, advantages_T: Tensor) -> Mapping[str, Any]:
    """One line of the rollout dump. ``advantages_T`` is what the TransferQueue holds after the weights were applied."""
    segments = one.rollout.segments
    return {
        "key": one.rollout.key,
        "response": one.rollout.trace.response,
        "answer": one.rollout.trace.answer,
        "boundaries": list(segments.boundaries),
        "kinds": list(segments.kinds_S),
        "strength": one.scores.strength_S.tolist(),
        "share": one.scores.share_S.tolist(),
        "consistency": one.scores.consistency_S.tolist(),
        "keep": one.selection.keep_S.tolist(),
        "reason": list(one.selection.reason_S),
        "gap": one.gap,
        "copy_share": one.copy_share,
        "advantage": one.rollout.advantage,
        "trainable": one.rollout.trace.trainable_T.tolist(),
        "weights": one.weights_T.tolist(),
        "advantages": advantages_T.tolist(),
    }

"""The metrics that segrl adds to a step; docs/metrics.md explains each. Nothing here knows of verl, Ray or a model.

verl averages a metric over several updates, unless its name holds "min", "max", "sum" or "total".
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from math import isfinite
from statistics import fmean, median

from torch import Tensor

from segrl.credit.choosing import REASONS
from segrl.credit.rollout import Rollout, Weighed, scores_of
from segrl.credit.settings import CreditSettings
from segrl.importance.ranking import spearman
from segrl.segmentation import KEYWORDS
from segrl.types import Evidence

FEW_SEGMENTS = 3
LOSSES = ("actor/loss", "actor/pg_loss", "actor/kl_loss", "actor/entropy")
_KEYWORD = re.compile("|".join(rf"\b{re.escape(word)}\b" for word in sorted(KEYWORDS, key=len, reverse=True)))


def credit_metrics(
    rollouts: Sequence[Rollout], why: Mapping[str, str | None], weighed: Sequence[Weighed]
) -> dict[str, float]:
    """The metrics of a step. ``why`` holds by key the reason why a rollout was not attributed, or None."""
    counts = Counter(why.values()) + Counter(no_scores=sum(response.uniform for response in weighed))
    tokens = sum(rollout.trace.tokens for rollout in rollouts)
    thoughts = sum(rollout.thoughts for rollout in rollouts)
    thinking = sum(int(rollout.segments.tokens_S[rollout.segments.thought_S].sum()) for rollout in rollouts)
    metrics = {
        "segrl/attributed_share": len(weighed) / max(len(rollouts), 1),
        "segrl/attributed_token_share": sum(response.rollout.trace.tokens for response in weighed) / max(tokens, 1),
        "segrl/segments_per_response": thoughts / max(len(rollouts), 1),
        "segrl/segment_length": thinking / max(thoughts, 1),
        "segrl/keywords_per_1000": 1000
        * sum(keywords(rollout.trace.response) for rollout in rollouts)
        / max(tokens, 1),
        **{f"segrl/uniform/{reason}": float(counts[reason]) for reason in REASONS},
    }
    if weighed:
        weights = [response.weights_T[response.rollout.weighted_T] for response in weighed]
        metrics["segrl/weight_ess"] = fmean(effective_share(weights_T) for weights_T in weights)
        metrics["segrl/selected_ratio"] = fmean(selected_ratio(response) for response in weighed)
    streams = [response.stream for response in weighed if response.stream]
    gaps, copied = _known(stream.gap for stream in streams), _known(stream.copy_share for stream in streams)
    metrics |= {"segrl/gap": median(gaps)} if gaps else {}
    return metrics | ({"segrl/copy_share": fmean(copied)} if copied else {})


def agreement(weighed: Sequence[Weighed], others: Sequence[Evidence | None], settings: CreditSettings) -> float | None:
    """Spearman's correlation of the thoughts' strengths with those by other evidence, as a mean over rollouts."""
    correlations = []
    for response, evidence in zip(weighed, others, strict=True):
        if evidence is not None:
            other = scores_of(response.rollout, evidence, settings)
            thought_S = other.thought_S
            correlations.append(spearman(response.scores.strength_S[thought_S], other.strength_S[thought_S]))
    known = [value for value in correlations if value is not None]
    return fmean(known) if known else None


def time_metrics(timing: Mapping[str, float]) -> dict[str, float]:
    """Attribution's seconds, their share of the step, and their ratio to the seconds of ``update_actor``."""
    seconds = timing.get("attribution", 0.0)
    metrics = {"segrl/seconds": seconds}
    if timing.get("step"):
        metrics["segrl/time_share"] = seconds / timing["step"]
    if timing.get("update_actor"):
        metrics["segrl/cost"] = seconds / timing["update_actor"]
    return metrics


def check_finite(metrics: Mapping[str, float], step: int) -> None:
    """Raise where a loss is not finite: verl would skip the update and go on, but the run would not recover."""
    for name in LOSSES:
        if not isfinite(metrics.get(name, 0.0)):
            raise FloatingPointError(
                f"step {step}: {name} is {metrics[name]}; take the last checkpoint and a smaller learning rate, or "
                "look for rewards and log-probabilities that are not finite"
            )


def keywords(text: str) -> int:
    """How many transition keywords the text has, at any place: a policy can learn to say "Wait"."""
    return sum(1 for _ in _KEYWORD.finditer(text))


def too_short(rollouts: Sequence[Rollout]) -> str | None:
    """A warning where most responses have too few segments for their weights to say much."""
    few = sum(rollout.thoughts < FEW_SEGMENTS for rollout in rollouts)
    if 2 * few <= len(rollouts):
        return None
    return (
        f"{few} of the first {len(rollouts)} responses have fewer than {FEW_SEGMENTS} segments, too few to weigh: a "
        "single one is not weighed, and of two one gets the lowest weight. Cut finer (segrl.segmenter=paragraphs, or "
        "fixed), take a model that thinks longer, or method=uniform"
    )


def effective_share(weights_T: Tensor) -> float:
    """Effective sample size of the weights over their number: one where all are equal."""
    squares = float(weights_T.square().sum()) * len(weights_T)
    return float(weights_T.sum()) ** 2 / squares if squares else 1.0


def selected_ratio(weighed: Weighed) -> float:
    """The share of thinking tokens that Eq. 6 and 7 keep."""
    weighted_T = weighed.rollout.weighted_T
    keep_S = weighed.selection.keep_S
    keep_T = keep_S if weighed.scores.segment_T is not None else keep_S[weighed.rollout.segments.index_T]
    return float((keep_T & weighted_T).sum()) / max(int(weighted_T.sum()), 1)


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None and value == value]

"""Selection and scores -> token weights, mean one over the tokens they weigh.

A rule is a pure function ``(scores, selection, thought_S, **options) -> weights_S``; tokens get their segment's weight.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from segrl.resolving import resolve
from segrl.types import Segments, SegmentScores, Selection

SIGNS = ("positive", "both", "negative")


def weigh(
    scores: SegmentScores,
    segments: Segments,
    selection: Selection | None = None,
    rule: str | Callable = "rank",
    advantage: float | None = None,
    step: int | None = None,
    *,
    weighted_T: Tensor | None = None,
    sign: str = "positive",
    warmup_steps: int = 0,
    **options,
) -> Tensor:
    """A weight for each token: non-negative, mean one over ``weighted_T`` (default: the thinking), one elsewhere.

    Where there is nothing to tell tokens apart (no token to weigh, all weights zero, scores that are not finite) every
    weight is one. With ``sign="positive"`` a response of negative advantage is weighed uniformly. Over the first
    ``warmup_steps`` steps weights grow from one to what the rule says.
    """
    if sign not in SIGNS:
        raise ValueError(f"sign={sign!r}, expected one of {SIGNS}")
    ones_T = torch.ones(segments.tokens)
    thought_T = segments.thought_S[segments.index_T]
    weighted_T = thought_T if weighted_T is None else weighted_T & thought_T
    if not _weighs(sign, advantage) or not bool(weighted_T.any()):
        return ones_T
    weights_S = resolve(rule, WEIGHTINGS, "weighting rule")(scores, selection, segments.thought_S, **options)
    weights_T = torch.where(weighted_T, weights_S.double()[segments.index_T], 0.0)
    mean = weights_T.sum() / weighted_T.sum()
    if not bool(torch.isfinite(weights_T).all()) or float(mean) <= 0:
        return ones_T
    ramp = 1.0 if not warmup_steps or step is None else min(1.0, step / warmup_steps)
    return torch.where(weighted_T, 1 + ramp * (weights_T / mean - 1), 1.0).float()


def _weighs(sign: str, advantage: float | None) -> bool:
    if advantage is None or sign == "both":
        return True
    return advantage > 0 if sign == "positive" else advantage < 0


# --- the rules -------------------------------------------------------------------------------------------------------


def uniform(scores: SegmentScores, selection: Selection | None, thought_S: Tensor) -> Tensor:
    return torch.ones(len(scores))


def hard(scores: SegmentScores, selection: Selection | None, thought_S: Tensor) -> Tensor:
    """Eq. 7's mask: kept segments count, the others do not."""
    if selection is None:
        raise ValueError("the rule 'hard' needs a selection; pass selection=segrl.select(scores, ...)")
    return selection.keep_S.double()


def rank(
    scores: SegmentScores, selection: Selection | None, thought_S: Tensor, low: float = 0.8, high: float = 1.2
) -> Tensor:
    """Evenly from ``low`` for the weakest thought to ``high`` for the strongest; equals share their average rank."""
    strength_S = scores.strength_S[thought_S]
    if len(strength_S) < 2:
        return torch.ones(len(scores))
    below = (strength_S[:, None] > strength_S[None, :]).sum(1)
    equal = (strength_S[:, None] == strength_S[None, :]).sum(1) - 1
    weights_S = torch.ones(len(scores), dtype=torch.float64)
    weights_S[thought_S] = low + (high - low) * (below + equal / 2).double() / (len(strength_S) - 1)
    return weights_S


WEIGHTINGS: dict[str, Callable[..., Tensor]] = {"uniform": uniform, "hard": hard, "rank": rank}

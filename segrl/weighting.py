"""Selection and scores -> token weights, with mean 1 over the tokens that are weighed.

A rule is a pure function ``(scores, selection, thought_S, **options) -> weights_S`` of the segments of one response, or
of a pool of responses. A token gets the weight of its segment; with the scores of a token measure, each token has a
weight of its own. The controls (random, permuted, length, position, oracle, inverted oracle) are measures, which any
rule turns into weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from segrl.resolving import check_options, near, resolve
from segrl.types import Segments, SegmentScores, Selection, given

SIGNS = ("positive", "both", "negative", "inverted", "signed")


@dataclass(frozen=True, eq=False)
class Weighable:
    """A response to weigh: its scores and segments, and the tokens that are trained.

    The ``sign`` of the weighing reads ``advantage`` and ``signed_T``, the IG of the answer that the response gives.
    """

    scores: SegmentScores
    segments: Segments
    selection: Selection | None = None
    advantage: float | None = None
    trained_T: Tensor | None = None
    signed_T: Tensor | None = None

    @property
    def weighted_T(self) -> Tensor:
        """The tokens that are weighed: of the thinking, and trained."""
        thought_T = self.segments.thought_T
        return thought_T if self.trained_T is None else self.trained_T & thought_T


def weigh(
    scores: SegmentScores,
    segments: Segments,
    selection: Selection | None = None,
    rule: str | Callable = "rank",
    advantage: float | None = None,
    step: int | None = None,
    *,
    weighted_T: Tensor | None = None,
    signed_T: Tensor | None = None,
    **options,
) -> Tensor:
    """A weight for each token of one response: :func:`weigh_together` with nothing else in the pool."""
    response = Weighable(scores, segments, selection, advantage, weighted_T, signed_T)
    return weigh_together([response], rule, step, **options)[0]


def weigh_together(
    pool: Sequence[Weighable],
    rule: str | Callable = "rank",
    step: int | None = None,
    *,
    sign: str = "positive",
    warmup_steps: int = 0,
    mean_one: bool = True,
    **options,
) -> list[Tensor]:
    """Weights for the tokens of each response, from one rule over the segments of all: non-negative, with mean 1 over
    the weighted tokens of the pool, and 1 elsewhere. ``mean_one=False`` leaves them as the rule says.

    Every weight is 1 where nothing tells the tokens apart: no token to weigh, all weights zero, or scores that are not
    finite. Over the first ``warmup_steps`` steps weights go from 1 to what the rule says.

    ``sign`` says which responses are weighed: those of ``positive`` advantage, of ``negative`` advantage, or ``both``.
    ``inverted`` weighs both, and reverses the order of the weights where the advantage is negative. ``signed`` weighs
    both, and where the advantage is negative only tokens count whose ``signed_T`` is above zero: those that support the
    wrong answer.
    """
    if sign not in SIGNS:
        raise ValueError(f"sign={sign!r}{near(sign, SIGNS)}")
    weights = [torch.ones(response.segments.tokens) for response in pool]
    weighs = [_weighs(sign, response.advantage) and bool(response.weighted_T.any()) for response in pool]
    chosen = [i for i, is_weighed in enumerate(weighs) if is_weighed]
    if not chosen:
        return weights
    inside = [pool[i].weighted_T for i in chosen]
    ruled = _ruled([pool[i] for i in chosen], rule, sign, options)
    all_T = torch.cat([weights_T[weighted_T] for weights_T, weighted_T in zip(ruled, inside, strict=True)])
    mean = float(all_T.mean()) if mean_one else 1.0
    if not bool(torch.isfinite(all_T).all()) or mean <= 0:
        return weights
    ramp = 1.0 if not warmup_steps or step is None else min(1.0, step / warmup_steps)
    for i, weights_T, weighted_T in zip(chosen, ruled, inside, strict=True):
        weights[i] = torch.where(weighted_T, 1 + ramp * (weights_T / mean - 1), 1.0).float()
    return weights


def _weighs(sign: str, advantage: float | None) -> bool:
    """Whether a response of this advantage is weighed."""
    if advantage is None or sign not in ("positive", "negative"):
        return True
    return advantage > 0 if sign == "positive" else advantage < 0


def _ruled(pool: Sequence[Weighable], rule: str | Callable, sign: str, options: dict) -> list[Tensor]:
    """The rule's weight of each token of each response, before normalisation."""
    scores, selection = _pooled(pool)
    function, arguments = resolve(rule, WEIGHTINGS, "weighting rule"), [scores, selection, scores.thought_S]
    check_options(f"the weighting rule {rule!r}", function, arguments, options)
    weights_S = function(*arguments, **options).double()
    if float(weights_S.min()) < 0:
        raise ValueError(f"the weighting rule {rule!r} gave {float(weights_S.min()):g}; weights must be zero or more")
    ruled = []
    for response, response_S in zip(pool, weights_S.split([len(response.scores) for response in pool]), strict=True):
        weights_T = response_S if response.scores.segment_T is not None else response_S[response.segments.index_T]
        if response.advantage is not None and response.advantage < 0:
            weights_T = _for_negative(weights_T, response.weighted_T, sign, response.signed_T)
        ruled.append(weights_T)
    return ruled


def _pooled(pool: Sequence[Weighable]) -> tuple[SegmentScores, Selection | None]:
    """The scores and selections of all responses, as if they were those of one."""
    if len(pool) == 1:
        return pool[0].scores, pool[0].selection
    names = ("strength_S", "consistency_S", "tokens_S", "thought_S", "excess_S")
    joined: dict[str, Any] = {name: torch.cat([getattr(response.scores, name) for response in pool]) for name in names}
    positive_S = joined["strength_S"].clamp_min(0)
    scores = SegmentScores(share_S=positive_S / positive_S.sum().clamp_min(1e-300), **joined)
    if any(response.selection is None for response in pool):
        return scores, None
    selections = [given(response.selection) for response in pool]
    reasons = tuple(reason for selection in selections for reason in selection.reason_S)
    return scores, Selection(torch.cat([selection.keep_S for selection in selections]), reasons)


def _for_negative(weights_T: Tensor, weighted_T: Tensor, sign: str, signed_T: Tensor | None) -> Tensor:
    """The weights of a response with a negative advantage."""
    if sign == "inverted":
        inside = weights_T[weighted_T]
        return (inside.max() + inside.min() - weights_T).clamp_min(0)
    if sign == "signed":
        if signed_T is None:
            raise ValueError("sign='signed' reads the sign of each token's attribution; pass signed_T=ig.scores_T")
        return torch.where(signed_T > 0, weights_T, 0.0)
    return weights_T


def standardised(values: Tensor) -> Tensor:
    """The z-scores of the values; zeros where they do not differ by more than rounding."""
    if not len(values):
        return values
    centred, spread = values - values.mean(), float(values.std(unbiased=False))
    return centred / spread if spread > 1e-12 * (1 + float(values.abs().max())) else torch.zeros_like(values)


# --- the rules -------------------------------------------------------------------------------------------------------


def uniform(scores: SegmentScores, selection: Selection | None, thought_S: Tensor) -> Tensor:
    return torch.ones(len(scores))


def hard(scores: SegmentScores, selection: Selection | None, thought_S: Tensor) -> Tensor:
    """The mask of Eq. 7: 1 for kept segments, 0 for the others."""
    return bilevel(scores, selection, thought_S, inside=1.0, outside=0.0)


def bilevel(
    scores: SegmentScores,
    selection: Selection | None,
    thought_S: Tensor,
    inside: float = 1.0,
    outside: float = 0.5,
) -> Tensor:
    """One weight for kept segments, another for the others."""
    if selection is None:
        raise ValueError("the weighting rule needs a selection; pass selection=segrl.select(scores, ...)")
    return torch.where(selection.keep_S, inside, outside).double()


def linear(scores: SegmentScores, selection: Selection | None, thought_S: Tensor) -> Tensor:
    """The share of Eq. 4, which is 0 for a negative strength."""
    return scores.share_S


def rank(
    scores: SegmentScores, selection: Selection | None, thought_S: Tensor, low: float = 0.8, high: float = 1.2
) -> Tensor:
    """Evenly spaced from ``low`` for the weakest thought to ``high`` for the strongest; ties get their average rank."""
    strength_S = scores.strength_S[thought_S]
    weights_S = torch.ones(len(scores), dtype=torch.float64)
    if len(strength_S) < 2:
        return weights_S
    ordered = strength_S.sort().values
    below, upto = (torch.searchsorted(ordered, strength_S, right=right) for right in (False, True))
    average_rank = (below + upto - 1).double() / 2  # from 0 to S - 1
    weights_S[thought_S] = low + (high - low) * average_rank / (len(strength_S) - 1)
    return weights_S


def softmax(
    scores: SegmentScores,
    selection: Selection | None,
    thought_S: Tensor,
    temperature: float = 1.0,
    floor: float = 0.0,
) -> Tensor:
    """The softmax of strength over ``temperature``, which is in standard deviations of the thoughts' strengths; a share
    ``floor`` of it is spread evenly over the thoughts."""
    if temperature <= 0:
        raise ValueError(f"the weighting rule softmax with temperature={temperature}, expected a number above 0")
    if not 0 <= floor <= 1:
        raise ValueError(f"the weighting rule softmax with floor={floor}, expected a share from 0 to 1")
    thoughts = int(thought_S.sum())
    weights_S = torch.ones(len(scores), dtype=torch.float64)
    soft_S = (standardised(scores.strength_S[thought_S]) / temperature).softmax(0)
    weights_S[thought_S] = floor + (1 - floor) * thoughts * soft_S
    return weights_S


def zscore(
    scores: SegmentScores,
    selection: Selection | None,
    thought_S: Tensor,
    gain: float = 0.5,
    low: float = 0.5,
    high: float = 5.0,
    logs: bool | None = None,
) -> Tensor:
    """GRAIL's rule: 1 plus ``gain`` times the z-score of log strength over the thoughts, between ``low`` and ``high``.

    A strength that has no logarithm weighs ``low``. ``logs=False`` standardises the strengths as they are. ``None``
    takes logarithms unless a strength is negative: then all are differences of logarithms already (pmi, z-scores).
    """
    strength_S = scores.strength_S
    if logs is None:
        logs = not bool((strength_S[thought_S] < 0).any())
    scored_S = thought_S & (strength_S > 0) if logs else thought_S
    weights_S = torch.full((len(scores),), low, dtype=torch.float64)
    if not bool(scored_S.any()):
        return torch.ones(len(scores))
    z = standardised(strength_S[scored_S].log() if logs else strength_S[scored_S])
    weights_S[scored_S] = (1 + gain * z).clamp(low, high)
    return weights_S


def quantile(
    scores: SegmentScores,
    selection: Selection | None,
    thought_S: Tensor,
    q: float = 0.8,
    inside: float = 1.2,
    outside: float = 0.8,
) -> Tensor:
    """``inside`` for thoughts whose strength reaches the ``q`` quantile, ``outside`` for the others."""
    if not 0 <= q <= 1:
        raise ValueError(f"rule 'quantile': q={q}, expected a number from 0 to 1")
    if not bool(thought_S.any()):
        return torch.ones(len(scores))
    ordered = scores.strength_S[thought_S].sort().values
    least = ordered[min(int(q * len(ordered)), len(ordered) - 1)]
    return torch.where(scores.strength_S >= least, inside, outside).double()


def bent(
    scores: SegmentScores,
    selection: Selection | None,
    thought_S: Tensor,
    q: float = 0.4,
    beta: float = 2.0,
    least: float = 0.1,
) -> Tensor:
    """OAR's rule, for strengths x scaled to 0 to 1 and their ``q`` quantile t: below t, x / t, but at least ``least``;
    from t on, 1 + ``beta`` (x - t) / (1 - t)."""
    if not 0 <= q <= 1:
        raise ValueError(f"rule 'bent': q={q}, expected a number from 0 to 1")
    weights_S = torch.ones(len(scores), dtype=torch.float64)
    strength_S = scores.strength_S[thought_S]
    if not len(strength_S) or float(strength_S.max()) == float(strength_S.min()):
        return weights_S
    x_S = (strength_S - strength_S.min()) / (strength_S.max() - strength_S.min())
    bend = float(torch.quantile(x_S, q))
    below_S = (x_S / bend).clamp_min(least) if bend > 0 else torch.ones_like(x_S)
    above_S = 1 + beta * (x_S - bend) / (1 - bend) if bend < 1 else torch.ones_like(x_S)
    weights_S[thought_S] = torch.where(x_S < bend, below_S, above_S)
    return weights_S


def onward(scores: SegmentScores, selection: Selection | None, thought_S: Tensor, raised: bool = False) -> Tensor:
    """Cliff's rule: 0 before the strongest thought, and 1 from it on. ``raised`` adds to both the share of the thinking
    that lies before it: their mean is then one, and they still differ by one."""
    strongest = torch.where(thought_S, scores.strength_S, float("-inf")).argmax() if bool(thought_S.any()) else 0
    weights_S = (torch.arange(len(scores)) >= strongest).double()
    tokens_S = scores.tokens_S * thought_S
    return weights_S + ((1 - weights_S) * tokens_S).sum() / tokens_S.sum().clamp_min(1) if raised else weights_S


def top(scores: SegmentScores, selection: Selection | None, thought_S: Tensor, share: float = 0.2) -> Tensor:
    """1 for the strongest thoughts that hold ``share`` of the tokens and for ties with the weakest of them, else 0.

    With the measure ``entropy`` by token (``aggregate=token``): the rule of the 20% most uncertain tokens.
    """
    if not 0 < share <= 1:
        raise ValueError(f"rule 'top': share={share}, expected a part of one, like 0.2")
    if not bool(thought_S.any()):
        return torch.ones(len(scores))
    strength_S, tokens_S = scores.strength_S[thought_S], scores.tokens_S[thought_S]
    order = strength_S.argsort(descending=True)
    reached = tokens_S[order].cumsum(0)
    last = int((reached < share * tokens_S.sum()).sum())
    return (scores.strength_S >= strength_S[order[min(last, len(order) - 1)]]).double()


WEIGHTINGS: dict[str, Callable[..., Tensor]] = {
    "uniform": uniform,
    "hard": hard,
    "bilevel": bilevel,
    "linear": linear,
    "rank": rank,
    "softmax": softmax,
    "zscore": zscore,
    "quantile": quantile,
    "bent": bent,
    "onward": onward,
    "top": top,
}

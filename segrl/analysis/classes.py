"""Important against unimportant thoughts ([IG] section 3.1, appendix A): what a selection makes of each, compared.

A found trace is a dict of lists with one value a thought (:mod:`segrl.analysis.gathering` says which). Means are over
all thoughts of a class, their intervals over problems.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from segrl.evaluation.statistics import Estimate
from segrl.selection import select
from segrl.types import SegmentScores

Found = Mapping[str, Any]
Values = Sequence[float | None]

# What is called so -> the reasons that a selection gives for it.
CLASSES = {
    "important": ("strength",),
    "unimportant": ("dropped", "consistency"),
    "low strength": ("dropped",),
    "high consistency": ("consistency",),
}


def reasons(found: Found, tau: float, beta: float) -> tuple[str, ...]:
    """Eq. 5-7 on the thoughts of a trace, nothing forced."""
    columns = {f"{name}_S": torch.tensor(found[name]) for name in ("strength", "share", "consistency", "tokens")}
    return select(SegmentScores(**columns), tau=tau, beta=beta, force=()).reason_S


def by_class(traces: Sequence[Found], values: Sequence[Values], tau: float, beta: float) -> dict[str, Estimate | None]:
    """The mean of a class's values, for each class; None where no thought of it has a value."""
    problems = [found["problem_id"] for found in traces]
    judged = [reasons(found, tau, beta) for found in traces]
    return {
        name: pooled(problems, [_of(each, own, wanted) for each, own in zip(values, judged, strict=True)])
        for name, wanted in CLASSES.items()
    }


def difference(traces: Sequence[Found], values: Sequence[Values], tau: float, beta: float) -> Estimate | None:
    """Important minus unimportant, both drawn again together."""
    problems = [found["problem_id"] for found in traces]
    judged = [reasons(found, tau, beta) for found in traces]
    sides = [
        [_of(each, own, CLASSES[name]) for each, own in zip(values, judged, strict=True)]
        for name in ("important", "unimportant")
    ]
    return resampled(problems, sides, lambda means: means[0] - means[1])


def _of(values: Values, judged: Sequence[str], wanted: Sequence[str]) -> list[float]:
    return [value for value, reason in zip(values, judged, strict=True) if reason in wanted and value is not None]


def pooled(problems: Sequence[str], values: Sequence[Sequence[float]]) -> Estimate | None:
    """The mean of all values, and its 95% interval when problems are drawn again with all that is theirs."""
    return resampled(problems, [values], lambda means: means[0])


def resampled(
    problems: Sequence[str],
    sides: Sequence[Sequence[Sequence[float]]],
    statistic: Callable[[Sequence[Any]], Any],
    draws: int = 2000,
    seed: int = 0,
) -> Estimate | None:
    """``statistic`` of each side's mean over all its values; ``sides[side][trace]`` are those of a trace."""
    names, at = np.unique(np.asarray(problems, dtype=str), return_inverse=True)
    drawn = np.random.default_rng(seed).integers(0, max(len(names), 1), (draws, len(names)))
    means, again = [], []
    for side in sides:
        sums = np.bincount(at, [sum(each) for each in side], len(names))
        counts = np.bincount(at, [len(each) for each in side], len(names))
        if not counts.sum():
            return None
        means.append(sums.sum() / counts.sum())
        with np.errstate(invalid="ignore"):  # a draw of problems that have no such thought
            again.append(sums[drawn].sum(1) / counts[drawn].sum(1))
    low, high = np.nanquantile(statistic(again), [0.025, 0.975])
    return Estimate(float(statistic(means)), float(low), float(high))


# --- values of thoughts ----------------------------------------------------------------------------------------------


def confidence(found: Found, gain: str) -> NDArray:
    """After no thought, the first, the first two, ...: the share of sampled answers that are right, the answer's
    probability, or its log-probability."""
    if gain == "sampled":
        return np.asarray(found["confidence"])
    logp = np.asarray(found["answer_logp"])
    return logp if gain == "nats" else np.exp(logp)


def gains(found: Found, gain: str) -> list[float]:
    """What appending each thought adds to that ([IG] section 3.1)."""
    return np.diff(confidence(found, gain)).tolist()


def decision(found: Found) -> int | None:
    """The first thought after which the right answer, if forced, is likelier than all others together."""
    after = confidence(found, "probability" if found["confidence"] is None else "sampled")[1:]
    return next((s for s, likely in enumerate(after) if likely > 0.5), None)


def positions(found: Found, side: str) -> list[float | None]:
    """1 for each thought before (after) the decision segment, 0 for the others; None without one."""
    at, thoughts = decision(found), range(len(found["share"]))
    if at is None:
        return [None for _ in thoughts]
    return [float(s < at if side == "before" else s > at) for s in thoughts]


def above(values: Values, line: float) -> list[float | None]:
    return [None if value is None else float(value > line) for value in values]

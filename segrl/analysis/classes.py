"""Important against unimportant thoughts ([IG] section 3.1, appendix A): means of each class, and their difference.

A row holds one trace as a dict of lists with one value a thought (:mod:`segrl.analysis.gathering` says which). Means
are over all thoughts of a class, their intervals over problems.
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

Row = Mapping[str, Any]
Values = Sequence[float | None]  # one for each thought of a trace

# The name of a class -> the reasons that a selection gives for its thoughts.
CLASSES = {
    "important": ("strength",),
    "unimportant": ("dropped", "consistency"),
    "low strength": ("dropped",),
    "high consistency": ("consistency",),
}


def reasons(row: Row, tau: float, beta: float) -> tuple[str, ...]:
    """The reason that Eq. 5-7 give for each thought of a trace, nothing forced."""
    names = ("strength", "share", "consistency", "tokens")
    columns: dict[str, Any] = {f"{name}_S": torch.tensor(row[name]) for name in names}
    return select(SegmentScores(**columns), tau=tau, beta=beta, force=()).reason_S


def by_class(rows: Sequence[Row], values: Sequence[Values], tau: float, beta: float) -> dict[str, Estimate | None]:
    """The mean of a class's values, for each class; None where no thought of it has a value."""
    problems = [row["problem_id"] for row in rows]
    reasons_of_rows = [reasons(row, tau, beta) for row in rows]
    return {name: pooled(problems, _with_reason(wanted, values, reasons_of_rows)) for name, wanted in CLASSES.items()}


def difference(rows: Sequence[Row], values: Sequence[Values], tau: float, beta: float) -> Estimate | None:
    """The mean of important thoughts minus that of unimportant ones, both over the same draws of problems."""
    problems = [row["problem_id"] for row in rows]
    reasons_of_rows = [reasons(row, tau, beta) for row in rows]
    sides = [_with_reason(CLASSES[name], values, reasons_of_rows) for name in ("important", "unimportant")]
    return resampled(problems, sides, lambda means: means[0] - means[1])


def _with_reason(
    wanted: Sequence[str], values: Sequence[Values], reasons_of_rows: Sequence[Sequence[str]]
) -> list[list[float]]:
    """For each trace, the values of the thoughts whose reason is among ``wanted``."""
    return [
        [value for value, reason in zip(*thoughts, strict=True) if reason in wanted and value is not None]
        for thoughts in zip(values, reasons_of_rows, strict=True)
    ]


def pooled(problems: Sequence[str], values: Sequence[Sequence[float]]) -> Estimate | None:
    """The mean of all values, and its 95% interval over draws of problems, each with all its values."""
    return resampled(problems, [values], lambda means: means[0])


def resampled(
    problems: Sequence[str],
    sides: Sequence[Sequence[Sequence[float]]],
    statistic: Callable[[Sequence[Any]], Any],
    draws: int = 2000,
    seed: int = 0,
) -> Estimate | None:
    """``statistic`` of each side's mean over all its values; ``sides[side][trace]`` are the values of a trace."""
    names, at = np.unique(np.asarray(problems, dtype=str), return_inverse=True)
    drawn = np.random.default_rng(seed).integers(0, max(len(names), 1), (draws, len(names)))
    means, drawn_means = [], []
    for side in sides:
        sums = np.bincount(at, [sum(values) for values in side], len(names))
        counts = np.bincount(at, [len(values) for values in side], len(names))
        if not counts.sum():
            return None
        means.append(sums.sum() / counts.sum())
        with np.errstate(invalid="ignore"):  # a draw of problems that have no such thought
            drawn_means.append(sums[drawn].sum(1) / counts[drawn].sum(1))
    low, high = np.nanquantile(statistic(drawn_means), [0.025, 0.975])
    return Estimate(float(statistic(means)), float(low), float(high))


# --- values of thoughts ----------------------------------------------------------------------------------------------


def confidence(row: Row, gain: str) -> NDArray:
    """The confidence in the right answer after no thought, the first, the first two, ...

    ``gain`` says which: the share of sampled answers that are right, the answer's probability or its log-probability.
    """
    if gain == "sampled":
        return np.asarray(row["confidence"])
    logp = np.asarray(row["answer_logp"])
    return logp if gain == "nats" else np.exp(logp)


def gains(row: Row, gain: str) -> list[float]:
    """What appending each thought adds to the confidence ([IG] section 3.1)."""
    return np.diff(confidence(row, gain)).tolist()


def decision(row: Row) -> int | None:
    """The first thought after which the right answer, if forced, is likelier than all others together."""
    after = confidence(row, "probability" if row["confidence"] is None else "sampled")[1:]
    return next((s for s, likely in enumerate(after) if likely > 0.5), None)


def positions(row: Row, side: str) -> list[float | None]:
    """1 for each thought before (after) the decision segment, 0 for the others; None without one."""
    at, thoughts = decision(row), range(len(row["share"]))
    if at is None:
        return [None for _ in thoughts]
    return [float(s < at if side == "before" else s > at) for s in thoughts]


def above(values: Values, line: float) -> list[float | None]:
    """1 for each value above ``line``, 0 for the others; None stays None."""
    return [None if value is None else float(value > line) for value in values]

"""How well scores rank: AUROC, average precision, Spearman and the place of a single score; ties are averaged."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def ranks(values: ArrayLike) -> NDArray:
    """The rank of each value, 1 for the lowest; equal values share their average rank."""
    values = np.asarray(values, dtype=float)
    order = np.sort(values)
    return (np.searchsorted(order, values, "left") + np.searchsorted(order, values, "right") + 1) / 2


def auroc(scores: ArrayLike, positive: ArrayLike) -> float | None:
    """The chance that a positive outranks a negative, a tie counting half; None without a positive or a negative."""
    positive = np.asarray(positive, dtype=bool)
    n, m = int(positive.sum()), int((~positive).sum())
    if not n or not m:
        return None
    return float((ranks(scores)[positive].sum() - n * (n + 1) / 2) / (n * m))


def average_precision(scores: ArrayLike, positive: ArrayLike) -> float | None:
    """The precision at each distinct score, weighed by the recall it adds; None without a positive and a negative."""
    scores, positive = np.asarray(scores, dtype=float), np.asarray(positive, dtype=bool)
    if positive.all() or not positive.any():
        return None
    thresholds = np.unique(scores)[::-1]
    taken = np.array([(scores >= t).sum() for t in thresholds])
    hits = np.array([positive[scores >= t].sum() for t in thresholds])
    return float((np.diff(hits, prepend=0) * hits / taken).sum() / positive.sum())


def spearman(a: ArrayLike, b: ArrayLike) -> float | None:
    """The correlation of ranks; None where one side is constant."""
    x, y = (values - values.mean() for values in (ranks(a), ranks(b)))
    scale = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / scale if scale > 0 else None


def outranked(scores: ArrayLike, s: int) -> float | None:
    """The share of the other scores that lie below score ``s``, ties counting half."""
    others = np.delete(np.asarray(scores, dtype=float), s)
    score = np.asarray(scores, dtype=float)[s]
    return float(((others < score) + 0.5 * (others == score)).mean()) if len(others) else None

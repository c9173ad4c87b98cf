"""The gains of each class of thoughts over a grid of tau and beta, and the best tau ([IG] section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from segrl.analysis.classes import CLASSES, Row, by_class, difference, gains, reasons

Point = dict[str, Any]


def check(taus: Sequence[float], betas: Sequence[float]) -> None:
    """Raise where a threshold is not from 0 to 1."""
    for name, values in (("tau", taus), ("beta", betas)):
        for value in values:
            if not 0 <= value <= 1:
                raise ValueError(f"{name}={value}, expected a number from 0 to 1")


def point(rows: Sequence[Row], tau: float, beta: float, gain: str = "probability") -> Point:
    """The mean gain of each class at one pair of thresholds, their difference, and how much is kept."""
    values = [gains(row, gain) for row in rows]
    return {
        "tau": tau,
        "beta": beta,
        **by_class(rows, values, tau, beta),
        "difference": difference(rows, values, tau, beta),
        **kept(rows, tau, beta),
    }


def kept(rows: Sequence[Row], tau: float, beta: float) -> dict[str, float]:
    """The shares of segments and of tokens that are important, averaged over traces as the paper does."""
    segments, tokens = 0.0, 0.0
    for row in rows:
        important = [reason in CLASSES["important"] for reason in reasons(row, tau, beta)]
        segments += sum(important) / len(important)
        tokens += sum(n for n, keep in zip(row["tokens"], important, strict=True) if keep) / sum(row["tokens"])
    return {"segments": segments / len(rows), "tokens_kept": tokens / len(rows)}


def best_tau(points: Sequence[Point]) -> float | None:
    """The tau with the largest difference between important and unimportant, among the safe ones.

    A tau is safe where its unimportant thoughts gain little: their mean is not above the interval of the lowest such
    mean. Of two equal differences the smaller tau wins.
    """
    with_both = [point for point in points if point["difference"] is not None]
    if not with_both:
        return None
    limit = min((point["unimportant"] for point in with_both), key=lambda gain: gain.mean).high
    safe = [point for point in with_both if point["unimportant"].mean <= limit]
    return max(safe, key=lambda point: (point["difference"].mean, -point["tau"]))["tau"]


def grid(rows: Sequence[Row], taus: Sequence[float], betas: Sequence[float], gain: str = "probability") -> list[Point]:
    """A point for each pair of thresholds."""
    return [point(rows, tau, beta, gain) for beta in betas for tau in taus]

"""Which tau and beta part the thoughts that raise the answer's confidence from those that do not ([IG] section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from segrl.analysis.classes import CLASSES, Found, by_class, difference, gains, reasons

Point = dict[str, Any]


def check(taus: Sequence[float], betas: Sequence[float]) -> None:
    for name, values in (("tau", taus), ("beta", betas)):
        for value in values:
            if not 0 <= value <= 1:
                raise ValueError(f"{name}={value}, expected a number from 0 to 1")


def point(traces: Sequence[Found], tau: float, beta: float, gain: str = "probability") -> Point:
    """What one pair of thresholds comes to: mean gains of each class, and how much is kept."""
    values = [gains(found, gain) for found in traces]
    return {
        "tau": tau,
        "beta": beta,
        **by_class(traces, values, tau, beta),
        "difference": difference(traces, values, tau, beta),
        **kept(traces, tau, beta),
    }


def kept(traces: Sequence[Found], tau: float, beta: float) -> dict[str, float]:
    """The shares of segments and of tokens that are important, averaged over traces as the paper does."""
    segments, tokens = 0.0, 0.0
    for found in traces:
        inside = [reason in CLASSES["important"] for reason in reasons(found, tau, beta)]
        segments += sum(inside) / len(inside)
        tokens += sum(n for n, one in zip(found["tokens"], inside, strict=True) if one) / sum(found["tokens"])
    return {"segments": segments / len(traces), "tokens_kept": tokens / len(traces)}


def best_tau(points: Sequence[Point]) -> float | None:
    """The greedy rule: what is left out must not help, and within that the difference is to be largest.

    Of the taus whose unimportant thoughts gain least, up to the upper end of the least one's interval, the one with
    the largest difference between important and unimportant; the smaller tau where two are equal.
    """
    sided = [one for one in points if one["difference"] is not None]
    if not sided:
        return None
    limit = min((one["unimportant"] for one in sided), key=lambda gain: gain.mean).high
    safe = [one for one in sided if one["unimportant"].mean <= limit]
    return max(safe, key=lambda one: (one["difference"].mean, -one["tau"]))["tau"]


def grid(
    traces: Sequence[Found], taus: Sequence[float], betas: Sequence[float], gain: str = "probability"
) -> list[Point]:
    return [point(traces, tau, beta, gain) for beta in betas for tau in taus]

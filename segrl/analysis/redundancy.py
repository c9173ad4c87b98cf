"""How few segments hold most of the attribution ([IG] section 3, figure 1)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

HELD = 0.8  # of the attribution, as the paper asks


def cumulative(share_S: ArrayLike) -> NDArray:
    """0, the strongest segment's share, that of the two strongest, ... 1 ([IG] Eq. 5)."""
    return np.concatenate([[0.0], np.sort(np.asarray(share_S, dtype=float))[::-1].cumsum()])


def holding(share_S: ArrayLike, held: float = HELD) -> float:
    """The share of segments, strongest first, that together hold ``held`` of the attribution ([IG] Eq. 6)."""
    reached = cumulative(share_S)
    return int((reached < held - 1e-12).sum()) / (len(reached) - 1)


def mean_curve(shares: Sequence[ArrayLike], points: int = 101) -> tuple[NDArray, NDArray]:
    """At even shares of the segments: the cumulative attribution, averaged over traces."""
    at = np.linspace(0, 1, points)
    curves = [np.interp(at, np.linspace(0, 1, len(one)), one) for one in map(cumulative, shares)]
    return at, np.mean(curves, axis=0)


def crossing(at: NDArray, curve: NDArray, held: float = HELD) -> float:
    """Where the mean curve reaches ``held``."""
    return float(np.interp(held, curve, at))

"""Verdicts -> accuracy and pass@k, with intervals over problems."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import comb

import numpy as np


@dataclass(frozen=True)
class Estimate:
    """A mean over problems and its 95% bootstrap interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{100 * self.mean:.1f}% [{100 * self.low:.1f}, {100 * self.high:.1f}]"


def pass_at_k(samples: int, right: int, k: int) -> float:
    """The chance that one of ``k`` samples is right, unbiased from ``samples`` of which ``right`` are."""
    if not 1 <= k <= samples:
        raise ValueError(f"pass@{k} cannot be had from {samples} samples a problem; sample at least {k}")
    return 1 - comb(samples - right, k) / comb(samples, k)


def accuracy(correct: Mapping[str, Sequence[bool]], k: int = 1) -> Estimate:
    """pass@k over problems (k = 1: accuracy); ``correct`` holds each problem's verdicts."""
    if not correct:
        raise ValueError("there are no verdicts to average")
    return bootstrap([pass_at_k(len(verdicts), sum(verdicts), k) for verdicts in correct.values()])


def bootstrap(values: Sequence[float], draws: int = 2000, seed: int = 0) -> Estimate:
    """Problems are drawn again, not samples: samples of one problem are not independent evidence."""
    array = np.asarray(values, dtype=float)
    generator = np.random.default_rng(seed)
    means = array[generator.integers(0, len(array), (draws, len(array)))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Estimate(float(array.mean()), float(low), float(high))

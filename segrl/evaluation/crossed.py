"""The mean of a table of differences, seeds by problems: its interval, and what more seeds could show.

Every seed answers the same problems, and both vary: another seed trains otherwise, another problem favours another arm.
So the variance of the mean has a part for seeds, a part for problems, and a part for their interaction, which holds the
noise of sampling too. The interval is Student's t with Satterthwaite's degrees of freedom, which are few where there
are few seeds. A bootstrap over six seeds would be narrower by three tenths.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import inf, sqrt
from statistics import fmean

import numpy as np
import torch

LEVEL, POWER = 0.05, 0.8
POINTS = 8192  # of the chi distribution that tails of t are summed over


@dataclass(frozen=True)
class Crossed:
    """The mean of a table of seeds by problems, and the parts of its variance."""

    mean: float
    seeds: int
    problems: int
    of_seeds: float  # variance of one seed's mean over the problems; at least what the interaction makes of it
    of_problems: float  # variance of one problem's mean over endless seeds
    interaction: float  # variance of what is left of a cell: seed by problem, and the noise of its samples

    @property
    def error(self) -> float:
        """The standard error of the mean."""
        return sqrt(self.of_seeds / self.seeds + self.of_problems / self.problems)

    @property
    def freedom(self) -> float:
        """Satterthwaite's degrees of freedom of ``error``."""
        interaction = self.interaction / (self.seeds * self.problems)
        parts = (
            (self.of_seeds / self.seeds, self.seeds - 1),
            (self.of_problems / self.problems + interaction, self.problems - 1),
            (interaction, (self.seeds - 1) * (self.problems - 1)),
        )
        spread = sum(part**2 / freedom for part, freedom in parts if freedom)
        return self.error**4 / spread if spread else inf

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% interval of the mean."""
        half = self.error * critical(self.freedom) if self.error else 0.0
        return self.mean - half, self.mean + half

    @property
    def p(self) -> float:
        """The chance of a mean this far from zero, or farther, if there were no difference."""
        if not self.error:
            return float(self.mean == 0)
        return beyond(abs(self.mean) / self.error, self.freedom)

    @property
    def detectable(self) -> float:
        """The true difference that a test at 5% finds in 80% of such tables."""
        if not self.error:
            return 0.0
        limit = critical(self.freedom)
        return self.error * rising(lambda shift: beyond(limit, self.freedom, shift), POWER)

    def with_seeds(self, seeds: int) -> Crossed:
        """The same table with another number of seeds of the same kind."""
        return replace(self, seeds=seeds)


def crossed(table: np.ndarray) -> Crossed:
    """The mean of a table with a row a seed and a column a problem. A single row says nothing about other seeds."""
    seeds, problems = table.shape
    if problems < 2:
        raise ValueError(f"a table of {problems} problems has no spread over problems; give two or more")
    mean, by_seed, by_problem = table.mean(), table.mean(1), table.mean(0)
    if seeds == 1:
        return Crossed(float(mean), 1, problems, 0.0, float(table.var(ddof=1)), 0.0)
    left = table - by_seed[:, None] - by_problem + mean
    interaction = float((left**2).sum()) / ((seeds - 1) * (problems - 1))
    of_seeds = max(float(by_seed.var(ddof=1)), interaction / problems)
    of_problems = max(float(by_problem.var(ddof=1)) - interaction / seeds, 0.0)
    return Crossed(float(mean), seeds, problems, of_seeds, of_problems, interaction)


def pooled(parts: Sequence[Crossed]) -> Crossed:
    """One table for several of the same shape: its mean is zero, each part of its variance the mean of their parts."""
    return replace(
        parts[0],
        mean=0.0,
        of_seeds=fmean(part.of_seeds for part in parts),
        of_problems=fmean(part.of_problems for part in parts),
        interaction=fmean(part.interaction for part in parts),
    )


def sd_range(sd: float, freedom: float) -> tuple[float, float]:
    """The 95% interval of a standard deviation that was estimated with these degrees of freedom."""

    def chi_square(share: float) -> float:
        half = torch.tensor(freedom / 2, dtype=torch.float64)
        return rising(lambda x: float(torch.special.gammainc(half, torch.tensor(x / 2, dtype=torch.float64))), share)

    return sd * sqrt(freedom / chi_square(1 - LEVEL / 2)), sd * sqrt(freedom / chi_square(LEVEL / 2))


def critical(freedom: float) -> float:
    """The t beyond which 5% lie, on both sides together."""
    return rising(lambda t: -beyond(t, freedom), -LEVEL)


def beyond(t: float, freedom: float, shift: float = 0.0) -> float:
    """The chance that |T| exceeds ``t``, for Student's T, or with a ``shift`` the noncentral T. It is summed over the
    distribution of the standard error, chi.
    """
    if freedom == inf:
        scale, mass = torch.ones(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    else:
        scale = (torch.arange(POINTS, dtype=torch.float64) + 0.5) / POINTS * (1 + 12 / sqrt(freedom))
        logs = (freedom - 1) * scale.log() - freedom * scale**2 / 2
        mass = logs.softmax(0)
    tails = torch.special.ndtr(shift - t * scale) + torch.special.ndtr(-shift - t * scale)
    return float((mass * tails).sum())


def rising(function: Callable[[float], float], wanted: float) -> float:
    """The argument above zero at which a rising function takes the value ``wanted``, by bisection."""
    low, high = 0.0, 1.0
    while function(high) < wanted:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if function(middle) < wanted else (low, middle)
    return (low + high) / 2

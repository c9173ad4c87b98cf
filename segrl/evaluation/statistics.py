"""Accuracy, pass@k, maj@k, length and truncation from verdicts, with intervals over problems; and paired tests.

A sample is a dict of ``problem_id``, ``correct``, ``status``, ``pred``, ``tokens``, ``finish`` and ``level``; the last
three are None where they were not recorded. Nothing here reads a file or knows a model.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import product
from math import comb
from typing import Any

import numpy as np

GREEDY = "-greedy"  # ends the name of a benchmark's greedy pass
Sample = Mapping[str, Any]
Values = dict[str, list[float]]  # metric -> its value on each problem


@dataclass(frozen=True)
class Estimate:
    """A mean over problems and its 95% bootstrap interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{100 * self.mean:.1f}% [{100 * self.low:.1f}, {100 * self.high:.1f}]"


@dataclass(frozen=True)
class Difference:
    """The difference of two runs on the same problems, and how often chance alone makes it as large."""

    estimate: Estimate
    p: float
    problems: int

    @property
    def points(self) -> str:
        """The difference in points, with its interval."""
        mean, low, high = (100 * value for value in (self.estimate.mean, self.estimate.low, self.estimate.high))
        return f"{mean:+.1f} points [{low:+.1f}, {high:+.1f}]"

    def __str__(self) -> str:
        return f"{self.points}, p = {self.p:.2g} on {self.problems} problems"


# --- one problem -----------------------------------------------------------------------------------------------------


def pass_at_k(samples: int, right: int, k: int) -> float:
    """The chance that one of ``k`` samples is right, without bias from ``samples``, of which ``right`` are right."""
    if not 1 <= k <= samples:
        raise ValueError(
            f"pass@{k} cannot be had from {samples} samples a problem; give k from 1 to {samples}, or sample more"
        )
    return 1 - comb(samples - right, k) / comb(samples, k)


def maj_at_k(answers: Sequence[Hashable | None], correct: Sequence[bool], k: int) -> float:
    """The chance that the most frequent answer among ``k`` of the samples is right: exact, over all draws of k.

    ``answers`` holds each sample's canonical answer. Right answers are one group, since all equal the gold. A None does
    not vote, and a draw without votes is wrong. In a tie of t answers each wins with chance 1/t.
    """
    samples = len(answers)
    if not 1 <= k <= samples:
        raise ValueError(
            f"maj@{k} cannot be had from {samples} samples a problem; give k from 1 to {samples}, or sample more"
        )
    silent = sum(answer is None and not right for answer, right in zip(answers, correct, strict=True))
    wrong = Counter(answer for answer, right in zip(answers, correct, strict=True) if not right and answer is not None)
    right = sum(correct)
    won = Fraction(0)
    for votes in range(1, min(right, k) + 1):
        # ways[ties]: the draws of the other k - votes samples in which ``ties`` wrong answers tie and none wins.
        ways = _rivals(list(wrong.values()), silent, votes, k - votes)
        won += comb(right, votes) * sum(Fraction(count, 1 + ties) for ties, count in enumerate(ways))
    return float(won / comb(samples, k))


def _rivals(groups: Sequence[int], silent: int, votes: int, drawn: int) -> list[int]:
    """For each number of groups with ``votes``: the ways to draw ``drawn`` samples with no group above ``votes``."""
    ways = {(n, 0): comb(silent, n) for n in range(min(silent, drawn) + 1)}
    for size in groups:
        grown: dict[tuple[int, int], int] = defaultdict(int)
        for (used, ties), count in ways.items():
            for n in range(min(size, votes, drawn - used) + 1):
                grown[used + n, ties + (n == votes)] += count * comb(size, n)
        ways = grown
    return [ways.get((drawn, ties), 0) for ties in range(drawn // votes + 1)]


# --- over problems ---------------------------------------------------------------------------------------------------


def accuracy(correct: Mapping[str, Sequence[bool]], k: int = 1) -> Estimate:
    """pass@k over problems (k = 1: accuracy); ``correct`` holds each problem's verdicts."""
    if not correct:
        raise ValueError("there are no verdicts to average")
    return bootstrap([pass_at_k(len(verdicts), sum(verdicts), k) for verdicts in correct.values()])


def bootstrap(values: Sequence[float], draws: int = 2000, seed: int = 0) -> Estimate:
    """The mean over problems, with an interval. Problems are resampled: samples of one problem are not independent.

    With 30 problems the interval holds the truth in 93% of cases, with hundreds in 95%; where all problems came out
    the same it has no width, and says nothing.
    """
    return macro([values], draws, seed)


def macro(benchmarks: Sequence[Sequence[float]], draws: int = 2000, seed: int = 0) -> Estimate:
    """The mean of the benchmarks' means, each benchmark's problems drawn again among themselves."""
    generator = np.random.default_rng(seed)
    arrays = [np.asarray(values, dtype=float) for values in benchmarks]
    means = [values[generator.integers(0, len(values), (draws, len(values)))].mean(1) for values in arrays]
    low, high = np.quantile(np.mean(means, axis=0), [0.025, 0.975])
    return Estimate(float(np.mean([values.mean() for values in arrays])), float(low), float(high))


def paired(benchmarks: Sequence[Sequence[float]], draws: int = 10_000, seed: int = 0) -> Difference:
    """The mean of the differences a - b on the same problems, its interval, and a two-sided sign-flip p.

    If the runs were equally good, each difference could as well have had the other sign. Benchmarks have equal weights,
    as in ``macro``.
    """
    weighted = [np.asarray(values, dtype=float) / (len(values) * len(benchmarks)) for values in benchmarks]
    differences = np.concatenate(weighted)
    p = _sign_flip(differences[differences != 0], draws, np.random.default_rng(seed))
    return Difference(macro(benchmarks, draws, seed), p, len(differences))


def _sign_flip(differences: np.ndarray, draws: int, generator: np.random.Generator) -> float:
    """The p over all patterns of signs if there are at most ``draws``; else over random ones and the observed one."""
    least = abs(differences.sum()) - 1e-12
    if 2 ** len(differences) <= draws:
        every = product((-1.0, 1.0), repeat=len(differences))
        return float(np.mean([abs(np.dot(signs, differences)) >= least for signs in every]))
    drawn = (generator.choice([-1.0, 1.0], len(differences)) for _ in range(draws))
    return (1 + sum(abs(signs @ differences) >= least for signs in drawn)) / (1 + draws)


# --- a benchmark -----------------------------------------------------------------------------------------------------


def by_problem(samples: Sequence[Sample]) -> dict[str, list[Sample]]:
    """The samples of each problem."""
    problems: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        problems[sample["problem_id"]].append(sample)
    return dict(problems)


def share_right(samples: Sequence[Sample]) -> float:
    """The share of the samples that are right."""
    return sum(sample["correct"] for sample in samples) / len(samples)


def per_problem(samples: Sequence[Sample], ks: Sequence[int], canonical: Callable[[str], Hashable]) -> Values:
    """Every problem's pass@k and, for k > 1, maj@k; wrong answers are the same where ``canonical`` makes them equal."""
    problems = by_problem(samples).values()
    verdicts = [[sample["correct"] for sample in group] for group in problems]
    ks = sorted({1, *ks})
    passed = {f"pass@{k}": [pass_at_k(len(correct), sum(correct), k) for correct in verdicts] for k in ks}
    return passed | {f"maj@{k}": [_majority(group, k, canonical) for group in problems] for k in ks if k > 1}


def summary(samples: Sequence[Sample], values: Values) -> dict[str, Any]:
    """A benchmark's results: the mean of each metric, lengths, truncation, accuracy by level, and statuses."""
    right = [sample for sample in samples if sample["correct"]]
    wrong = [sample for sample in samples if not sample["correct"]]
    groups = {"all": samples, "right": right, "wrong": wrong}
    finished = [sample["correct"] for sample in samples if _cut(sample) is False]
    return {
        "problems": len(by_problem(samples)),
        "samples": min(map(len, by_problem(samples).values())),
        **{name: bootstrap(metric) for name, metric in values.items()},
        "tokens": {name: _mean([sample["tokens"] for sample in group]) for name, group in groups.items()},
        "truncated": {name: _mean([_cut(sample) for sample in group]) for name, group in groups.items()},
        "accuracy_finished": _mean(finished),
        "levels": _levels(samples),
        "statuses": dict(Counter(sample["status"] for sample in samples)),
    }


def average(summaries: Sequence[Mapping[str, Any]], values: Sequence[Values]) -> dict[str, Any]:
    """The macro average: benchmarks have equal weights, however many problems they have."""
    shared = [name for name in values[0] if all(name in metrics for metrics in values)]
    return {
        "problems": sum(summary["problems"] for summary in summaries),
        "samples": None,
        **{name: macro([metrics[name] for metrics in values]) for name in shared},
        **{name: _mean_of_groups([summary[name] for summary in summaries]) for name in ("tokens", "truncated")},
    }


def _mean_of_groups(groups: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
    """The mean of each group; None where a benchmark has none, since a mean over the others would mislead."""
    columns = {name: [group[name] for group in groups] for name in groups[0]}
    return {name: None if None in column else _mean(column) for name, column in columns.items()}


def _majority(samples: Sequence[Sample], k: int, canonical: Callable[[str], Hashable]) -> float:
    answers = [None if sample["pred"] is None or sample["correct"] else canonical(sample["pred"]) for sample in samples]
    return maj_at_k(answers, [sample["correct"] for sample in samples], k)


def _levels(samples: Sequence[Sample]) -> dict[str, dict[str, Any]]:
    """Each level's accuracy over its problems, where problems have levels."""
    levels = sorted({sample["level"] for sample in samples if sample["level"] is not None})
    means = {}
    for level in levels:
        problems = by_problem([sample for sample in samples if sample["level"] == level]).values()
        means[level] = [np.mean([sample["correct"] for sample in group]) for group in problems]
    return {level: {"problems": len(means[level]), "accuracy": bootstrap(means[level])} for level in levels}


def _cut(sample: Sample) -> bool | None:
    """Whether the sample was cut off; None where that was not recorded."""
    return None if sample["finish"] is None else sample["finish"] == "length"


def _mean(values: Sequence[float | None]) -> float | None:
    """The mean of the recorded values; None where there are none."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None

"""Tables of seeds by problems: parts by hand, tails of t against known ones, how often the interval holds the truth."""

from math import inf

import numpy as np
import pytest

from segrl.evaluation.crossed import Crossed, beyond, critical, crossed, pooled, sd_range


def drawn(generator, seeds, problems, of_seeds=0.0, of_problems=0.0, noise=1.0):
    """A table with these standard deviations and mean zero."""
    rows, columns = generator.normal(0, 1, (seeds, 1)) * of_seeds, generator.normal(0, 1, problems) * of_problems
    return rows + columns + generator.normal(0, noise, (seeds, problems))


def test_the_parts_by_hand():
    # Means of seeds 1, 4; of problems 1, 3, 3.5; of all 2.5. What is left: +-(0.5, -0.5, 0), squares 4 x 0.25 = 1,
    # over 1 x 2 degrees: 0.5. Seeds: (1.5^2 + 1.5^2) / 1 = 4.5. Problems: (1.5^2 + 0.5^2 + 1) / 2 = 1.75, less 0.5 / 2.
    found = crossed(np.array([[0.0, 1.0, 2.0], [2.0, 5.0, 5.0]]))
    assert (found.mean, found.seeds, found.problems) == (2.5, 2, 3)
    assert (found.of_seeds, found.of_problems, found.interaction) == pytest.approx((4.5, 1.5, 0.5))
    assert found.error == pytest.approx((4.5 / 2 + 1.5 / 3) ** 0.5)
    # 2.75^2 over (2.25^2 / 1 + (0.5 + 0.5 / 6)^2 / 2 + (0.5 / 6)^2 / 2)
    assert found.freedom == pytest.approx(7.5625 / (5.0625 + 0.340278 / 2 + 0.0069444 / 2), rel=1e-4)
    six = found.with_seeds(6)
    assert six.error == pytest.approx((4.5 / 6 + 1.5 / 3) ** 0.5)


def test_seeds_differ_by_their_noise_at_least():
    """Both have the mean 0.5 by luck; what is left of a cell varies by 1, so the mean of two by 1 / 2 at least."""
    found = crossed(np.array([[1.0, 0.0], [0.0, 1.0]]))
    assert found.interaction == 1.0
    assert (found.of_seeds, found.of_problems) == (0.5, 0.0)


def test_pooled_parts_are_means():
    one, other = Crossed(0.1, 2, 9, 1.0, 0.0, 2.0), Crossed(0.3, 2, 9, 3.0, 1.0, 4.0)
    assert pooled([one, other]) == Crossed(0.0, 2, 9, 2.0, 0.5, 3.0)


def test_one_seed_counts_problems_alone():
    found = crossed(np.array([[0.0, 1.0, 2.0, 5.0]]))
    values = [0.0, 1.0, 2.0, 5.0]
    half = 3.18245 * np.std(values, ddof=1) / 2
    assert found.freedom == pytest.approx(3)
    assert found.interval == pytest.approx((2 - half, 2 + half), rel=1e-4)
    with pytest.raises(ValueError, match="a table of 1 problems"):
        crossed(np.array([[1.0]]))


def test_a_table_without_spread():
    assert crossed(np.full((2, 3), 0.5)).interval == (0.5, 0.5)
    assert [crossed(np.full((2, 3), value)).p for value in (0.5, 0.0)] == [0.0, 1.0]
    assert crossed(np.full((2, 3), 0.5)).detectable == 0


@pytest.mark.parametrize(
    ("freedom", "known"),
    [(1, 12.7062), (2, 4.30265), (5, 2.57058), (10, 2.22814), (255, 1.96931), (inf, 1.95996)],
)
def test_students_table(freedom, known):
    assert critical(freedom) == pytest.approx(known, rel=1e-4)
    assert beyond(known, freedom) == pytest.approx(0.05, rel=1e-3)


def test_the_power_of_six_seeds_is_that_of_a_simulation():
    """Six seeds and no spread over problems: a paired t test of six differences."""
    plan = Crossed(0.0, seeds=6, problems=10**9, of_seeds=4.0, of_problems=0.0, interaction=0.0)
    assert plan.freedom == pytest.approx(5)
    draws = np.random.default_rng(0).normal(plan.detectable, 2.0, (100_000, 6))
    t = draws.mean(1) / (draws.std(1, ddof=1) / 6**0.5)
    assert float((abs(t) > 2.57058).mean()) == pytest.approx(0.8, abs=0.005)
    assert plan.detectable / plan.error > 3.1  # 2.8 were seeds endless


def test_the_range_of_a_standard_deviation():
    """chi-square of one degree at 97.5% is 5.02389, at 2.5% 0.000982; of five 12.8325 and 0.831212."""
    assert sd_range(1.0, 1) == pytest.approx((0.446145, 31.91), rel=1e-3)
    assert sd_range(2.0, 5) == pytest.approx((2 * (5 / 12.8325) ** 0.5, 2 * (5 / 0.831212) ** 0.5), rel=1e-4)


@pytest.mark.parametrize(
    ("of_seeds", "of_problems", "most"),
    [(0.0, 0.0, 1.0), (0.0, 1.0, 1.0), (0.1, 0.0, 0.985), (0.1, 1.0, 0.985)],
    ids=["noise", "problems", "seeds", "all"],
)
def test_the_interval_holds_the_truth_in_95_of_100(of_seeds, of_problems, most):
    """Six seeds, 64 problems, of standard deviations that count alike in the mean: 0.1 / sqrt(6), 1 / sqrt(64 x 6).

    Where seeds do not differ the intervals are too wide, since they allow for a difference that six might hide."""
    generator = np.random.default_rng(0)
    tables = [drawn(generator, 6, 64, of_seeds, of_problems) for _ in range(400)]
    held = [low <= 0 <= high for low, high in (crossed(table).interval for table in tables)]
    assert 0.93 <= np.mean(held) <= most

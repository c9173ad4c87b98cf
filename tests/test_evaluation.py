from itertools import combinations

import numpy as np
import pytest

from segrl.evaluation import accuracy, bootstrap, pass_at_k


@pytest.mark.parametrize("right", range(6))
@pytest.mark.parametrize("k", range(1, 6))
def test_pass_at_k_agrees_with_counting_all_draws(right, k):
    verdicts = [True] * right + [False] * (5 - right)
    draws = list(combinations(verdicts, k))
    assert pass_at_k(5, right, k) == pytest.approx(sum(map(any, draws)) / len(draws))


def test_more_samples_asked_than_drawn_is_a_sentence():
    with pytest.raises(ValueError, match="pass@6 cannot be had from 5 samples"):
        pass_at_k(5, 1, 6)
    with pytest.raises(ValueError, match="no verdicts"):
        accuracy({})


def test_accuracy_is_the_mean_over_problems_not_samples():
    correct = {"a": [True] * 9 + [False], "b": [False, False]}
    assert accuracy(correct).mean == pytest.approx(0.45)
    assert str(accuracy({"a": [True]})) == "100.0% [100.0, 100.0]"


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    generator = np.random.default_rng(1)
    covered = 0
    for draw in range(300):
        estimate = bootstrap(generator.random(60) < 0.4, draws=400, seed=draw)
        covered += estimate.low <= 0.4 <= estimate.high
    assert 0.90 <= covered / 300 <= 0.985

from itertools import combinations, product
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segrl.evaluation.statistics import (
    accuracy,
    average,
    bootstrap,
    macro,
    maj_at_k,
    paired,
    pass_at_k,
    per_problem,
    summary,
)

# --- pass@k ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("right", range(6))
@pytest.mark.parametrize("k", range(1, 6))
def test_pass_at_k_agrees_with_counting_all_draws(right, k):
    verdicts = [True] * right + [False] * (5 - right)
    draws = list(combinations(verdicts, k))
    assert pass_at_k(5, right, k) == pytest.approx(sum(map(any, draws)) / len(draws))


@pytest.mark.parametrize("samples", [3, 6, 32, 200])
def test_pass_at_k_does_not_drift_with_the_number_of_samples(samples):
    """Whatever is sampled, it is 1 - (1 - p)^k on average; 1 - (1 - right / samples)^k would be less."""
    p, k = 0.3, 3
    chance = [comb(samples, right) * p**right * (1 - p) ** (samples - right) for right in range(samples + 1)]
    expected = sum(chance[right] * pass_at_k(samples, right, k) for right in range(samples + 1))
    assert expected == pytest.approx(1 - (1 - p) ** k)


def test_more_samples_asked_than_drawn_is_a_sentence():
    with pytest.raises(ValueError, match="pass@6 cannot be had from 5 samples"):
        pass_at_k(5, 1, 6)
    with pytest.raises(ValueError, match="maj@0 cannot be had from 1 samples"):
        maj_at_k(["a"], [True], 0)
    with pytest.raises(ValueError, match="no verdicts"):
        accuracy({})


# --- maj@k -----------------------------------------------------------------------------------------------------------


def vote(answers):
    """The chance that "right" wins one vote: the most frequent answer, one of them at random where several are."""
    cast = [answer for answer in answers if answer is not None]
    most = max(map(cast.count, cast), default=0)
    winners = {answer for answer in cast if cast.count(answer) == most}
    return ("right" in winners) / len(winners) if winners else 0


@given(st.lists(st.sampled_from(["right", "a", "b", "c", None]), min_size=1, max_size=8), st.data())
def test_maj_at_k_agrees_with_counting_all_draws(answers, data):
    k = data.draw(st.integers(1, len(answers)))
    draws = list(combinations(answers, k))
    counted = sum(map(vote, draws)) / len(draws)
    assert maj_at_k(answers, [answer == "right" for answer in answers], k) == pytest.approx(counted)


@pytest.mark.parametrize("samples", [3, 4, 6])
def test_maj_at_k_does_not_drift_with_the_number_of_samples(samples):
    chance = {"right": 0.4, "a": 0.35, "b": 0.15, None: 0.1}

    def expected(n, value):
        return sum(np.prod([chance[one] for one in drawn]) * value(drawn) for drawn in product(chance, repeat=n))

    estimated = expected(samples, lambda drawn: maj_at_k(drawn, [one == "right" for one in drawn], 3))
    assert estimated == pytest.approx(expected(3, vote))


def test_right_answers_are_one_answer_and_silence_is_none():
    assert maj_at_k(["1/2", "0.5", "3", "3", "3"], [True, True, False, False, False], 5) == 0
    assert maj_at_k(["1/2", "0.5", "50%", "3", "3"], [True, True, True, False, False], 5) == 1
    assert maj_at_k(["1/2", "0.5", "3", "3"], [True, True, False, False], 4) == 0.5
    assert maj_at_k([None, None, None, "7"], [False, False, False, True], 4) == 1
    assert maj_at_k([None, None], [False, False], 2) == 0


# --- intervals -------------------------------------------------------------------------------------------------------


def test_accuracy_is_the_mean_over_problems_not_samples():
    correct = {"a": [True] * 9 + [False], "b": [False, False]}
    assert accuracy(correct).mean == pytest.approx(0.45)
    assert str(accuracy({"a": [True]})) == "100.0% [100.0, 100.0]"


def test_the_macro_average_weighs_benchmarks_alike():
    assert macro([[1.0] * 1000, [0.0, 1.0]]).mean == pytest.approx(0.75)
    assert macro([[0.0, 1.0]] * 2).mean == bootstrap([0.0, 1.0]).mean == 0.5


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    """Eight samples of each of 60 problems, some harder; were samples counted as independent, it would in under 80%."""
    generator = np.random.default_rng(1)
    covered = naive = 0
    for draw in range(300):
        difficulty = generator.beta(1, 1.5, 60)  # 0.4 on average
        right = generator.random((60, 8)) < difficulty[:, None]
        over_problems, over_samples = bootstrap(right.mean(1), 400, draw), bootstrap(right.ravel(), 400, draw)
        covered += over_problems.low <= 0.4 <= over_problems.high
        naive += over_samples.low <= 0.4 <= over_samples.high
    assert 0.90 <= covered / 300 <= 0.985
    assert naive / 300 < 0.8


def test_the_interval_of_the_macro_average_covers_it_too():
    generator = np.random.default_rng(2)
    covered = 0
    for draw in range(300):
        found = macro([generator.random(n) < p for n, p in ((200, 0.8), (40, 0.3))], 400, draw)
        covered += found.low <= 0.55 <= found.high
    assert 0.90 <= covered / 300 <= 0.985


# --- paired tests ----------------------------------------------------------------------------------------------------


def test_the_p_value_by_hand():
    # Of the 8 ways to sign three equal differences, +++ and --- are as far from 0 as what was seen.
    assert paired([[1, 1, 1]]).p == pytest.approx(2 / 8)
    # 1 + 1 - 1 = 1: all 8 signings come as far. Problems on which both agree have no sign.
    assert paired([[1, 1, -1, 0, 0]]).p == 1
    assert paired([[0.5, 0.25, 0.25, 0]]).p == pytest.approx(2 / 8)
    assert paired([[0, 0]]).p == 1
    assert paired([[1, 0, 0, 0]]).estimate.mean == 0.25
    assert paired([[1, 0, 0, 0]]).problems == 4


def test_benchmarks_weigh_alike_in_a_paired_test():
    found = paired([[1.0], [-0.5, -0.5, -0.5]])
    assert found.estimate.mean == pytest.approx((1 - 0.5) / 2)
    # Weighted: 1/2 against three times -1/12. |sum| >= 1/4 unless the three outweigh the one, which they never do.
    assert found.p == 1


def test_random_signs_agree_with_all_of_them():
    differences = [[0.3, -0.1, 0.2, 0.5, 0.1, 0.4, -0.3, 0.2, 0.6, -0.2, 0.1, 0.3, 0.2, -0.1]]
    every, some = paired(differences, draws=2**14), paired(differences, draws=2**14 - 1)
    assert every.p == pytest.approx(some.p, abs=0.005)
    assert every.p != some.p


@pytest.mark.e2e
def test_equal_runs_are_called_different_as_rarely_as_p_says():
    generator = np.random.default_rng(3)
    drawn = [generator.integers(-2, 3, 20) / 2 for _ in range(300)]
    assert np.mean([paired([one], draws=200).p <= 0.05 for one in drawn]) == pytest.approx(0.05, abs=0.03)
    assert "+100.0 points [+100.0, +100.0], p = 0.25 on 3 problems" in str(paired([[1, 1, 1]]))


# --- a benchmark -----------------------------------------------------------------------------------------------------


def sample(problem, correct, pred="1", tokens=10, finish="stop", level=None):
    status = "exact" if correct else "no_answer" if pred is None else "symbolic"
    return {
        "problem_id": problem,
        "correct": correct,
        "status": status,
        "pred": pred,
        "tokens": tokens,
        "finish": finish,
        "level": level,
    }


SAMPLES = [
    sample("p", True, "1", 10, level="1"),
    sample("p", False, "2 0", 30, level="1"),
    sample("p", False, "20", 50, "length", level="1"),
    sample("q", False, None, 90, "length", level="5"),
    sample("q", True, "3", 20, level="5"),
    sample("q", True, "3.0", 40, "length", level="5"),
]


def test_what_samples_come_to_by_hand():
    values = per_problem(SAMPLES, (1, 3), lambda pred: pred.replace(" ", ""))
    assert values == {
        "pass@1": pytest.approx([1 / 3, 2 / 3]),
        "pass@3": [1, 1],
        "maj@3": [0, 1],  # "2 0" and "20" are one answer; so are 3 and 3.0, both right
    }
    found = summary(SAMPLES, values)
    assert found["pass@1"].mean == pytest.approx(1 / 2)
    assert (found["problems"], found["samples"]) == (2, 3)
    assert found["tokens"] == {"all": 40, "right": pytest.approx(70 / 3), "wrong": pytest.approx(170 / 3)}
    assert found["truncated"] == {"all": 1 / 2, "right": pytest.approx(1 / 3), "wrong": pytest.approx(2 / 3)}
    assert found["accuracy_finished"] == pytest.approx(2 / 3)
    assert {level: one["accuracy"].mean for level, one in found["levels"].items()} == pytest.approx(
        {"1": 1 / 3, "5": 2 / 3}
    )
    assert found["statuses"] == {"exact": 3, "symbolic": 2, "no_answer": 1}


def test_what_nobody_recorded_is_none_and_not_zero():
    samples = [sample("p", True, tokens=None, finish=None), sample("q", True, tokens=None, finish=None)]
    found = summary(samples, per_problem(samples, (1,), str))
    assert found["tokens"] == found["truncated"] == {"all": None, "right": None, "wrong": None}
    assert found["accuracy_finished"] is None
    assert found["levels"] == {}


def test_the_average_of_benchmarks_by_hand():
    other = [sample("r", False, tokens=100)]
    values = [per_problem(SAMPLES, (1, 3), str), per_problem(other, (1,), str)]
    found = average([summary(SAMPLES, values[0]), summary(other, values[1])], values)
    assert found["pass@1"].mean == pytest.approx((1 / 2 + 0) / 2)
    assert "pass@3" not in found  # one benchmark has no three samples
    assert found["tokens"] == {"all": 70, "right": None, "wrong": pytest.approx((170 / 3 + 100) / 2)}
    assert found["problems"] == 3

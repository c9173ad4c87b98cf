import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segrl.importance.ranking import auroc, average_precision, outranked, ranks, spearman

SCORED = st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=2, max_size=12)


def test_equals_share_their_average_rank():
    assert ranks([3, 1, 3, 7]).tolist() == [2.5, 1, 2.5, 4]


def test_auroc_by_hand():
    # the positives 3 and 1 against the negatives 2 and 1: 3 beats both, 1 loses once and ties once: (2 + 0.5) / 4
    assert auroc([3, 1, 2, 1], [True, True, False, False]) == 0.625
    assert auroc([1, 2], [True, True]) is None


def test_average_precision_by_hand():
    # 5+ 4- 3+ : precision 1 at the first positive, 2/3 at the second, each half of the recall: (1 + 2/3) / 2
    assert average_precision([5, 4, 3], [True, False, True]) == pytest.approx(5 / 6)
    # all equal: one threshold, at which precision is the base rate
    assert average_precision([1, 1, 1, 1], [True, False, False, False]) == 0.25
    assert average_precision([1, 2], [False, False]) is None


def test_spearman_by_hand():
    # ranks 1 2 3 4 against 2 1 4 3: 1 - 6 * (1 + 1 + 1 + 1) / (4 * 15) = 0.6
    assert spearman([1, 2, 3, 4], [20, 10, 40, 30]) == pytest.approx(0.6)
    assert spearman([1, 2, 3], [-1, -10, -100]) == pytest.approx(-1)
    assert spearman([1, 1], [1, 2]) is None


def test_the_share_of_others_that_a_thought_outranks():
    # of 1, 2, 2 the 2 stands above one and beside one: (1 + 0.5 + 0) / 3
    assert outranked([1, 2, 2, 5], 1) == pytest.approx(0.5)
    assert outranked([1], 0) is None


@given(SCORED)
def test_auroc_counts_pairs(scored):
    positive = [score for score, side in scored if side]
    negative = [score for score, side in scored if not side]
    pairs = [float(a > b) + 0.5 * (a == b) for a in positive for b in negative]
    found = auroc(*zip(*scored, strict=True))
    assert found == pytest.approx(np.mean(pairs)) if pairs else found is None


@given(SCORED)
def test_average_precision_is_the_area_under_the_steps(scored):
    scores, sides = zip(*scored, strict=True)
    found = average_precision(scores, sides)
    if all(sides) or not any(sides):
        assert found is None
        return
    area, before = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        taken = [side for score, side in scored if score >= threshold]
        recall = sum(taken) / sum(sides)
        area += (recall - before) * sum(taken) / len(taken)
        before = recall
    assert found == pytest.approx(area)

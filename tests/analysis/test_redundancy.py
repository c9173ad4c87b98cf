import pytest
from hypothesis import given
from hypothesis import strategies as st

from segrl.analysis.gathering import bleu_before
from segrl.analysis.summary import crossing, cumulative, holding, mean_curve

SHARES = st.lists(st.floats(0.01, 1), min_size=1, max_size=9).map(lambda raw: [one / sum(raw) for one in raw])


def test_the_curve_by_hand():
    assert cumulative([0.1, 0.6, 0.3]).tolist() == pytest.approx([0, 0.6, 0.9, 1])
    # 0.6 + 0.3 reach 0.8: two of three segments; 0.9 exactly is reached by these two
    assert holding([0.1, 0.6, 0.3], 0.8) == pytest.approx(2 / 3)
    assert holding([0.1, 0.6, 0.3], 0.9) == pytest.approx(2 / 3)


def test_the_mean_of_two_traces_by_hand():
    # at half of the segments one trace has 0.8, the other, whose two are equal, 0.5
    at, curve = mean_curve([[0.8, 0.2], [0.5, 0.5]], points=3)
    assert at.tolist() == [0, 0.5, 1]
    assert curve.tolist() == pytest.approx([0, 0.65, 1])
    # from (0.5, 0.65) to (1, 1): 0.8 lies 15/35 of the way
    assert crossing(at, curve, 0.8) == pytest.approx(0.5 + 0.5 * 15 / 35)


@given(SHARES)
def test_fewer_segments_never_hold_enough(shares):
    count = round(holding(shares, 0.8) * len(shares))
    strongest = sorted(shares, reverse=True)
    assert sum(strongest[:count]) >= 0.8 - 1e-9
    assert sum(strongest[: count - 1]) < 0.8
    _, curve = mean_curve([shares])
    assert all(b >= a - 1e-12 for a, b in zip(curve, curve[1:], strict=False))


def test_bleu_of_a_copy_a_stranger_and_the_first():
    texts = ["so a = 3 plus 4 = 7 .", "nothing like that stands here now", "so a = 3 plus 4 = 7 .", ""]
    found = bleu_before(texts)
    assert found[0] is None
    assert found[1] == 0
    assert found[2] == pytest.approx(1)
    assert found[3] == 0
    assert bleu_before([]) == []


def test_bleu_by_hand():
    # "a b c x" against "a b c d" and "e": of 1- to 4-grams match 3/4, 2/3, 1/2 and 0/1, which smoothing takes as 1/2;
    # the lengths are equal, so nothing is taken off for brevity
    found = bleu_before(["a b c d", "e", "a b c x"])[2]
    assert found == pytest.approx((3 / 4 * 2 / 3 * 1 / 2 * 1 / 2) ** 0.25)

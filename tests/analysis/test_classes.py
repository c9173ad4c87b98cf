import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from testkit.analysed import row

from segrl.analysis.classes import (
    above,
    by_class,
    decision,
    difference,
    gains,
    pooled,
    positions,
    reasons,
    resampled,
)

# shares 0.5, 0.3, 0.15, 0.05: at tau 0.9 the first three reach it; the second is too consistent for beta 0.8
TRACE = row([50, 30, 15, 5], [0.1, 0.2, 0.2, 0.7, 0.6], consistency=[0.1, 0.9, 0.2, 1.0])


def test_classes_by_hand():
    assert reasons(TRACE, 0.9, 0.8) == ("strength", "consistency", "strength", "dropped")
    assert reasons(TRACE, 0.9, 1.0) == ("strength", "strength", "strength", "dropped")
    assert reasons(TRACE, 0.5, 0.8) == ("strength", "dropped", "dropped", "dropped")


def test_gains_by_hand():
    assert gains(TRACE, "probability") == pytest.approx([0.1, 0, 0.5, -0.1])
    assert gains(TRACE, "nats") == pytest.approx(np.log([2, 1, 3.5, 6 / 7]).tolist())
    assert gains({**TRACE, "confidence": [0, 0.5, 0.5, 1, 1]}, "sampled") == [0.5, 0, 0.5, 0]


def test_means_by_class_by_hand():
    found = by_class([TRACE], [gains(TRACE, "probability")], 0.9, 0.8)
    assert {name: one.mean for name, one in found.items()} == pytest.approx(
        {"important": 0.3, "unimportant": -0.05, "low strength": -0.1, "high consistency": 0.0}
    )
    assert difference([TRACE], [gains(TRACE, "probability")], 0.9, 0.8).mean == pytest.approx(0.35)
    assert by_class([TRACE], [gains(TRACE, "probability")], 1.0, 1.0)["unimportant"] is None
    assert difference([TRACE], [gains(TRACE, "probability")], 1.0, 1.0) is None


def test_the_decision_is_where_the_right_answer_becomes_likelier_than_all_others():
    assert decision(TRACE) == 2
    assert positions(TRACE, "before") == [1, 1, 0, 0]
    assert positions(TRACE, "after") == [0, 0, 0, 1]
    never = row([1, 1], [0.1, 0.2, 0.5])
    assert decision(never) is None
    assert positions(never, "after") == [None, None]
    assert decision({**TRACE, "confidence": [1, 0, 0.6, 0, 0]}) == 1


def test_what_has_no_value_is_left_out():
    assert above([None, 0.9, 0.8], 0.8) == [None, 1, 0]
    assert pooled(["a", "b"], [[1.0, 2.0, 6.0], []]).mean == 3
    assert pooled(["a"], [[]]) is None


def test_an_interval_draws_problems_not_thoughts():
    """Two problems, all thoughts of one at 0, of the other at 1: each draw of two gives 0, 1/2 or 1."""
    wide = pooled(["a", "b"], [[0.0] * 50, [1.0] * 50])
    assert (wide.mean, wide.low, wide.high) == (0.5, 0, 1)
    together = pooled(["a", "a"], [[0.0] * 50, [1.0] * 50])
    assert (together.low, together.high) == (0.5, 0.5)


@settings(max_examples=25)  # 2,000 draws each
@given(st.lists(st.lists(st.floats(-3, 3), min_size=1, max_size=3), min_size=1, max_size=5))
def test_a_difference_from_itself_is_nothing(values):
    found = resampled([str(i) for i in range(len(values))], [values, values], lambda means: means[0] - means[1])
    assert (found.mean, found.low, found.high) == (0, 0, 0)

import pytest
from testkit.analysed import row

from segrl.analysis.search import best_tau, check, grid, kept, point
from segrl.evaluation.statistics import Estimate


def at(tau, important, unimportant, high=None):
    return {
        "tau": tau,
        "important": Estimate(important, 0, 1),
        "unimportant": Estimate(unimportant, 0, unimportant if high is None else high),
        "difference": Estimate(important - unimportant, 0, 1),
    }


def test_what_is_left_out_must_not_help():
    # the largest difference is at 0.5, but there what is left out gains 0.3 where it could be 0
    points = [at(0.5, 0.9, 0.3), at(0.6, 0.4, 0.0), at(0.7, 0.5, 0.0), at(0.8, 0.3, 0.1)]
    assert best_tau(points) == 0.7


def test_within_the_interval_of_the_least_the_difference_decides():
    points = [at(0.5, 0.9, 0.04), at(0.6, 0.4, 0.0, high=0.05), at(0.7, 0.4, 0.2)]
    assert best_tau(points) == 0.5
    assert best_tau([at(0.8, 0.4, 0.0), at(0.6, 0.4, 0.0)]) == 0.6
    assert best_tau([{"tau": 1.0, "important": None, "unimportant": None, "difference": None}]) is None


def test_a_point_of_the_grid_by_hand():
    # at tau 0.8 two of three thoughts are important, at tau 0.5 one; gains 0.2, 0.3, -0.1; tokens 30 of 40 and 10 of 40
    trace = row([50, 30, 20], [0.1, 0.3, 0.6, 0.5], tokens=[10, 20, 10])
    found = {one["tau"]: one for one in grid([trace], [0.5, 0.8], [1.0])}
    assert found[0.8]["important"].mean == pytest.approx(0.25)
    assert found[0.8]["difference"].mean == pytest.approx(0.35)
    assert found[0.5]["difference"].mean == pytest.approx(0.2 - 0.1)
    assert kept([trace], 0.8, 1.0) == pytest.approx({"segments": 2 / 3, "tokens_kept": 0.75})
    assert found[0.5]["tokens_kept"] == 0.25
    assert point([trace], 0.8, 1.0, "nats")["important"].mean == pytest.approx((1.0986 + 0.6931) / 2, abs=1e-4)


def test_thresholds_lie_between_nothing_and_all():
    check([0, 0.5, 1], [1])
    with pytest.raises(ValueError, match=r"tau=1.2, expected a number from 0 to 1"):
        check([0.5, 1.2], [0.8])
    with pytest.raises(ValueError, match=r"beta=-0.1, expected"):
        check([0.5], [-0.1])

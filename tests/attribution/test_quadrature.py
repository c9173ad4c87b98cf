import json

import pytest
import torch

from segrl.attribution.quadrature import RULES, midpoint, nodes_of


def test_the_nodes_of_each_rule():
    expected = {
        "midpoint": ([1 / 8, 3 / 8, 5 / 8, 7 / 8], [0.25] * 4),
        "left": ([0, 1 / 4, 2 / 4, 3 / 4], [0.25] * 4),
        "right": ([1 / 4, 2 / 4, 3 / 4, 1], [0.25] * 4),
        "trapezoid": ([0, 1 / 3, 2 / 3, 1], [1 / 6, 1 / 3, 1 / 3, 1 / 6]),
        "authors": ([0, 1 / 3, 2 / 3, 1], [0.25] * 4),
    }
    for name, (alphas, weights) in expected.items():
        alphas_J, weights_J = RULES[name](4)
        assert alphas_J.tolist() == pytest.approx(alphas), name
        assert weights_J.tolist() == pytest.approx(weights), name


def test_nodes_come_from_the_calibration_a_rule_or_a_file(tmp_path):
    calibration = {"rules": {"1": {"alphas": [0.71], "weights": [1.0]}}}
    assert nodes_of("calibrated", 1, calibration)[0].tolist() == [0.71]
    assert torch.equal(nodes_of("calibrated", 1, {})[0], midpoint(1)[0])  # not enough rollouts yet
    assert torch.equal(nodes_of("calibrated", 5, calibration)[0], midpoint(5)[0])
    assert nodes_of("right", 2, calibration)[0].tolist() == [0.5, 1.0]
    assert nodes_of("segrl.attribution.quadrature:right", 2, {})[0].tolist() == [0.5, 1.0]
    (tmp_path / "mine.json").write_text(json.dumps(calibration))
    assert nodes_of(str(tmp_path / "mine.json"), 1, {})[0].tolist() == [0.71]
    given = midpoint(3)
    assert nodes_of(given, 1) is given


@pytest.mark.parametrize("rule", ["calibrated", "simpson"])
def test_without_a_kept_calibration_a_name_is_one_of_the_rules(rule):
    with pytest.raises(ValueError, match=rf"quadrature='{rule}', expected one of midpoint, left, "):
        nodes_of(rule, 3)


def test_gauss_legendre_is_exact_for_polynomials_up_to_twice_its_nodes():
    alphas_J, weights_J = RULES["gauss_legendre"](3)
    assert float((weights_J * alphas_J**5).sum()) == pytest.approx(1 / 6)


@pytest.mark.parametrize("name", RULES)
def test_weights_sum_to_one_and_nodes_lie_on_the_path(name):
    alphas_J, weights_J = RULES[name](7)
    assert float(weights_J.sum()) == pytest.approx(1)
    assert float(alphas_J.min()) >= 0
    assert float(alphas_J.max()) <= 1
    assert alphas_J.dtype == weights_J.dtype == torch.float64


def test_too_few_nodes_are_a_sentence():
    with pytest.raises(ValueError, match="at least one node, got nodes=0"):
        midpoint(0)
    with pytest.raises(ValueError, match="nodes=1, expected 2 or more"):
        RULES["trapezoid"](1)

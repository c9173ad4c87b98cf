"""A budget becomes nodes and a share; what a run remembers."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from segrl.attribution.calibration import COUNTS
from segrl.attribution.quadrature import midpoint
from segrl.credit.planning import Memory, Plan, evaluation_cost, nodes_for, plan
from segrl.credit.settings import Credit


@pytest.mark.parametrize(
    ("budget", "nodes", "share", "evaluation", "expected"),
    [
        (None, 4, 1.0, 0.5, Plan(4, 1.0, 0.5)),
        (0.25, 1, 1.0, 0.5, Plan(1, 0.5, 0.5)),  # not one node on every rollout: half of them
        (0.5, 12, 1.0, 0.5, Plan(1, 1.0, 0.5)),
        (1.7, 12, 1.0, 0.5, Plan(3, 1.0, 0.5)),
        (2.6, 12, 1.0, 0.5, Plan(4, 1.0, 0.5)),  # 5 would fit, but no rule of 5 nodes is calibrated
        (9.0, 4, 1.0, 0.5, Plan(4, 1.0, 0.5)),  # no more than asked for
        (0.25, 1, 0.5, 0.5, Plan(1, 0.5, 0.5)),
    ],
)
def test_plans_by_hand(budget, nodes, share, evaluation, expected):
    assert plan(budget, nodes, share, evaluation) == expected


@given(st.floats(0.01, 10), st.sampled_from(COUNTS), st.floats(0.05, 1), st.floats(0.1, 2))
def test_a_plan_never_costs_more_than_the_budget_or_takes_more_than_was_asked(budget, nodes, share, evaluation):
    found = plan(budget, nodes, share, evaluation)
    assert found.cost <= budget * (1 + 1e-9)
    assert 1 <= found.nodes <= nodes
    assert 0 < found.share <= share


def test_an_evaluation_costs_half_an_update_or_what_was_timed():
    assert evaluation_cost(False) == 0.5
    assert evaluation_cost(True) == 0.75
    assert evaluation_cost(True, times=2) == 1.5  # by both ranks of a Ulysses group
    # one forward takes 1 ms a token, so an update takes 3, or 4 where activations are computed twice
    assert evaluation_cost(False, 1.8e-3, 1e-3) == pytest.approx(0.6)
    assert evaluation_cost(True, 1.8e-3, 1e-3) == pytest.approx(0.45)


def test_what_a_run_remembers_is_found_again_for_the_same_model(tmp_path):
    Memory(tmp_path, "model a").keep("plan", {"budget": 0.5}, {"nodes": 2, "share": 0.5, "evaluation": 0.5})
    assert Plan(**Memory(tmp_path, "model a").get("plan", {"budget": 0.5})) == Plan(2, 0.5, 0.5)
    assert Memory(tmp_path, "model a").get("plan", {"budget": 0.25}) is None
    assert Memory(tmp_path, "model b").get("plan", {"budget": 0.5}) is None
    assert [path.name for path in tmp_path.iterdir()] == ["segrl.json"]


def test_nodes_come_from_the_calibration_a_rule_or_a_file(tmp_path):
    calibration = {"rules": {"1": {"alphas": [0.71], "weights": [1.0]}}}
    assert nodes_for(Credit(), 1, calibration)[0].tolist() == [0.71]
    assert torch.equal(nodes_for(Credit(), 1, None)[0], midpoint(1)[0])  # not enough rollouts yet
    assert torch.equal(nodes_for(Credit(), 5, calibration)[0], midpoint(5)[0])
    assert nodes_for(Credit(quadrature="right"), 2, calibration)[0].tolist() == [0.5, 1.0]
    assert nodes_for(Credit(quadrature="segrl.attribution.quadrature:right"), 2, None)[0].tolist() == [0.5, 1.0]
    (tmp_path / "mine.json").write_text(json.dumps(calibration))
    assert nodes_for(Credit(quadrature=str(tmp_path / "mine.json")), 1, None)[0].tolist() == [0.71]

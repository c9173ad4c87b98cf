"""What a run remembers, and the nodes that follow from it."""

import json

import torch

from segrl.attribution.quadrature import midpoint
from segrl.credit.memory import Memory, nodes_for
from segrl.credit.settings import Credit


def test_what_a_run_remembers_is_found_again_for_the_same_model(tmp_path):
    Memory(tmp_path, "model a").keep("calibration", {"target": "own"}, {"grid": 48})
    assert Memory(tmp_path, "model a").get("calibration", {"target": "own"}) == {"grid": 48}
    assert Memory(tmp_path, "model a").get("calibration", {"target": "gold"}) is None
    assert Memory(tmp_path, "model b").get("calibration", {"target": "own"}) is None
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

"""What a run remembers."""

from segrl.credit.memory import Memory


def test_what_a_run_remembers_is_found_again_for_the_same_model(tmp_path):
    Memory(tmp_path, "model a").keep("calibration", {"target": "own"}, {"grid": 48})
    assert Memory(tmp_path, "model a").get("calibration", {"target": "own"}) == {"grid": 48}
    assert Memory(tmp_path, "model a").get("calibration", {"target": "gold"}) is None
    assert Memory(tmp_path, "model b").get("calibration", {"target": "own"}) is None
    assert [path.name for path in tmp_path.iterdir()] == ["segrl.json"]

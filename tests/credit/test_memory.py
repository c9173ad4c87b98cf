"""What a run remembers."""

from functools import partial

import pytest

from segrl.credit.memory import Memory, calibration_settings
from segrl.credit.settings import CreditSettings

ranked = partial(CreditSettings, rule="rank")


def test_what_a_run_remembers_is_found_again_for_the_same_model(tmp_path):
    Memory(tmp_path, "model a").keep("calibration", {"target": "own"}, {"grid": 48})
    assert Memory(tmp_path, "model a").get("calibration", {"target": "own"}) == {"grid": 48}
    assert Memory(tmp_path, "model a").get("calibration", {"target": "gold"}) is None
    assert Memory(tmp_path, "model b").get("calibration", {"target": "own"}) is None
    assert [path.name for path in tmp_path.iterdir()] == ["segrl.json"]


@pytest.mark.parametrize(
    "changed",
    [{"target": "contrast"}, {"path": "embeddings"}, {"output": "logp"}, {"begin": 0.5}, {"interpolate": None}],
)
def test_a_calibration_follows_from_all_that_shapes_the_path(changed):
    assert calibration_settings(ranked(**changed)) != calibration_settings(ranked())
    assert calibration_settings(ranked(sign="both", tau=0.5)) == calibration_settings(ranked())

"""What segrl leans on in verl is there, and a change is named with its place."""

import pytest

pytest.importorskip("verl")

from segrl.verl import drift as module
from segrl.verl.drift import drift, warn_of_drift


@pytest.mark.e2e
def test_the_installed_verl_is_the_one_segrl_was_written_for():
    assert drift() == []


def test_each_change_is_named_with_its_place():
    used = {
        "verl.nowhere:thing": None,
        "segrl.verl.drift:nothing": None,
        "segrl.verl.drift:drift": ("used", "strictness"),
        "segrl.credit.choosing:sample": ("worth", "tokens"),
        "segrl.credit.rollout:Rollout.__eq__": ("self", "value"),
    }
    sentences = drift(used, expected="0.0.1")
    assert sentences[0].startswith("verl is ")
    assert sentences[0].endswith("segrl was written for 0.0.1")
    assert "verl.nowhere cannot be imported" in sentences[1]
    assert sentences[2] == "segrl.verl.drift has no nothing"
    assert sentences[3] == "segrl.verl.drift:drift takes (used, expected), without strictness"
    assert len(sentences) == 4  # what is called may have more parameters; what is overridden may not


def test_a_changed_verl_is_a_warning_at_the_start(monkeypatch):
    monkeypatch.setattr(module, "drift", lambda: ["somewhere takes (a), without b"])
    with pytest.warns(UserWarning, match=r"look here first: somewhere takes \(a\), without b"):
        warn_of_drift()

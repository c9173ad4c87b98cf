import json
import math
from dataclasses import asdict

import pytest
from testkit.analysed import row

from segrl.analysis.figures import draw_all, example
from segrl.analysis.page import sentences
from segrl.analysis.summary import summarise, usable

OPTIONS = {"tau": 0.7, "beta": 0.8, "taus": [0.5, 0.7, 0.9], "betas": [0.8, 1.0], "gain": "probability", "held": 0.8}
RIGHT = row([6, 3, 1], [0.1, 0.2, 0.9, 0.9], problem="p", consistency=[0.9, 0.1, 0.1], tokens=[1, 2, 3], name=0)
OTHER = row([5, 5], [0.1, 0.6, 0.9], problem="q", tokens=[5, 5], name=1)
WRONG = row([8, 1, 1, 1], [0.1] * 5, problem="p", correct=False, name=2)


def test_the_summary_by_hand():
    truncated = {"p-0": [1.0, 0.0, 0.0], "q-1": [0.0, 1.0], "p-2": [0.0] * 4}
    found = summarise([RIGHT, OTHER, WRONG], truncated, **OPTIONS)
    assert found["traces"] == {
        "right": 2,
        "wrong": 1,
        "without_decision": 0,
        "unread": 0,
        "first_unread": None,
        "coarse": 0,
    }
    # 80% is held by 2 of 3 and 2 of 2 thoughts, and in the wrong trace (8, 9 of 11) by 2 of 4
    assert found["redundancy"]["right"]["segments"].mean == pytest.approx(5 / 6)
    assert found["redundancy"]["wrong"]["segments"].mean == 0.5
    # of the problems with both, p alone: 3 against 4 thoughts, 6 against 40 tokens
    assert found["counts"]["same_problems"] == 1
    assert found["counts"]["right"]["segments"].mean == 3
    assert found["counts"]["wrong"]["tokens"].mean == 40
    # important: p's second and both of q (the shares 0.5 and 0.5 reach 0.7 together); gains 0.7, 0.5, 0.3
    assert found["gain"]["probability"]["important"].mean == pytest.approx(0.5)
    assert found["gain"]["probability"]["high consistency"].mean == pytest.approx(0.1)
    assert found["gain"]["nats"]["low strength"].mean == 0
    assert "sampled" not in found["gain"]
    # of the important ones q's second is truncated; of the others p's first
    assert found["truncated"]["important"].mean == pytest.approx(1 / 3)
    assert found["truncated"]["unimportant"].mean == 0.5
    # p is decided by its second thought, q by its first: of the important ones q's second comes after
    assert found["position"]["important"]["share"].mean == pytest.approx(1 / 3)
    assert found["position"]["low strength"]["share"].mean == 0
    assert found["position"]["high consistency"]["share"].mean == 0
    # consistency 0.9 0.1 0.1 0 0 against tokens 1 2 3 5 5 : ranks 5 3.5 3.5 1.5 1.5 against 1 2 3 4.5 4.5
    assert found["consistency_and_length"] == pytest.approx(-9 / math.sqrt(9 * 9.5), abs=1e-9)
    json.dumps(found, default=asdict)


def test_nothing_can_be_said_without_a_right_trace_or_a_model_that_gets_there():
    with pytest.raises(ValueError, match=r"none of 1 traces is right \(verdicts: exact\)"):
        usable([WRONG])
    with pytest.raises(ValueError, match="never gives the right answer, after any thought of 1 right traces"):
        summarise([row([1, 1], [0.1, 0.1, 0.2])], None, **OPTIONS)
    with pytest.raises(ValueError, match="none of 1 traces could be read; the first says: too long"):
        usable([{**RIGHT, "error": "too long"}])
    with pytest.raises(ValueError, match="no thought of 1 traces has any attribution"):
        summarise([{**RIGHT, "strength": [0.0] * 3, "share": [0.0] * 3}], None, **OPTIONS)


def test_without_wrong_traces_it_says_so():
    found = summarise([RIGHT, {**WRONG, "error": "too long"}], None, **OPTIONS)
    said = sentences(found)
    assert "no trace is wrong" in said
    assert "1 traces could not be read: too long" in said
    assert "truncated" not in said


@pytest.mark.e2e
def test_the_figures_are_drawn_and_the_same_again(tmp_path):
    formula = {**RIGHT, "texts": ["half of $\\frac{1}{ is", "two $ signs $", "ω"]}
    found = summarise([formula, OTHER], None, **OPTIONS)
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        draw_all(found, [formula, OTHER], tmp_path / folder)
    names = {path.name for path in (tmp_path / "one").iterdir()}
    assert names == {f"figure_{name}.{kind}" for name in (1, 2, 3, 4, "positions") for kind in ("png", "svg")}
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert "half of $\\frac{1}{ is" in (tmp_path / "one" / "figure_1.svg").read_text()


def test_the_example_shows_the_most_classes():
    assert example([OTHER, RIGHT], 0.7, 0.8) is RIGHT

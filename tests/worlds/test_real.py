"""Real traces as a world: what a file must hold, and how its samples of one problem stay in one half."""

import json

import pytest
from testkit.real import real_file
from testkit.tiny import byte_level_tokenizer

from segrl import tokenize
from segrl.worlds import WORLDS, world_traces


def written(path, rows) -> str:
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def test_samples_of_one_problem_stay_in_one_half(tmp_path):
    rows = [
        {"id": f"{i}-{sample}", "problem": f"What is {i}?", "response": "It is.", "answer": f"{i}"}
        for i in range(30)
        for sample in range(3)
    ]
    path = written(tmp_path / "rows.jsonl", rows)
    dev, test = ({t.problem for t in world_traces("real", half, None, 0, path=path)} for half in ("dev", "test"))
    assert not dev & test
    assert len(dev | test) == 30


def test_a_trace_without_an_answer_is_refused(tmp_path):
    rows = [{"id": "a", "problem": "?", "response": "x", "answer": "1"}, {"id": "b", "problem": "?", "response": "x"}]
    with pytest.raises(ValueError, match="1 of 2 traces have no answer, 'b' is the first"):
        world_traces("real", "all", None, 0, path=written(tmp_path / "rows.jsonl", rows))


def test_the_forty_traces_of_r1():
    path = str(real_file("traces_r1_qwen7b_amc23.jsonl"))
    halves = {half: world_traces("real", half, None, 0, path=path) for half in ("dev", "test", "all")}
    assert len(halves["all"]) == 40
    assert {half: len(traces) for half, traces in halves.items() if half != "all"} == {"dev": 20, "test": 20}
    assert len(WORLDS["real"].cut(tokenize(halves["all"][0], byte_level_tokenizer()))) > 3

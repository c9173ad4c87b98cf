import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segrl import Trace, toy
from segrl.commands.cli import main
from segrl.data import load_traces, read_rows, save_traces
from segrl.generation import harvest

pytestmark = pytest.mark.filterwarnings("ignore:.*max_new_tokens.*")


def candidate(problem, k, tokens, status, correct=False):
    meta = {"problem_id": problem, "sample": k, "tokens": tokens, "status": status, "correct": correct}
    return Trace(f"{problem}#{k}", "p", "r", "7", meta=meta)


# By hand: a has both sides, b no wrong answer (one is not an answer, one was never judged), c nothing right.
JUDGED = [
    candidate("a", 0, 9, "exact", True),
    candidate("a", 1, 5, "symbolic", True),
    candidate("a", 2, 5, "exact", True),
    candidate("a", 3, 8, "symbolic"),
    candidate("b", 0, 4, "exact", True),
    candidate("b", 1, 2, "no_answer"),
    candidate("b", 2, 1, "timeout"),
    candidate("c", 0, 6, "symbolic"),
    candidate("c", 1, 7, "numeric"),
]


@pytest.mark.parametrize(
    ("keep", "unanswered", "ids"),
    [
        ("both", False, ["a#1", "a#3", "b#0", "c#0"]),
        ("correct", False, ["a#1", "b#0"]),
        ("incorrect", False, ["a#3", "c#0"]),
        ("both", True, ["a#1", "a#3", "b#0", "b#1", "c#0"]),
    ],
)
def test_the_shortest_of_each_side(keep, unanswered, ids):
    kept, rows = harvest(JUDGED, keep, unanswered)
    assert [trace.id for trace in kept] == ids
    assert [tuple(row.values()) for row in rows] == [
        ("a", 4, 3, 1, 5, 8),
        ("b", 3, 1, int(unanswered), 4, 2 if unanswered else None),
        ("c", 2, 0, 2, None, 6),
    ]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 9), st.booleans()), min_size=1))
def test_nothing_shorter_of_its_side_is_left_behind(drawn):
    judged = [candidate(problem, k, tokens, "exact", right) for k, (problem, tokens, right) in enumerate(drawn)]
    kept, _ = harvest(judged)
    shortest = {(t.meta["problem_id"], t.meta["correct"]): t.meta["tokens"] for t in kept}
    assert len(shortest) == len(kept)
    for problem, tokens, right in drawn:
        assert shortest[problem, right] <= tokens


def test_an_unknown_side_is_a_sentence():
    with pytest.raises(ValueError, match="keep='right', expected one of correct, incorrect, both"):
        harvest(JUDGED, "right")


# --- the command -----------------------------------------------------------------------------------------------------

RESPONSES = {
    "long": "<think>Well, 3+4 is 7.</think> \\boxed{7}",
    "short": "<think>.</think> \\boxed{7}",
    "wrong": "<think>.</think> \\boxed{8}",
    "draft": "<think>\\boxed{7}",
}


def test_saved_responses_are_graded_and_the_shortest_kept(tmp_path, capsys):
    save_traces([Trace(f"{q}-{k}", q, text, "7") for q in "xy" for k, text in RESPONSES.items()], tmp_path / "t.jsonl")
    asked = ["harvest", f"traces={tmp_path / 't.jsonl'}", f"model_path={toy.MODEL_PATH}"]
    assert main([*asked, f"out={tmp_path / 'out'}"]) == 0
    kept = load_traces(tmp_path / "out")
    assert [(trace.id, trace.meta["correct"]) for trace in kept] == [
        (f"{q}-{k}", k == "short") for q in "xy" for k in ("short", "wrong")
    ]
    _, tokenizer = toy.load_model()
    assert kept[0].meta["tokens"] == len(tokenizer(kept[0].response)["input_ids"])
    found = json.loads((tmp_path / "out" / "harvest.json").read_text())
    assert (found["problems"], found["kept"], found["without"]) == (2, 4, {"correct": 0, "incorrect": 0, "either": 0})
    assert main([*asked, f"out={tmp_path / 'few'}", "limit=1", "keep=incorrect"]) == 0
    assert [trace.id for trace in load_traces(tmp_path / "few")] == ["x-wrong"]
    save_traces([Trace("z", "z", RESPONSES["draft"], "7")], tmp_path / "t.jsonl")
    assert main([*asked, f"out={tmp_path / 'none'}"]) == 2
    assert "nothing to keep: no response to these 1 problems" in capsys.readouterr().err


def test_several_responses_a_row_are_candidates_of_one_problem(tmp_path):
    row = {"idx": 3, "question": "3+4?", "gt": "7", "code": list(RESPONSES.values())}
    (tmp_path / "math.jsonl").write_text(json.dumps(row) + "\n")
    asked = ["harvest", f"traces={tmp_path / 'math.jsonl'}", f"model_path={toy.MODEL_PATH}", f"out={tmp_path / 'out'}"]
    assert main(asked) == 0
    assert [trace.response for trace in load_traces(tmp_path / "out")] == [RESPONSES["short"], RESPONSES["wrong"]]


@pytest.mark.e2e
def test_candidates_are_sampled_where_none_are_given(tmp_path):
    asked = ["harvest", "limit=2", "generation.n=4", "generation.max_tokens=320", f"out={tmp_path}"]
    assert main([*asked, "unanswered=true"]) == 0
    candidates, kept = load_traces(tmp_path / "candidates"), load_traces(tmp_path)
    assert len(candidates) == 8
    found = json.loads((tmp_path / "harvest.json").read_text())["by_problem"]
    assert sum(row["correct"] + row["incorrect"] for row in found) == 8
    for trace in kept:
        rivals = [t for t in candidates if t.meta["problem_id"] == trace.meta["problem_id"]]
        assert trace.response in {rival.response for rival in rivals}
    assert {trace.meta["correct"] for trace in kept} == {True, False}
    assert main(["select", f"traces={tmp_path}", "measure=length", f"out={tmp_path / 'more' / 's.parquet'}"]) == 0
    assert [row["id"] for row in read_rows(tmp_path / "more" / "s.parquet")] == [trace.id for trace in kept]

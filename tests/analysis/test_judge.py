import pytest
from testkit.analysed import row

from segrl import Trace
from segrl.analysis.judge import BEGINNING, END, by_trace, hurried, hurried_verdict, planted, questions, verdict

FOUND = row([1, 1, 1], [0.1] * 4, texts=["first {x}", "second {after}", "third"], answer_text="So 7.")


def test_each_thought_is_asked_for_between_its_neighbours():
    asked = questions(FOUND)
    assert [one.id for one in asked] == ["p-0/0", "p-0/1", "p-0/2"]
    for s, parts in enumerate(
        [
            (BEGINNING, "first {x}", "second {after}"),
            ("first {x}", "second {after}", "third"),
            ("second {after}", "third", "So 7."),
        ]
    ):
        steps = asked[s].problem.split("<<<\n")[1:]
        assert tuple(step.split("\n>>>")[0] for step in steps) == parts
    assert END in questions({**FOUND, "answer_text": ""})[2].problem


@pytest.mark.parametrize(
    ("response", "finish", "expected"),
    [
        ("<think>It stops midway.</think> \\boxed{1}", "stop", True),
        ("It concludes: \\boxed{0}", "stop", False),
        ("Perhaps \\boxed{1}?</think> No. \\boxed{0}.", "stop", False),
        ("Perhaps \\boxed{1}?</think> I cannot say.", "stop", None),
        ("\\boxed{yes}", "stop", None),
        ("it goes on and on", "length", None),
        ("<think>I am to write \\boxed{0} if step B is finished, so let me", "length", None),
        ("I am to write \\boxed{0} if step B is finished, so let me", "length", None),
        ("It stops midway.</think> \\boxed{1} because", "length", True),
    ],
)
@pytest.mark.parametrize("prompt", ["<user>Is it?<assistant>", "<user>Is it?<assistant><think>\n"])
def test_the_verdict_is_the_answer_of_a_response_that_came_to_one(response, finish, expected, prompt):
    assert verdict(Trace("a", "q", response, meta={"prompt": prompt, "finish": finish})) is expected


def test_the_second_round_goes_on_from_the_thoughts_of_the_first():
    meta = {"prompt": "<user>Is it?<assistant>", "problem_id": "p-0/1"}
    again = hurried(Trace(id="p-0/1#0", problem="Is it?", response="Step B begins to", meta=meta))
    assert again.id == "p-0/1"
    assert again.problem.startswith("<user>Is it?<assistant>Step B begins to\n\nThere is no time")
    assert again.problem.endswith("</think>\nThe final answer is \\boxed{")
    closed = hurried(Trace(id="a", problem="q", response="thought</think> so", meta=meta))
    assert closed.problem.count("</think>") == 1
    assert hurried(Trace(id="a", problem="q", response="said in a chat")) is None
    assert [hurried_verdict(text) for text in ("1}", " 0", "10", "yes", "")] == [True, False, True, None, None]


def test_verdicts_come_back_by_thought():
    assert by_trace([FOUND], {"p-0/0": True, "p-0/1": False, "p-0/2": None}) == [[1, 0, None]]
    assert planted([{**FOUND, "kinds": ["needed", "truncated", "close"]}, FOUND]) == [[0, 1, 0], [None] * 3]

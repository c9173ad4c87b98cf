"""The toy world's labels, read back from text."""

import pytest
from transformers import AutoTokenizer

import segrl
from segrl import Trace, toy
from segrl.toy.kinds import kinds_of, values_of

pytestmark = pytest.mark.skipif(not (toy.MODEL_PATH / "model.safetensors").exists(), reason="no model is bundled")
PROBLEM = "Modulo ten: b = a-4; z = b+2; a = 3+9. Write the values of a b as one number."


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(toy.MODEL_PATH)


def test_planted_kinds_are_read_back(tokenizer):
    for trace in toy.sample_traces(60, seed=3):
        trace = segrl.tokenize(trace, tokenizer)
        assert kinds_of(trace.problem, trace, segrl.segment(trace)) == trace.meta["kinds"]


def test_values_follow_definitions_in_any_order():
    assert values_of(PROBLEM) == {"a": 2, "b": 8, "z": 0}
    assert values_of("a = b+1; b = a+1") == {}


def test_a_sampled_response_by_hand(tokenizer):
    thoughts = [
        "Okay, a = 3+9 = 3.",  # wrong
        "Wait, a was wrong, a = 3+9 = 2.",
        "But wait, a = 3+9 = 2.",
        "However, z = b+2 = 0.",  # a distractor
        "Going back, b = a-4 = 8.",
        "Another look, let me check, hm.",
    ]
    response = "\n\n".join(thoughts) + "\n</think> So, the final answer is \\boxed{28}"
    trace = segrl.tokenize(Trace("t", PROBLEM, response, "28"), tokenizer)
    expected = ("wrong", "correction", "repeat", "superficial", "needed", "check", "answer")
    assert kinds_of(PROBLEM, trace, segrl.segment(trace)) == expected


@pytest.mark.parametrize("ask", ["all", "last"])
def test_planted_mistakes_are_read_back(tokenizer, ask):
    traces = toy.sample_traces(30, seed=3, ask=ask) + toy.sample_mistakes(60, seed=3, ask=ask)
    for trace in traces:
        trace = segrl.tokenize(trace, tokenizer)
        assert kinds_of(trace.problem, trace, segrl.segment(trace)) == trace.meta["kinds"]
    assert {"wrong", "carried", "needed", "repeat"} <= {kind for trace in traces for kind in trace.meta["kinds"]}


def test_a_mistake_is_carried_on_and_a_second_one_is_wrong_by_hand(tokenizer):
    problem = "Modulo ten: b = a-4; a = 3+9; c = b*7; d = c+1. Write the value of d."  # 2 8 6 7
    thoughts = [
        "Okay, a = 3+9 = 5.",  # wrong
        "Wait, a = 3+9 = 5.",  # says it again
        "Wait, b = a-4 = 1.",  # 5-4
        "Wait, b was wrong, b = a-4 = 3.",  # neither 8 nor 5-4
        "Wait, b = a-4 = 1.",  # not what was last stated of b, but it follows from a
        "Wait, c = b*7 = 1.",  # 3*7 no longer holds, nor does 1 follow from 1*7
        "Wait, c = b*7 = 6.",  # true, whatever b was
        "Wait, d = c+1 = 7.",
        "Wait, d = c+1 = 2.",  # 1+1 followed from the c that was replaced
    ]
    response = "\n\n".join(thoughts) + "\n</think> So, the final answer is \\boxed{7}"
    trace = segrl.tokenize(Trace("t", problem, response, "7"), tokenizer)
    expected = ("wrong", "repeat", "carried", "wrong", "carried", "wrong", "needed", "needed", "wrong", "answer")
    assert kinds_of(problem, trace, segrl.segment(trace)) == expected


def test_a_value_whose_operand_nobody_stated_is_not_carried(tokenizer):
    response = "Okay, b = a-4 = 1.\n</think> So, the final answer is \\boxed{1}"
    trace = segrl.tokenize(Trace("t", PROBLEM, response, "28"), tokenizer)
    assert kinds_of(PROBLEM, trace, segrl.segment(trace)) == ("wrong", "answer")

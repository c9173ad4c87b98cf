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

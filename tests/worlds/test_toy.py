"""The toy world as a world of truth: both questions, right and wrong solutions, few enough thoughts."""

import pytest

from segrl import toy
from segrl.grading import grade
from segrl.tokenization import tokenize_all
from segrl.worlds import WORLDS, world_traces


@pytest.mark.parametrize("ask", ["all", "last"])
@pytest.mark.parametrize("wrong", [False, True])
def test_kinds_line_up_and_answers_are_right_or_wrong(ask, wrong):
    traces = world_traces("toy", half="test", n=12, seed=0, ask=ask, wrong=wrong, most=8)
    tokenizer = toy.load_model()[1]
    for trace in tokenize_all(traces, tokenizer):
        segments = WORLDS["toy"].cut(trace)
        assert len(segments) == len(trace.kinds) <= 9
        assert ("wrong" in trace.kinds and "correction" not in trace.kinds) == wrong
        assert grade(trace.answer, trace.response).correct != wrong


def test_the_halves_are_of_the_toy_worlds_own_seeds():
    dev, test = (world_traces("toy", half=half, n=5, seed=450_000) for half in ("dev", "test"))
    assert [trace.response for trace in dev] == [trace.response for trace in toy.sample_traces(5, 900_000)]
    assert [trace.response for trace in test] == [trace.response for trace in toy.sample_traces(5, 900_001)]

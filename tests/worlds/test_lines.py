"""Human GSM8K solutions: what is taken out of them, and that each line is one thought of every tokenizer's."""

import json

import pytest
from testkit.real import real_file, smollm2_tokenizer
from testkit.tiny import byte_level_tokenizer

from segrl import tokenize
from segrl.grading import grade
from segrl.tokenization import tokenize_all
from segrl.worlds import WORLDS, world_traces
from segrl.worlds.lines import lines_of

SOLUTION = (
    "He drove 80*4=<<80*4=320>>320 miles\n\n"
    "The rest is 400-320=$<<400-320=80>>80.\n"
    "It takes 80/20=<<80/20=4>>4 hours, \n"
    "so 4+4=<<4+4=8>>8 in all\n"
    "#### 8"
)
LINES = ["He drove 80*4=320 miles", "The rest is 400-320=$80.", "It takes 80/20=4 hours,", "so 4+4=8 in all"]


@pytest.fixture
def path(tmp_path):
    rows = [
        {"id": "a", "problem": "How long?", "answer": "8", "solution": SOLUTION},
        {"id": "b", "problem": "How many?", "answer": "2", "solution": "1+1=<<1+1=2>>2\n#### 2"},
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return str(tmp_path / "rows.jsonl")


@pytest.fixture(params=["byte level", "SmolLM2"])
def tokenizer(request):
    return byte_level_tokenizer() if request.param == "byte level" else smollm2_tokenizer()


def texts(trace, segments) -> list[str]:
    ends = [int(trace.offsets_T[end - 1, 1]) for end in segments.boundaries[1:]]
    return [trace.response[a:b] for a, b in zip([0, *ends], ends, strict=False)]


def test_marks_blank_lines_and_the_answer_line_are_taken_out():
    assert lines_of(SOLUTION) == LINES


def test_each_line_is_a_thought_and_the_answer_stands_behind_them(path, tokenizer):
    [trace] = world_traces("lines", "all", None, seed=0, path=path)  # the other one has a single line
    assert (trace.id, trace.problem, trace.answer) == ("a", "How long?", "8")
    tokenised = tokenize(trace, tokenizer)
    segments = WORLDS["lines"].cut(tokenised)
    answer = r"</think> So, the final answer is \boxed{8}"
    assert texts(tokenised, segments) == [*(f"{line}\n" for line in LINES), answer]
    assert segments.kinds_S == ("thought",) * 4 + ("answer",)


def test_how_many_lines_is_an_option(path):
    assert [trace.id for trace in world_traces("lines", "all", None, 0, path=path, fewest=1, most=1)] == ["b"]
    with pytest.raises(ValueError, match="fewest=5 and most=4 lines"):
        world_traces("lines", "all", None, 0, path=path, fewest=5, most=4)


def test_a_missing_file_and_a_missing_solution_are_said(tmp_path, path):
    missing = tmp_path / "none.jsonl"
    with pytest.raises(FileNotFoundError, match=rf"world=lines reads .* none at '{missing}'.*give its place as path="):
        world_traces("lines", "dev", 1, seed=0, path=str(missing))
    (tmp_path / "bare.jsonl").write_text(json.dumps({"id": "a", "problem": "?", "answer": "8"}))
    with pytest.raises(ValueError, match="the row 'a' has no solution to take lines from"):
        world_traces("lines", "dev", 1, seed=0, path=str(tmp_path / "bare.jsonl"))


def test_all_of_gsm8k_is_cut_at_its_lines_and_graded_right(tokenizer):
    path = str(real_file("benchmarks/gsm8k_test.jsonl"))
    traces = world_traces("lines", "all", None, seed=0, path=path)
    assert len(traces) == 599  # of 600 with 3 to 6 line breaks before the answer's, one has a blank line among four
    for trace in tokenize_all(traces, tokenizer):
        *thoughts, answer = trace.response.split("\n")
        assert texts(trace, WORLDS["lines"].cut(trace)) == [*(f"{line}\n" for line in thoughts), answer]
        assert not any(mark in trace.response for mark in ("<<", ">>", "####"))
    assert all(grade(trace.answer, trace.response).correct for trace in traces[:50])

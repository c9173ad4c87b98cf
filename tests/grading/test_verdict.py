import threading

import pytest
from real import real_traces

import segrl
from segrl.grading.answer import extract


@pytest.mark.parametrize(
    ("gold", "pred", "correct", "status"),
    [
        ("27", "27", True, "exact"),
        ("27", " 27. ", True, "exact"),
        ("\\frac{1}{2}", "0.5", True, "symbolic"),
        ("27", "28", False, "symbolic"),
        ("27", None, False, "no_answer"),
        ("27", "", False, "no_answer"),
        ("1", "9^{9^{9^{9}}}", False, "refused"),
        ("1", "100000000!", False, "refused"),
        ("1", "1" * 501, False, "refused"),
    ],
)
def test_an_answer_is_judged(gold, pred, correct, status):
    verdict = segrl.grade_answer(gold, pred)
    assert (verdict.correct, verdict.status, verdict.pred, verdict.gold) == (correct, status, pred, gold)
    assert verdict.ms >= 0


@pytest.mark.parametrize(
    ("response", "thinking", "prompt", "answer"),
    [
        ("\\boxed{1}</think> \\boxed{2}", "auto", "", "2"),
        ("<think> \\boxed{1}", "auto", "", None),
        ("\\boxed{1}", "auto", "", "1"),
        ("\\boxed{1}", "auto", "...<think>\n", None),
        ("\\boxed{1}", "required", "", None),
        ("<think>\\boxed{1}", "none", "", "1"),
        ("\\boxed{1}</think> no box", "auto", "", None),
        ("a</think> \\boxed{1}</think> \\boxed{2}", "auto", "", "2"),
    ],
)
def test_a_box_inside_the_thinking_is_a_draft(response, thinking, prompt, answer):
    assert extract(response, thinking, prompt) == answer


def test_an_unknown_way_of_thinking_is_a_sentence():
    with pytest.raises(ValueError, match="thinking='maybe', expected one of"):
        extract("x", "maybe")


def test_real_traces_get_their_recorded_verdicts():
    verdicts = [segrl.grade(trace.answer, trace.response) for trace in real_traces()]
    assert [v.correct for v in verdicts] == [trace.meta["correct"] for trace in real_traces()]
    assert sum(v.correct for v in verdicts) == 38


def test_a_trace_cut_before_its_thinking_ends_has_no_answer():
    for trace in real_traces():
        cut = trace.response[: trace.response.index("</think>")]
        assert segrl.grade(trace.answer, cut, thinking="required").status == "no_answer"


def test_a_verdict_off_the_main_thread_is_the_same():
    found = []
    thread = threading.Thread(target=lambda: found.append(segrl.grade_answer("\\frac{1}{2}", "0.5")))
    thread.start()
    thread.join(60)
    assert [(v.correct, v.status) for v in found] == [(True, "symbolic")]

import pytest

from segrl.grading.answer import extract, last_answer


@pytest.mark.parametrize(
    ("response", "thinking", "prompt", "finish", "answer"),
    [
        ("\\boxed{1}</think> \\boxed{2}", "auto", "", None, "2"),
        ("<think> \\boxed{1}", "auto", "", None, None),
        ("\\boxed{1}", "auto", "", None, "1"),
        ("\\boxed{1}", "auto", "", "length", "1"),
        ("\\boxed{1}", "auto", "...<think>\n", None, None),
        ("\\boxed{1}", "auto", "...<think>\n", "length", None),
        ("\\boxed{1}", "none", "...<think>\n", "stop", "1"),
        ("\\boxed{1}", "none", "...<think>\n", "length", None),
        ("\\boxed{1}</think> \\boxed{2}", "none", "...<think>\n", "length", "2"),
        ("\\boxed{1}", "required", "", None, None),
        ("<think>\\boxed{1}", "none", "", None, "1"),
        ("\\boxed{1}</think> no box", "auto", "", None, None),
        ("a</think> \\boxed{1}</think> \\boxed{2}", "auto", "", None, "2"),
        ("the answer is 7", "auto", "", None, None),
    ],
)
def test_a_box_inside_the_thinking_is_a_draft(response, thinking, prompt, finish, answer):
    assert extract(response, thinking, prompt, finish) == answer


def test_an_unknown_way_of_thinking_is_a_sentence():
    with pytest.raises(ValueError, match="thinking='maybe', expected one of"):
        extract("x", "maybe")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("$\\boxed{-2} \\quad \\text{and} \\quad \\boxed{1}.$", "-2, 1"),
        ("\\(\\boxed{1}\\), \\(\\boxed{2}\\) or \\(\\boxed{3}\\)", "1, 2, 3"),
        ("\\boxed{1} then \\boxed{2}", "2"),
        ("\\boxed{1}\\boxed{2}", "2"),
        ("\\boxed{1}, so that the other is \\boxed{2}", "2"),
        ("first \\boxed{0} is wrong. \\boxed{1} and \\boxed{2}", "1, 2"),
        ("no box", None),
    ],
)
def test_boxes_that_are_joined_are_one_answer(text, answer):
    assert last_answer(text) == answer


def test_boxes_side_by_side_are_joined_where_a_gold_has_them():
    assert last_answer("$\\boxed{1}\\boxed{2}$", adjacent=True) == "1, 2"

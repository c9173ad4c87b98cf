from itertools import product

import pytest
from testkit.readme import ROOT

from segrl.grading.answer import choice, explosive, extract, last_answer, same_choice
from segrl.grading.latex import tidy

VALUES = {
    "thinking": ("auto", "required", "none"),
    "opened": ("prompt", "response", "neither"),
    "closed": ("yes", "last", "no"),
    "finish": ("stop", "length", "unknown"),
}
OUTCOMES = {"after the last `</think>`": "after", "of the response": "whole"}


def documented() -> dict[tuple[str, ...], str]:
    """Each case of the table in docs/concepts.md and its box: ``after`` the tag, ``whole`` response, ``none``."""
    found = {}
    lines = (ROOT / "docs" / "concepts.md").read_text().splitlines()
    header = next(i for i, line in enumerate(lines) if line.startswith("| `thinking=` |"))
    for line in lines[header + 2 :]:
        if not line.startswith("|"):
            return found
        *cells, outcome = (cell.strip() for cell in line.strip("|").split("|"))
        named = zip(VALUES.values(), cells, strict=True)
        listed = [all_values if cell == "any" else cell.replace("`", "").split(", ") for all_values, cell in named]
        for case in product(*listed):
            assert case not in found, f"{line} names a case again: {case}"
            found[case] = OUTCOMES.get(outcome) or outcome.partition(":")[0]
    return found


def test_the_table_names_every_case_once():
    assert sorted(documented()) == sorted(product(*VALUES.values()))


@pytest.mark.parametrize(("case", "outcome"), documented().items(), ids=lambda value: "-".join(value))
def test_the_answer_is_the_box_that_the_table_names(case, outcome):
    thinking, opened, closed, finish = case
    prompt, before = "...<think>\n" if opened == "prompt" else "...", "<think>" if opened == "response" else ""
    known = None if finish == "unknown" else finish
    if closed == "no":
        boxes = {"whole": "2", "none": None}
        assert extract(f"{before}\\boxed{{1}} \\boxed{{2}}.", thinking, prompt, known) == boxes[outcome]
        return
    boxes = {"whole": "1", "after": None, "none": None}
    if closed == "last":
        assert extract(f"{before}\\boxed{{1}}.\n</think>\n", thinking, prompt, known) == boxes[outcome]
        return
    assert extract(f"{before}\\boxed{{1}}</think> no box", thinking, prompt, known) == boxes[outcome]
    assert extract(f"{before}\\boxed{{1}}</think> \\boxed{{2}}</think> \\boxed{{3}}", thinking, prompt, known) == "3"


def test_a_response_without_a_box_has_no_answer():
    assert extract("the answer is 7", finish="stop") is None


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


@pytest.mark.parametrize(
    "text",
    [
        *("9^{9^{9}}", "5^{\\left(5^{5}\\right)}", "2^3^4", "100000000!", "((10!)!)!", "7^{1000000}", "1000000^{x}"),
        *("\\binom{1000000}{5}", "\\Gamma(5)", "__import__(1)", "\\sqrt{" * 30 + "2" + "}" * 30),
    ],
)
def test_what_no_computer_algebra_is_asked(text):
    assert explosive(text)


@pytest.mark.parametrize("text", ["x^2+1", "10^{100}", "\\sum_{k=1}^{n} k^2", "5!", "2^{n}-n-1", "\\int_0^1 x^2 dx"])
def test_what_it_is_asked(text):
    assert not explosive(text)


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        *[(text, "C") for text in ("C", "(C)", "\\text{C}", "C.", "C)", "\\textbf{(C)}\\ 12", "Option C", "C: 5 eV")],
        *[(text, "C") for text in ("Answer: C", "the answer is (C)", "C Cecile", "\\mathbf{C}")],
        *[(text, None) for text in ("C, D", "CD", "C + 1", "C = 5", "12", "A) 1 B) 2", "answer is C or D", "Z")],
    ],
)
def test_the_letter_an_answer_names(text, letter):
    found = choice(tidy(text))
    assert (found and found[0]) == letter


def test_only_a_gold_in_capitals_is_a_choice():
    assert same_choice("B", "b") is True
    assert same_choice("b", "B") is None
    assert same_choice("B", "12") is None
    assert same_choice("D", "C") is False

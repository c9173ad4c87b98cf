import pytest

from segrl.text.boxed import boxed_spans, last_boxed


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        ("so \\boxed{7}", "7"),
        ("\\boxed{1} then \\boxed{ 2 }", "2"),
        ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),
        ("\\fbox{3} \\boxed {4}", "4"),
        ("\\boxed{1} and \\boxed{2", "1"),
        ("\\boxed{\\boxed{5}}", "5"),
        ("\\boxed{}", ""),
        ("no box", None),
        ("\\boxed{never closed", None),
        ("\\boxed{a\\\\}", "a\\\\"),
    ],
)
def test_the_last_balanced_box(text, inside):
    assert last_boxed(text) == inside


def test_hostile_text_takes_one_pass():
    """Far above the milliseconds it takes; a pass for each opening would take hours."""
    assert last_boxed("\\boxed{1}" + "\\boxed{" * 200_000) == "1"
    assert last_boxed("{" * 200_000 + "\\boxed{2}") == "2"


def test_spans_are_what_the_boxes_hold():
    text = "\\boxed{1} x \\boxed{\\frac{1}{2}} \\boxed{"
    assert [text[a:b] for a, b in boxed_spans(text)] == ["1", "\\frac{1}{2}"]

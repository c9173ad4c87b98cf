import mpmath
import pytest

from segrl.grading.latex import tidy
from segrl.grading.parser import read
from segrl.grading.rationals import TooBig
from segrl.grading.values import same, value


def tree(text: str):
    return read(tidy(text))


@pytest.mark.parametrize("text", ["e^{10^{10}}", "\\sqrt{2}^{10^9}", "(\\pi!)^{10^6}", "(10^4\\pi)!"])
def test_an_irrational_that_is_too_big_is_not_computed(text):
    with pytest.raises(TooBig):
        value(tree(text), {})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\\sqrt[3]{-8}", -2),
        ("\\log_2 10", mpmath.log(10, 2)),
        ("\\sin^2 1", mpmath.sin(1) ** 2),
        ("\\sin^{-1} 1", mpmath.pi / 2),
        ("\\sin 2\\pi/3", mpmath.sin(2 * mpmath.pi) / 3),
        ("\\cos\\frac{\\pi}{3}", 0.5),
        ("e^{i\\pi}", -1),
        ("2\\sqrt2^3", 2 * mpmath.sqrt(2) ** 3),
        ("\\lfloor -1.5 \\rfloor", -2),
        ("30^\\circ", mpmath.pi / 6),
    ],
)
def test_an_irrational_has_its_value(text, expected):
    assert abs(value(tree(text), {}) - expected) < 1e-14


@pytest.mark.parametrize(
    ("left", "right", "verdict"),
    [
        ("\\sqrt{2}+\\sqrt{3}", "\\sqrt{5+2\\sqrt{6}}", True),
        ("\\cos 90^\\circ", "0", True),
        ("\\cos 90^\\circ", "e^{-100}", False),
        ("0", "e^{-100}", False),
        ("\\sqrt{x^2}", "|x|", True),
        ("\\sqrt{x^2}", "x", False),
        ("\\sqrt{a}\\sqrt{b}", "\\sqrt{ab}", True),
        ("2\\arcsin\\sqrt{a}", "\\arccos(1-2a)", True),
        ("\\cos n\\pi", "(-1)^n", True),
        ("\\sin n\\pi", "(-1)^n", False),
        ("f(x+1)", "f(1+x)", True),
        ("f(x)", "f(y)", False),
        ("f(x)", "g(x)", False),
        ("\\frac{x^2-1}{x-1}", "x+1", True),
    ],
)
def test_expressions_are_compared_by_their_values(left, right, verdict):
    assert same(tree(left), tree(right)) is verdict
    assert same(tree(right), tree(left)) is verdict

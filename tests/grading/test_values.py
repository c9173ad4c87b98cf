from fractions import Fraction

import mpmath
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segrl.grading.latex import tidy
from segrl.grading.parser import Unreadable, read
from segrl.grading.values import NotExact, TooBig, Undefined, exact, same, value


def tree(text: str):
    return read(tidy(text))


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("2^{-3}", Fraction(1, 8)),
        ("-2^2", Fraction(-4)),
        ("\\frac{1}{2}+\\frac13", Fraction(5, 6)),
        ("3\\cdot 4 - 10/4", Fraction(19, 2)),
        ("1/2/2", Fraction(1, 4)),
        ("5!", Fraction(120)),
        ("\\binom{5}{2}", Fraction(10)),
        ("1.5e3", Fraction(1500)),
        ("|2-5|", Fraction(3)),
        ("0.1\\overline{6}", Fraction(1, 6)),
        ("2\\frac{1}{3}", Fraction(7, 3)),
        ("2(3)(4)", Fraction(24)),
        ("\\gcd(12, 18)", Fraction(6)),
        ("0^0", Fraction(1)),
        ("(-1)^{101}", Fraction(-1)),
    ],
)
def test_a_rational_is_exact(text, number):
    assert exact(tree(text)) == number


@pytest.mark.parametrize(
    "text", ["9^{9^9}", "7^{1000000}", "1000!", "\\binom{10000}{5}", "10^{99999}", "1e9999", "\\frac{1}{2^{10000}}"]
)
def test_a_number_that_is_too_big_is_not_computed(text):
    with pytest.raises(TooBig):
        exact(tree(text))


@pytest.mark.parametrize("text", ["e^{10^{10}}", "\\sqrt{2}^{10^9}", "(\\pi!)^{10^6}", "(10^4\\pi)!"])
def test_an_irrational_that_is_too_big_is_not_computed(text):
    with pytest.raises(TooBig):
        value(tree(text), {})


def test_what_is_not_rational_or_not_defined_says_so():
    for text in ("\\sqrt{2}", "\\pi", "x", "2^{1/2}"):
        with pytest.raises(NotExact):
            exact(tree(text))
    for text in ("\\frac{1}{0}", "0^{-1}"):
        with pytest.raises(Undefined):
            exact(tree(text))


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


@settings(max_examples=60, deadline=None)
@given(st.integers(-30, 30), st.integers(1, 30), st.integers(-30, 30), st.integers(1, 30), st.sampled_from("+-*/"))
def test_arithmetic_is_pythons(a, b, c, d, sign):
    left, right = Fraction(a, b), Fraction(c, d)
    if sign == "/" and not right:
        return
    expected = {"+": left + right, "-": left - right, "*": left * right, "/": left / (right or 1)}[sign]
    assert exact(tree(f"({a}/{b}) {sign} \\left(\\frac{{{c}}}{{{d}}}\\right)")) == expected


@pytest.mark.parametrize(
    "text", ["(" * 500 + "1" + ")" * 500, "\\frac{1}{", "1 2", "2 +", "7 > ", "\\sum_1^2 k", "^2", "}{"]
)
def test_what_is_not_in_the_grammar_is_unreadable(text):
    with pytest.raises(Unreadable):
        tree(text)

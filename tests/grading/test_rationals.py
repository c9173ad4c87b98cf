from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segrl.grading.latex import tidy
from segrl.grading.parser import read
from segrl.grading.rationals import NotExact, TooBig, Undefined, exact


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


def test_what_is_not_rational_or_not_defined_says_so():
    for text in ("\\sqrt{2}", "\\pi", "x", "2^{1/2}"):
        with pytest.raises(NotExact):
            exact(tree(text))
    for text in ("\\frac{1}{0}", "0^{-1}"):
        with pytest.raises(Undefined):
            exact(tree(text))


@settings(max_examples=60, deadline=None)
@given(st.integers(-30, 30), st.integers(1, 30), st.integers(-30, 30), st.integers(1, 30), st.sampled_from("+-*/"))
def test_arithmetic_is_pythons(a, b, c, d, sign):
    left, right = Fraction(a, b), Fraction(c, d)
    if sign == "/" and not right:
        return
    expected = {"+": left + right, "-": left - right, "*": left * right, "/": left / (right or 1)}[sign]
    assert exact(tree(f"({a}/{b}) {sign} \\left(\\frac{{{c}}}{{{d}}}\\right)")) == expected

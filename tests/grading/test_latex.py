import pytest

from segrl.grading.latex import key, tidy


@pytest.mark.parametrize(
    ("written", "tidied"),
    [
        ("\\dfrac12", "\\frac 12"),
        ("$5$.", "5"),
        ("\\left(1,\\,2\\right)", "(1, 2 )"),
        ("1{,}000", "1000"),
        ("11,\\! 111,\\! 100", "11111100"),
        ("1\\,000\\,000", "1000000"),
        ("1 000 000", "1000000"),
        ("1 2", "1 2"),
        ("2 × 10⁻³", "2 \\times 10^{-3}"),
        ("½", "\\frac {1}{2}"),
        ("0.\\overline{36}", "\\frac{36}{99}"),
        ("\\text{5 cm}", "5 \\w{cm}"),
        ("5cm", "5\\w{cm}"),
        ("xyz", "xyz"),
        ("abcd", "abcd"),
        ("even", "\\w{even}"),
        ("2 pi", "2 \\pi"),
        ("\\mathrm{sin} x", "\\sin x"),
        ("\\mathbf{v}", "v"),
        ("12^{\\mathrm{th}}", "12"),
        ("\\boxed{7}", "7"),
        ("\x0crac{1}{2}", "\\frac {1}{2}"),
        ("\\\\frac{1}{2}", "\\frac {1}{2}"),
    ],
)
def test_one_spelling(written, tidied):
    assert tidy(written) == tidied


def test_spaces_count_between_digits_alone():
    assert key(tidy("x + 1")) == key(tidy("x+1"))
    assert key(tidy("1 1/2")) != key(tidy("11/2"))

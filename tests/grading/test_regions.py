import pytest

from segrl.grading.latex import tidy
from segrl.grading.parser import read
from segrl.grading.regions import NoRegion, region, same_region


def of(text: str):
    return region(read(tidy(text)))


@pytest.mark.parametrize(
    ("left", "right", "verdict"),
    [
        ("x>3", "(3,\\infty)", True),
        ("x>3", "[3,\\infty)", False),
        ("3 \\le x < 5", "[3,5)", True),
        ("5 > x \\ge 3", "[3,5)", True),
        ("[1,2]\\cup[2,3]", "[1,3]", True),
        ("[1,2)\\cup(2,3]", "[1,3]", False),
        ("[1,2)\\cup(2,3]", "[1,3]\\setminus\\{2\\}", True),
        ("(1,5)\\cap(3,9)", "(3,5)", True),
        ("x \\ne 0", "(-\\infty,0)\\cup(0,\\infty)", True),
        ("x > 1 \\text{ and } x < 2", "(1,2)", True),
        ("x < 1 \\text{ or } x > 2", "(2,\\infty)\\cup(-\\infty,1)", True),
        ("x < 1 \\text{ or } x = 2", "(-\\infty,1)\\cup\\{2\\}", True),
        ("|x| < 2", "(-2,2)", True),
        ("|x| \\ge 2", "(-\\infty,-2]\\cup[2,\\infty)", True),
        ("\\{x \\mid x^2 < 2\\}", "(-\\sqrt{2},\\sqrt{2})", None),
        ("(\\sqrt{2},\\sqrt{3})", "\\left(2^{1/2},3^{1/2}\\right)", True),
        ("(a,b)", "a<x<b", True),
        ("\\mathbb{R}", "(-\\infty,\\infty)", True),
    ],
)
def test_sets_of_reals(left, right, verdict):
    if verdict is None:
        with pytest.raises(NoRegion):
            of(left)
        return
    assert same_region(of(left), of(right)) is verdict
    assert same_region(of(right), of(left)) is verdict


@pytest.mark.parametrize("text", ["(3,-1)", "(1,2,3)", "7", "x+y>1", "(1,2),(3,4)x"])
def test_what_is_no_set_of_reals(text):
    with pytest.raises(NoRegion):
        of(text)

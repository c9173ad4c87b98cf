import pytest

from segrl.grading.latex import tidy
from segrl.grading.parser import read
from segrl.grading.tokens import Unreadable


@pytest.mark.parametrize(
    "text", ["(" * 500 + "1" + ")" * 500, "\\frac{1}{", "1 2", "2 +", "7 > ", "\\sum_1^2 k", "^2", "}{"]
)
def test_what_is_not_in_the_grammar_is_unreadable(text):
    with pytest.raises(Unreadable):
        read(tidy(text))

"""The tokens of a tidied answer, which the grammar in ``expressions.py`` and ``parser.py`` takes from the left."""

from __future__ import annotations

import re
from fractions import Fraction

from segrl.grading.tree import Node

DEEPEST = 100
TOKEN = re.compile(
    r"\s*(?:(?P<word>\\w\{[^{}]*\})|(?P<begin>\\(?:begin|end)\s*\{[a-z]*matrix\})|(?P<cmd>\\[A-Za-z]+|\\.)"
    r"|(?P<based>\d+_(?:\{\d+\}|\d(?!\d)))|(?P<sci>(?:\d+\.?\d*|\.\d+)[eE][+-]?\d+(?![\d.]))|(?P<num>\d+\.?\d*|\.\d+)"
    r"|(?P<op><=|>=|!=|\*\*|.))",
    re.DOTALL,
)

RELATIONS = {
    "=": "=", "<": "<", ">": ">", "<=": "<=", ">=": ">=", "!=": "!=", "\\le": "<=", "\\ge": ">=", "\\ne": "!=",
    "\\approx": "~", "\\equiv": "mod", "\\in": "in", "\\to": "to", "\\Rightarrow": "to", "\\implies": "to",
    "\\cong": "~", "\\notin": "notin", "\\perp": "perp", "\\parallel": "parallel", "\\subset": "subset",
    "\\subseteq": "subset", "\\doteq": "~", "\\propto": "propto",
}  # fmt: skip


class Unreadable(ValueError):
    """A text that is not in the grammar."""


class Tokens:
    """Tokens as pairs (kind, text), and the place ``at`` of the next one."""

    def __init__(self, text: str):
        self.tokens: list[tuple[str, str]] = [
            (str(match.lastgroup), match[str(match.lastgroup)]) for match in TOKEN.finditer(text) if match[0].strip()
        ]
        self.at = 0
        self.depth = 0
        self.bars = 0  # open |...|, or a set's bar: an operand cannot begin with one

    def peek(self, ahead: int = 0) -> str:
        at = self.at + ahead
        return self.tokens[at][1] if at < len(self.tokens) else ""

    def kind(self, ahead: int = 0) -> str:
        at = self.at + ahead
        return self.tokens[at][0] if at < len(self.tokens) else ""

    def word(self, ahead: int = 0) -> str:
        """The next token if it is a word, in lower case."""
        return self.peek(ahead)[3:-1].lower() if self.kind(ahead) == "word" else ""

    def take(self) -> str:
        self.at += 1
        return self.tokens[self.at - 1][1] if self.at <= len(self.tokens) else ""

    def took(self, *wanted: str) -> bool:
        if self.peek() in wanted and self.peek():
            self.at += 1
            return True
        return False

    def need(self, wanted: str) -> None:
        if not self.took(wanted):
            raise Unreadable(f"{self.peek()!r} where {wanted!r} was due")


def literal(token: str) -> Node:
    """The node of a number, with the count of digits after its point, which says how far it was rounded."""
    mantissa, _, exponent = re.sub("E", "e", token).partition("e")
    if len(exponent) > 4:
        raise Unreadable(f"the exponent {exponent}")
    places = len(mantissa.partition(".")[2]) - int(exponent or 0) if "." in mantissa or exponent else None
    return (
        "num",
        Fraction(mantissa if mantissa[-1] != "." else mantissa[:-1]) * Fraction(10) ** int(exponent or 0),
        places,
    )

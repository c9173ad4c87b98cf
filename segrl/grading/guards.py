r"""What no computer algebra should be asked: towers, large factorials, huge powers, deep nesting, long text."""

from __future__ import annotations

import re

LONGEST = 1000
DEEPEST = 20
_SUSPECT = re.compile(
    r"\^\s*[{(][^{}]*\d[)\]]*\s*\^|\^\s*\d+\s*\^"  # a tower of numbers
    r"|\d{3,}\s*[)}\]]*\s*!|[)}\]]\s*!|!\s*!|\d!\s*[)\]}]*\s*[!^]"  # factorials of what may be large
    r"|\\[dt]?binom\s*\{?\s*\d{4,}|\\choose|\\Gamma|\\Beta|\\zeta\s*[({]"
    r"|\^\s*\{?\s*\(?\s*-?\s*\d{4,}"  # huge powers
    r"|\d{6,}\s*[)}]*\s*\^"
    r"|\d{400,}|__"
)


def too_long(text: str) -> bool:
    return len(text) > LONGEST


def explosive(text: str) -> bool:
    """Whether a text may cost a computer algebra more than it is worth."""
    return _deep(text) or bool(_SUSPECT.search(text))


def _deep(text: str) -> bool:
    depth = deepest = 0
    for character in text:
        depth += (character in "{([") - (character in "})]")
        deepest = max(deepest, depth)
    return deepest > DEEPEST

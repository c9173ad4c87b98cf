r"""Where the ``\boxed{...}`` of a text stand, braces balanced."""

from __future__ import annotations

import re

OPENING = re.compile(r"\\f?boxed\s*\{")


def boxed_spans(text: str) -> list[tuple[int, int]]:
    """The ``(start, end)`` characters inside each balanced box, in order of their openings."""
    return [(match.end(), end) for match in OPENING.finditer(text) if (end := _closing(text, match.end())) is not None]


def last_boxed(text: str) -> str | None:
    """What the last balanced box holds, or None."""
    for match in reversed(list(OPENING.finditer(text))):
        end = _closing(text, match.end())
        if end is not None:
            return text[match.end() : end].strip()
    return None


def _closing(text: str, start: int) -> int | None:
    depth = 1
    for match in re.compile(r"\\.|[{}]", re.DOTALL).finditer(text, start):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if depth == 0:
            return match.start()
    return None

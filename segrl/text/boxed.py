r"""Where ``\boxed{...}`` stands in a text, with balanced braces; a single pass over any text."""

from __future__ import annotations

import re

MARKS = re.compile(r"\\{1,2}f?boxed\s*\{|\\.|[{}]", re.DOTALL)  # two backslashes: a text that was escaped twice


def boxed_spans(text: str) -> list[tuple[int, int]]:
    """The ``(start, end)`` characters inside each balanced box, in order of their openings."""
    first = text.find("boxed")  # braces before it belong to no box
    if first < 0:
        return []
    spans = []
    open_braces: list[int | None] = []  # where a box's inside starts, None for any other brace
    for mark in MARKS.finditer(text, max(0, first - 3)):
        if mark[0] == "}":
            start = open_braces.pop() if open_braces else None
            if start is not None:
                spans.append((start, mark.start()))
        elif mark[0].endswith("{") and mark[0] != "\\{":
            open_braces.append(None if mark[0] == "{" else mark.end())
    return sorted(spans)


def last_boxed(text: str) -> str | None:
    """The text inside the last balanced box, or None."""
    spans = boxed_spans(text)
    return text[slice(*spans[-1])].strip() if spans else None

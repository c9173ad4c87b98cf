"""The kind of each thought of a sampled toy response, read from its text.

A sampled thought that no pattern fits counts as a check: neither needed nor redundant.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from segrl.toy.world import CLOSES, PATH, modulo_ten
from segrl.types import Segments, TokenisedTrace

_DEFINITION = re.compile(r"\b([a-z]) = ([a-z]|\d)([-+*])(\d)")
_STATED = re.compile(_DEFINITION.pattern + r" = (\d)(?!\d)")
_SUPERFICIAL = re.compile(r"\bn = \d|\b(\d) = n\b|\b(\d)[-+]0 = \d as it is")


def kinds_of(problem: str, trace: TokenisedTrace, segments: Segments) -> tuple[str, ...]:
    """The kind of each segment of the response to ``problem``."""
    values = values_of(problem)
    definitions = {match[1]: match[0] for match in _DEFINITION.finditer(problem)}
    ends = [int(trace.offsets_T[end - 1, 1]) for end in segments.boundaries[1:]]
    said: dict[str, set[str]] = {}
    kinds = []
    for kind, start, end in zip(segments.kinds_S, [0, *ends], ends, strict=False):
        text = trace.response[start:end]
        kinds.append("answer" if kind == "answer" else _kind(text, values, definitions, said))
    return tuple(kinds)


def values_of(problem: str) -> dict[str, int]:
    """The value of each variable; a variable whose definition is circular has none."""
    steps = {name: (left, op, int(right)) for name, left, op, right in _DEFINITION.findall(problem)}
    values: dict[str, int] = {}
    for _ in steps:
        for name, (left, op, right) in steps.items():
            if left.isdigit() or left in values:
                values[name] = modulo_ten(op, int(left) if left.isdigit() else values[left], right)
    return values


def _kind(text: str, values: Mapping[str, int], definitions: Mapping[str, str], said: dict[str, set[str]]) -> str:
    """The kind of a thought; ``said`` holds the values that thoughts have stated of each variable, and grows."""
    if any(close in text for close in CLOSES):
        return "close"
    if "together that makes" in text:
        return "restated"
    stated = _STATED.search(text)
    if stated and definitions.get(stated[1]) == stated[0].rpartition(" = ")[0]:
        return _kind_of_step(stated[1], stated[5], "was wrong" in text, values, said)
    if _DEFINITION.search(text) and "..." in text:
        return "truncated"
    return "superficial" if _SUPERFICIAL.search(text) else "check"


def _kind_of_step(name: str, value: str, corrects: bool, values: Mapping[str, int], said: dict[str, set[str]]) -> str:
    before = said.setdefault(name, set())
    known = str(values.get(name)) in before
    before.add(value)
    if name not in PATH:
        return "superficial"  # a distractor: true or not, the answer does not hang on it
    if value != str(values.get(name)):
        return "wrong"
    if known:
        return "repeat"
    return "correction" if corrects else "needed"

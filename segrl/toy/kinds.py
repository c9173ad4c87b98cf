"""The kind of each thought of a sampled toy response, read from its text.

A thought that states a false value is ``wrong``, but ``carried`` where the value follows from what was last stated of
its operand, and a ``repeat`` where it says again what was last stated. A sampled thought that no pattern fits counts as
a check: neither needed nor redundant.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping

from segrl.toy.problems import PATH, Step, modulo_ten
from segrl.toy.wording import CLOSES
from segrl.types import Segments, TokenisedTrace

_DEFINITION = re.compile(r"\b([a-z]) = ([a-z]|\d)([-+*])(\d)")
_STATED = re.compile(_DEFINITION.pattern + r" = (\d)(?!\d)")
_SUPERFICIAL = re.compile(r"\bn = \d|\b(\d) = n\b|\b(\d)[-+]0 = \d as it is")


def kinds_of(problem: str, trace: TokenisedTrace, segments: Segments) -> tuple[str, ...]:
    """The kind of each segment of the response to ``problem``."""
    definitions = {match[1]: match[0] for match in _DEFINITION.finditer(problem)}
    solved = Solved(values_of(problem))
    ends = [int(trace.offsets_T[end - 1, 1]) for end in segments.boundaries[1:]]
    kinds = []
    for kind, start, end in zip(segments.kinds_S, [0, *ends], ends, strict=False):
        text = trace.response[start:end]
        kinds.append("answer" if kind == "answer" else _kind(text, definitions, solved))
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


class Solved:
    """The values that thoughts have stated of each variable, beside the true ones; it grows thought by thought."""

    def __init__(self, values: Mapping[str, int]):
        self.values = values
        self.stated: dict[str, list[int]] = defaultdict(list)

    def kind(self, step: Step, corrects: bool) -> str:
        """The kind of a thought that states ``step``."""
        name, true = step.name, self.values.get(step.name)
        before = list(self.stated[name])
        self.stated[name].append(step.value)
        if name not in PATH:
            return "superficial"  # a distractor: true or not, the answer does not depend on it
        if step.value == true:
            return "repeat" if true in before else "correction" if corrects else "needed"
        if step.value in before[-1:]:
            return "repeat"
        operand = self.stated[step.left]
        follows = bool(operand) and modulo_ten(step.op, operand[-1], step.right) == step.value
        return "carried" if follows else "wrong"


def _kind(text: str, definitions: Mapping[str, str], solved: Solved) -> str:
    if any(close in text for close in CLOSES):
        return "close"
    if "together that makes" in text:
        return "restated"
    stated = _STATED.search(text)
    if stated and definitions.get(stated[1]) == stated[0].rpartition(" = ")[0]:
        name, left, op, right, value = stated.groups()
        return solved.kind(Step(name, left, op, int(right), int(value)), "was wrong" in text)
    if _DEFINITION.search(text) and "..." in text:
        return "truncated"
    return "superficial" if _SUPERFICIAL.search(text) else "check"

"""The tree of an answer: a node is a plain tuple, and its first member names its kind.

Values: ``num`` (value, digits after the point or None), ``var``, ``const``, ``add``, ``mul``, ``div``, ``neg``,
``pow``, ``root``, ``abs``, ``fact``, ``binom``, ``call``, ``pm``. Values that say how they are written: ``percent``,
``deg``, ``unit``, ``ratio``, ``based``. Forms: ``seq`` (opening, items, closing), ``list`` (items, joined by),
``matrix`` (rows), ``rel`` (signs, members), ``builder``, ``union``, ``inter``, ``minus``, ``clause``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

from segrl.grading.vocabulary import KNOWN_CALLS, names

Node = tuple[Any, ...]

INFINITY: Node = ("const", "infty")
EMPTY: Node = ("seq", "{", (), "}")


def number(value: int | Fraction) -> Node:
    return ("num", Fraction(value), None)


def walk(node: Node) -> Iterator[Node]:
    """The node and all below it."""
    yield node
    for child in children(node):
        yield from walk(child)


def children(node: Node) -> Iterator[Node]:
    for part in node[1:]:
        if isinstance(part, tuple) and part:
            if isinstance(part[0], str) and part[0] in KINDS:
                yield part
            else:
                yield from children(("", *part))


KINDS = names(
    "num var const add mul div neg pow root abs fact binom call pm percent deg unit ratio based seq list matrix rel"
    " builder union inter minus clause"
)
CLOSED_FORMS = KINDS - names("seq list matrix rel builder union inter minus clause")


def variables(node: Node) -> frozenset[str]:
    """The letters a tree holds, and the functions it does not know."""
    unknown = (part for part in walk(node) if part[0] == "var" or (part[0] == "call" and part[1] not in KNOWN_CALLS))
    return frozenset(part[1] for part in unknown)


def is_value(node: Node) -> bool:
    """Whether the node stands for one number or expression, not for a list, set, tuple or relation."""
    return all(part[0] in CLOSED_FORMS for part in walk(node))


def rebuild(node: Node, change: Callable[[Node], Node | None]) -> Node:
    """The tree with each node replaced by what ``change`` returns for it, and kept where that is None."""
    new = change(node)
    if new is not None:
        return new

    def inside(part: Any) -> Any:
        if not isinstance(part, tuple) or not part:
            return part
        if isinstance(part[0], str) and part[0] in KINDS:
            return rebuild(part, change)
        return tuple(inside(p) for p in part)

    return (node[0], *(inside(part) for part in node[1:]))


def signs(node: Node) -> list[Node]:
    r"""One tree per choice of sign: ``1 \pm 2`` is ``1 + 2`` and ``1 - 2``; ``\mp`` takes the other sign."""
    if not any(part[0] == "pm" for part in walk(node)):
        return [node]

    def choose(upper: bool) -> Callable[[Node], Node | None]:
        def change(part: Node) -> Node | None:
            if part[0] != "pm":
                return None
            _, sign, left, right = part
            right = rebuild(right, change)
            right = right if (sign == "pm") == upper else ("neg", right)
            return right if left is None else ("add", (rebuild(left, change), right))

        return change

    return [rebuild(node, choose(True)), rebuild(node, choose(False))]

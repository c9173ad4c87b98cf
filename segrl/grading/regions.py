r"""Sets of real numbers as intervals: ``x > 3``, ``(3, \infty)``, ``\{x \mid x > 3\}``, ``[1, 2] \cup \{5\}``."""

from __future__ import annotations

from contextlib import suppress
from functools import cmp_to_key
from typing import NamedTuple

from segrl.grading.rationals import Undefined
from segrl.grading.tree import INFINITY, Node, is_value, number, variables
from segrl.grading.values import same, value
from segrl.grading.vocabulary import KNOWN_CALLS

FLIPPED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "=": "=", "!=": "!="}
MINUS_INFINITY: Node = ("neg", INFINITY)
REALS = "R"
MOST_PAIRS = 40


class Interval(NamedTuple):
    """From ``low`` to ``high``, each with whether it belongs to the interval; a point is closed at both ends."""

    low: Node
    low_in: bool
    high: Node
    high_in: bool


Region = tuple[Interval, ...]
LINE = Interval(MINUS_INFINITY, False, INFINITY, False)


class NoRegion(ValueError):
    """Not a set of real numbers that intervals describe."""


def region(node: Node) -> Region:
    """The intervals a node stands for; a pair in brackets is read as one interval."""
    kind = node[0]
    if kind == "rel":
        return _relation(node)
    if kind == "seq" and node[1] == "{":
        return tuple(_point(item) for item in node[2])
    if kind == "seq" and len(node[2]) == 2 and all(map(is_value, node[2])):
        interval = Interval(node[2][0], node[1] == "[", node[2][1], node[3] == "]")
        if _empty(interval):
            raise NoRegion("a pair whose second member is not the larger")
        return (interval,)
    if kind == "union":
        return tuple(interval for member in node[1] for interval in region(member))
    if kind == "inter":
        return _meet(region(node[1][0]), region(node[1][1]))
    if kind == "minus":
        return _meet(region(node[1][0]), _outside(region(node[1][1])))
    if kind == "builder":
        return region(node[2])
    if kind == "list" and all(item[0] in ("rel", "seq", "union") for item in node[1]):
        return _several(node)
    if node == ("var", REALS):
        return (LINE,)
    raise NoRegion(kind)


def _several(node: Node) -> Region:
    """The region of several conditions: ``or`` unites them, ``and`` and a comma between inequalities intersect them."""
    parts = [region(item) for item in node[1]]
    points = all(item[0] == "rel" and set(item[1]) == {"="} for item in node[1])
    if node[2] == "or" or points or not all(item[0] == "rel" for item in node[1]):
        return tuple(interval for part in parts for interval in part)
    common = parts[0]
    for part in parts[1:]:
        common = _meet(common, part)
    return common


def _point(node: Node) -> Interval:
    if not is_value(node):
        raise NoRegion("a set of more than values")
    return Interval(node, True, node, True)


def _relation(node: Node) -> Region:
    ops, members = node[1], node[2]
    if ops == ("in",):
        return region(members[1])
    if len(ops) == 2 and ops[1] == "in":
        raise NoRegion("two relations")
    if not all(map(is_value, members)) or not set(ops) <= set(FLIPPED):
        raise NoRegion("a relation of another kind")
    values: Region = (LINE,)
    middle = 1 if len(ops) == 2 or not _is_unknown(members[0]) else 0
    if len(ops) > 2 or not _is_unknown(members[middle]):
        raise NoRegion("a relation without its variable alone")
    for at, op in enumerate(ops):
        bound = members[at + 1] if middle == at else members[at]
        values = _meet(values, _bounded(op if middle == at else FLIPPED[op], bound))
    return _mirrored(values) if members[middle][0] == "abs" else values


def _is_unknown(node: Node) -> bool:
    called = node[0] == "call" and node[1] not in KNOWN_CALLS
    return node[0] == "var" or called or (node[0] == "abs" and node[1][0] == "var")


def _bounded(op: str, bound: Node) -> Region:
    if op == "=":
        return (Interval(bound, True, bound, True),)
    if op == "!=":
        return _outside((Interval(bound, True, bound, True),))
    if op in ("<", "<="):
        return (Interval(MINUS_INFINITY, False, bound, op == "<="),)
    return (Interval(bound, op == ">=", INFINITY, False),)


def _mirrored(sizes: Region) -> Region:
    """The values of x whose |x| lies in ``sizes``."""
    above = _meet(sizes, (Interval(number(0), True, INFINITY, False),))
    below = tuple(Interval(("neg", i.high), i.high_in, ("neg", i.low), i.low_in) for i in above)
    return merged((*below, *above))


def compare(a: Node, b: Node) -> int:
    """-1, 0 or 1 as ``a`` lies below, at or above ``b``; ``NoRegion`` where variables leave it open."""
    if a == b or same(a, b):
        return 0
    for node, sign in ((a, 1), (b, -1)):
        if node == INFINITY:
            return sign
        if node == MINUS_INFINITY:
            return -sign
    if variables(a) or variables(b):
        raise NoRegion("bounds that variables leave open")
    try:
        difference = value(a, {}) - value(b, {})
    except Undefined as error:
        raise NoRegion(str(error)) from error
    if hasattr(difference, "imag") and difference.imag:
        raise NoRegion("a complex bound")
    return 1 if difference > 0 else -1


def _meet(left: Region, right: Region) -> Region:
    if len(left) * len(right) > MOST_PAIRS:
        raise NoRegion("too many intervals")
    common = []
    for a in left:
        for b in right:
            low, high = compare(a.low, b.low), compare(a.high, b.high)
            low_in = a.low_in and b.low_in if not low else a.low_in if low > 0 else b.low_in
            high_in = a.high_in and b.high_in if not high else a.high_in if high < 0 else b.high_in
            both = Interval(a.low if low > 0 else b.low, low_in, a.high if high < 0 else b.high, high_in)
            if not _empty(both):
                common.append(both)
    return tuple(common)


def _empty(interval: Interval) -> bool:
    try:
        order = compare(interval.low, interval.high)
    except NoRegion:
        return False
    return order > 0 or (not order and not (interval.low_in and interval.high_in))


def _outside(inside: Region) -> Region:
    outside: Region = (LINE,)
    for i in inside:
        below = Interval(MINUS_INFINITY, False, i.low, not i.low_in)
        above = Interval(i.high, not i.high_in, INFINITY, False)
        outside = _meet(outside, tuple(part for part in (below, above) if part.low != part.high))
    return outside


def _first(a: Interval, b: Interval) -> int:
    return compare(a.low, b.low) or int(b.low_in) - int(a.low_in)


def merged(parts: Region) -> Region:
    """The same set in the fewest intervals, in order."""
    ordered = sorted([part for part in parts if not _empty(part)], key=cmp_to_key(_first))
    apart: list[Interval] = []
    for part in ordered:
        last = apart[-1] if apart else None
        gap = compare(part.low, last.high) if last else 1
        if last and (gap < 0 or (not gap and (part.low_in or last.high_in))):
            order = compare(part.high, last.high)
            top = part if order > 0 else last
            inside = top.high_in if order else part.high_in or last.high_in
            apart[-1] = Interval(last.low, last.low_in, top.high, inside)
        else:
            apart.append(part)
    return tuple(apart)


def same_region(a: Region, b: Region) -> bool | None:
    """Whether two sets are the same; where bounds hold variables, whether their intervals match one to one."""
    with suppress(NoRegion):
        a, b = merged(a), merged(b)
    if len(a) != len(b):
        return False
    unmatched = list(b)
    for interval in a:
        match = next((other for other in unmatched if _same_interval(interval, other)), None)
        if match is None:
            return False
        unmatched.remove(match)
    return True


def _same_interval(a: Interval, b: Interval) -> bool:
    return (a.low_in, a.high_in) == (b.low_in, b.high_in) and bool(same(a.low, b.low) and same(a.high, b.high))

"""Whether two single values are the same answer: percent, degrees, units, ratios, bases and rounded numbers."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from typing import NamedTuple

from segrl.grading.rationals import NotExact, TooBig, Undefined, exact
from segrl.grading.tree import Node, is_value, number, variables
from segrl.grading.units import Unit
from segrl.grading.values import context, same, value

ROUNDED = 3  # significant digits from which a decimal gold may be the rounding of an exact answer
PRECISE = 6  # significant digits from which a decimal may stand for an exact gold


class Quantity(NamedTuple):
    core: Node
    unit: Unit | None
    mark: str  # percent, deg or nothing


def same_quantity(gold: Node, pred: Node) -> bool | None:
    """Whether two values are the same; a unit or a percent sign on one side only is forgiven."""
    a, b = _quantity(gold), _quantity(pred)
    if a.unit and b.unit:
        if a.unit.dimensions != b.unit.dimensions:
            return False
        a, b = (q._replace(core=_scaled(q.core, q.unit.size if q.unit else 1)) for q in (a, b))
    if a.mark == b.mark:
        return _same_core(a.core, b.core)
    marks = {a.mark, b.mark}
    if marks == {"percent", "deg"}:
        return False
    return _any(_same_core(left, right) for left, right in _unmarked(a, b))


def _any(verdicts: Iterable[bool | None]) -> bool | None:
    verdicts = list(verdicts)
    return True if any(verdicts) else None if None in verdicts else False


def _quantity(node: Node) -> Quantity:
    unit, mark = None, ""
    while node[0] in ("unit", "percent", "deg"):
        if node[0] == "unit":
            unit = node[2]
        else:
            mark = node[0]
        node = node[1]
    if node[0] == "neg" and node[1][0] in ("unit", "percent", "deg"):
        inner = _quantity(node[1])
        return Quantity(("neg", inner.core), inner.unit, inner.mark)
    return Quantity(node, unit, mark)


def _unmarked(a: Quantity, b: Quantity) -> list[tuple[Node, Node]]:
    """Pairs to compare where one side alone has a mark: 50% is 50 or one half, 45 degrees is 45 or pi / 4."""
    factor: Node = number(Fraction(1, 100)) if "percent" in (a.mark, b.mark) else ("div", ("const", "pi"), number(180))
    if a.mark:
        return [(a.core, b.core), (_times(a.core, factor), b.core)]
    return [(a.core, b.core), (a.core, _times(b.core, factor))]


def _scaled(node: Node, size: Fraction | int) -> Node:
    return node if size == 1 else _times(node, number(size))


def _times(node: Node, factor: Node) -> Node:
    """A product; a decimal keeps its digits when the point moves by two."""
    if node[0] == "num" and node[2] is not None and factor == number(Fraction(1, 100)):
        return ("num", node[1] / 100, node[2] + 2)
    return ("mul", (node, factor))


def _same_core(a: Node, b: Node) -> bool | None:
    if "ratio" in (a[0], b[0]):
        return _same_ratio(a, b)
    if "based" in (a[0], b[0]):
        return _same_based(a, b)
    if not (is_value(a) and is_value(b)):
        return None
    try:
        return same(a, b) or _rounded(a, b)
    except NotExact:
        return None


def _same_ratio(a: Node, b: Node) -> bool | None:
    """Whether two ratios have the same quotient; a time of day, such as 3:30, must have the same digits."""
    if a[0] != b[0]:
        ratio, other = (a, b) if a[0] == "ratio" else (b, a)
        return len(ratio[1]) == 2 and same(("div", *ratio[1]), other)
    left, right = a[1], b[1]
    if len(left) != len(right):
        return False
    if all(same(x, y) for x, y in zip(left, right, strict=True)):
        return True
    if _is_time(left) or _is_time(right):
        return False
    return all(same(("mul", (left[0], y)), ("mul", (x, right[0]))) for x, y in zip(left[1:], right[1:], strict=True))


def _is_time(parts: tuple[Node, ...]) -> bool:
    """Whether two parts are hours and minutes: a ratio of them would have been reduced."""
    try:
        hours, minutes = (exact(part) for part in parts)
    except (NotExact, ValueError):
        return False
    whole = hours.denominator == minutes.denominator == 1
    clock = hours <= 24 and (not minutes or 10 <= minutes <= 59)
    return whole and clock and (not minutes or Fraction(hours, minutes).denominator != minutes)


def _same_based(a: Node, b: Node) -> bool:
    """Whether two numerals have the same digits, and the same base where both sides name a base."""
    if a[0] == b[0]:
        return a == b
    numeral, other = (a, b) if a[0] == "based" else (b, a)
    return other[0] == "num" and other[2] is None and other[1] == int(numeral[1])


def _rounded(gold: Node, pred: Node) -> bool:
    """Whether one side is a decimal of enough digits, and the other the value or the longer decimal that it rounds."""
    if variables(gold) or variables(pred):
        return False
    gold_digits, pred_digits = _significant(gold), _significant(pred)
    if gold_digits >= PRECISE and pred_digits >= PRECISE:
        return _shortened(gold, pred) or _shortened(pred, gold)
    if gold_digits >= ROUNDED and pred_digits < 0 and pred[0] not in ("num", "const"):
        return _within(gold, pred, Fraction(1, 2))
    return pred_digits >= PRECISE and gold_digits < 0 and gold[0] != "num" and _within(pred, gold, 1)


def _shortened(decimal: Node, longer: Node) -> bool:
    """Whether the decimal is the other one, which shows more places, rounded or cut."""
    (short, places), (long, more) = _signed(decimal), _signed(longer)
    if places >= more or max(abs(places), abs(more)) > 60 or short * long <= 0:
        return False
    return Fraction(-1, 2) <= (abs(long) - abs(short)) * Fraction(10) ** places < 1


def _signed(decimal: Node) -> tuple[Fraction, int]:
    """The value of a decimal and its places behind the point."""
    sign, (_, size, places) = (-1, decimal[1]) if decimal[0] == "neg" else (1, decimal)
    return sign * size, places


def _significant(node: Node) -> int:
    """How many digits a decimal shows, -1 for what is not a decimal."""
    node = node[1] if node[0] == "neg" else node
    if node[0] != "num" or node[2] is None:
        return -1
    return len(str(abs(int(node[1] * Fraction(10) ** node[2]))))


def _within(decimal: Node, exact_value: Node, units: Fraction | int) -> bool:
    """Whether the exact value lies within ``units`` units of the decimal's last digit."""
    places = (decimal[1] if decimal[0] == "neg" else decimal)[2]
    if abs(places) > 60:
        return False
    mp = context()
    try:
        apart = abs(value(decimal, {}) - value(exact_value, {}))
    except (Undefined, TooBig):
        return False
    return bool(apart <= mp.mpf(10) ** -places * units.numerator / units.denominator)

"""The exact rational number of a tree, within bounds, and the errors where there is none."""

from __future__ import annotations

from fractions import Fraction
from math import comb, factorial, gcd, lcm

from segrl.grading.tree import Node

MOST_BITS = 8192  # of an exact numerator or denominator
MOST_FACTORIAL = 500


class NotExact(ValueError):
    """No rational number."""


class Undefined(ValueError):
    """No value at this point."""


class TooBig(ValueError):
    """A value out of bounds, which is not computed."""


def exact(node: Node) -> Fraction:
    """The rational number a tree stands for."""
    kind = node[0]
    if kind == "num":
        return bounded(node[1])
    if kind == "neg":
        return -exact(node[1])
    if kind == "add":
        return bounded(sum(map(exact, node[1]), Fraction(0)))
    if kind == "mul":
        return bounded(exact(node[1][0]) * exact(node[1][1]))
    if kind == "percent":
        return exact(node[1]) / 100
    if kind == "div":
        below = exact(node[2])
        if not below:
            raise Undefined("a division by zero")
        return bounded(exact(node[1]) / below)
    if kind == "abs":
        return abs(exact(node[1]))
    if kind == "pow":
        return _power(exact(node[1]), exact(node[2]))
    if kind in ("fact", "binom"):
        return _factorial_or_binomial(kind, [exact(part) for part in node[1:]])
    if kind == "ratio" and len(node[1]) == 2:
        return exact(("div", *node[1]))
    if kind == "call" and node[1] in ("gcd", "lcm", "max", "min"):
        return _call(node[1], [exact(part) for part in node[2]])
    raise NotExact(kind)


def bounded(value: Fraction) -> Fraction:
    """The number itself; ``TooBig`` where it is out of bounds."""
    if value.numerator.bit_length() > MOST_BITS or value.denominator.bit_length() > MOST_BITS:
        raise TooBig(f"a number of more than {MOST_BITS} bits")
    return value


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1:
        raise NotExact("a root")
    if not base and exponent < 0:
        raise Undefined("a division by zero")
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    if abs(base) not in (0, 1) and bits * abs(exponent) > MOST_BITS:
        raise TooBig(f"a number of more than {MOST_BITS} bits")
    return base ** int(exponent if abs(base) not in (0, 1) else exponent % 2 or 2 * (exponent != 0))


def _factorial_or_binomial(kind: str, parts: list[Fraction]) -> Fraction:
    if any(part.denominator != 1 or part < 0 for part in parts):
        raise NotExact(kind)
    if parts[0] > MOST_FACTORIAL:
        raise TooBig(f"{kind} of {parts[0]}")
    return Fraction(factorial(int(parts[0])) if kind == "fact" else comb(int(parts[0]), int(parts[1])))


def _call(name: str, values: list[Fraction]) -> Fraction:
    if name in ("max", "min"):
        return max(values) if name == "max" else min(values)
    if any(value.denominator != 1 for value in values):
        raise NotExact(name)
    return Fraction((gcd if name == "gcd" else lcm)(*map(int, values)))

"""Whether two expressions are the same: rationals exactly, the rest by their values to 40 digits at sample points.

Two expressions that agree to 40 digits at every point are taken for equal. A value out of the bounds below is
``TooBig`` and is not computed.
"""

from __future__ import annotations

import os
import threading
import zlib
from collections.abc import Mapping
from fractions import Fraction
from functools import reduce
from typing import Any

from segrl.grading.rationals import MOST_FACTORIAL, NotExact, TooBig, Undefined, bounded, exact
from segrl.grading.tree import Node, variables, walk
from segrl.grading.vocabulary import KNOWN_CALLS, PARAMETERS

DIGITS = 40
MOST_LOG = 5000.0  # of the natural logarithm of a value

# mpmath's precision is state, so each thread has a context of its own. Its caches are shared and not thread-safe.
_contexts = threading.local()
_turn = threading.Lock()
os.register_at_fork(after_in_child=lambda: globals().update(_turn=threading.Lock()))

# For variables, in turn: within (0, 1), above 1, and with mixed signs, where only real values are compared.
POINTS = ((0.31, 0.17), (0.73, 0.11), (1.37, 0.61), (2.21, 0.83), (-0.57, 0.43), (-1.83, 1.07))
POSITIVE = 4
REAL = ""  # a key of a point where every step must be real: roots of negative numbers say nothing there


def context() -> Any:
    """The mpmath context of this thread."""
    if not hasattr(_contexts, "mp"):
        import mpmath

        _contexts.mp = mpmath.mp.clone()
        _contexts.mp.dps = DIGITS
    return _contexts.mp


def value(node: Node, at: Mapping[str, Any]) -> Any:
    """The number of a tree, mpmath's real or complex, where the variables have the values ``at``."""
    mp = context()
    try:
        with _turn:
            result = _value(node, at, mp)
    except (NotExact, TooBig):
        raise
    except (ArithmeticError, ValueError, TypeError) as error:  # what mpmath raises at a pole
        raise Undefined(str(error)) from error
    if not mp.isfinite(result):
        raise Undefined("not finite")
    return result


def _value(node: Node, at: Mapping[str, Any], mp: Any) -> Any:
    kind = node[0]
    if kind == "num":
        return mp.mpf(bounded(node[1]).numerator) / node[1].denominator
    if kind == "var":
        return at[node[1]]
    if kind == "const":
        return {"pi": mp.pi, "e": mp.e, "i": mp.j, "infty": mp.inf}[node[1]] * 1
    if kind == "neg":
        return -_value(node[1], at, mp)
    if kind == "percent":
        return _value(node[1], at, mp) / 100
    if kind == "deg":
        return _value(node[1], at, mp) * mp.pi / 180
    if kind in ("add", "mul"):
        parts = [_value(part, at, mp) for part in node[1]]
        return sum(parts) if kind == "add" else reduce(lambda a, b: a * b, parts)
    if kind == "call" or kind in _OPERATIONS:
        parts = [_value(part, at, mp) for part in (node[2] if kind == "call" else node[1:])]
        result = _call(node[1], parts, mp) if kind == "call" else _small(_OPERATIONS[kind](mp, *parts), mp)
        if REAL in at and mp.im(result):
            raise Undefined("not real")
        return result
    if kind == "ratio" and len(node[1]) == 2:
        return _value(("div", *node[1]), at, mp)
    raise NotExact(kind)


def _small(number: Any, mp: Any) -> Any:
    if number and mp.isfinite(number) and abs(mp.mag(number)) > MOST_LOG * 1.5:
        raise TooBig(f"a value of 2^{mp.mag(number)}")
    return number


def _raised(mp: Any, base: Any, exponent: Any) -> Any:
    if not base:
        return mp.mpf(1) if not exponent else base if mp.re(exponent) > 0 else mp.mpf(1) / base
    if abs(exponent) * abs(mp.mag(base)) > MOST_LOG:
        raise TooBig("a power")
    return mp.power(base, exponent)


def _rooted(mp: Any, order: Any, radicand: Any) -> Any:
    """The real root of a negative number where the order is odd, else the principal one."""
    if mp.im(radicand) == 0 and mp.re(radicand) < 0 and mp.isint(order) and int(order) % 2:
        return -mp.power(-radicand, 1 / mp.mpf(order))
    return _raised(mp, radicand, 1 / order)


def _factorial(mp: Any, n: Any) -> Any:
    if abs(n) > 3 * MOST_FACTORIAL:
        raise TooBig("a factorial")
    return mp.gamma(n + 1)


_OPERATIONS: dict[str, Any] = {
    "div": lambda mp, a, b: a / b,
    "pow": _raised,
    "root": _rooted,
    "abs": lambda mp, a: abs(a),
    "fact": _factorial,
    "binom": lambda mp, n, k: _factorial(mp, n) / (_factorial(mp, k) * _factorial(mp, n - k)),
}


def _call(name: str, args: list[Any], mp: Any) -> Any:
    if name in ("ln", "log", "lg"):
        base = args[1] if len(args) > 1 else 10 if name == "lg" else mp.e
        return mp.log(args[0]) / mp.log(base)
    if name in ("max", "min"):
        return max(args) if name == "max" else min(args)
    if name in ("floor", "ceil"):
        return mp.floor(args[0]) if name == "floor" else mp.ceil(args[0])
    if name in KNOWN_CALLS and name not in ("gcd", "lcm"):
        return _known_function(name, args[0], mp)
    # An unknown function has some number for each of its arguments.
    call = f"{name}({','.join(mp.nstr(arg, 12) for arg in args)})"
    return mp.mpf(zlib.crc32(call.encode()) % 10**6 + 1) / 10**5


def _known_function(name: str, x: Any, mp: Any) -> Any:
    if abs(x) > MOST_LOG and name in ("exp", "sinh", "cosh", "tanh"):
        raise TooBig(f"{name} of {mp.nstr(x, 5)}")
    short = {"arcsin": "asin", "arccos": "acos", "arctan": "atan", "arccot": "acot"}.get(name, name)
    return getattr(mp, short)(x)


def samples(names: frozenset[str]) -> list[dict[str, Any]]:
    """The points at which expressions in these variables are compared."""
    mp = context()
    ordered = sorted(names)
    points: list[dict[str, Any]] = []
    for count, (start, step) in enumerate(POINTS):
        sign = [1 if count < POSITIVE or i % 2 == count % 2 else -1 for i in range(len(ordered))]
        near = [mp.mpf(start) + (s * step * mp.sqrt(i + 2) / 3 if i else 0) for i, s in enumerate(sign)]
        points.append(dict(zip(ordered, near, strict=True)) | ({} if count < POSITIVE else {REAL: True}))
    return points


def _integer_points(names: frozenset[str]) -> list[dict[str, Any]]:
    """Points at integers, for expressions that are defined there alone."""
    mp = context()
    return [{name: mp.mpf(at + 2 * i) for i, name in enumerate(sorted(names))} for at in range(1, 5)]


def _has_integer_exponent(node: Node) -> bool:
    """Whether the tree holds a power of -1, whose exponent must then be an integer."""
    powers = (part for part in walk(node) if part[0] == "pow" and variables(part[2]))
    return any(part[1] == ("neg", ("num", Fraction(1), None)) for part in powers)


def close(a: Any, b: Any) -> bool:
    """Whether two numbers are equal up to the rounding of a computation with 40 digits."""
    scale = max(abs(a), abs(b))
    return abs(a - b) <= scale * context().mpf(10) ** (8 - DIGITS)


def same(a: Node, b: Node) -> bool | None:
    """Whether two values are equal; None where the points do not decide it."""
    if a == b:
        return True
    if not (names := variables(a) | variables(b)):
        return _same_number(a, b)
    integers = names <= PARAMETERS and (_has_integer_exponent(a) or _has_integer_exponent(b))
    points = _integer_points(names) if integers else samples(names)
    verdicts = [_same_at(a, b, at, count < POSITIVE) for count, at in enumerate(points)]
    decided = [verdict for verdict in verdicts if verdict is not None]
    if len(decided) >= 2 and all(decided):
        return True
    return False if not all(decided) or _only_one_defined(a, b, names) else None


def _same_number(a: Node, b: Node) -> bool | None:
    try:
        return exact(a) == exact(b)
    except (NotExact, Undefined):
        pass
    try:
        left = value(a, {})
    except Undefined:
        return None if _undefined(b, {}) else False
    if _undefined(b, {}):
        return False
    right = value(b, {})
    return close(left, right) or _both_vanish(a, b, left, right)


def _both_vanish(a: Node, b: Node, left: Any, right: Any) -> bool:
    """Whether both are zero up to rounding: with twice the digits a rounding error shrinks, and nothing else does."""
    mp = context()
    if max(abs(left), abs(right)) > mp.mpf(10) ** (8 - DIGITS):
        return False
    with mp.workdps(2 * DIGITS):
        finer = [value(node, {}) for node in (a, b)]
    return max(map(abs, finer)) < mp.mpf(10) ** (16 - 2 * DIGITS)


def _undefined(node: Node, at: Mapping[str, Any]) -> bool:
    try:
        value(node, at)
    except Undefined:
        return True
    return False


def _only_one_defined(a: Node, b: Node, names: frozenset[str]) -> bool:
    return any(_undefined(a, at) != _undefined(b, at) for at in samples(names)[:POSITIVE])


def _same_at(a: Node, b: Node, at: Mapping[str, Any], positive: bool) -> bool | None:
    try:
        left, right = value(a, at), value(b, at)
    except Undefined:
        return None
    mp = context()
    tiny = mp.mpf(10) ** (8 - DIGITS)
    if close(left, right) or max(abs(left), abs(right)) < tiny:
        return True
    real = mp.im(left) == 0 and mp.im(right) == 0
    return False if real or (positive and _holds_i(a, b)) else None if not positive else _same_size(left, right)


def _holds_i(a: Node, b: Node) -> bool:
    return any(part == ("const", "i") for node in (a, b) for part in walk(node))


def _same_size(left: Any, right: Any) -> bool | None:
    """Whether complex values are equal: None where their size is, since they may lie on different branches."""
    return None if close(abs(left), abs(right)) else False

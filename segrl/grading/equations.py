"""Whether two expressions are equal up to a factor, and whether one solves an equation, by values at sample points."""

from __future__ import annotations

from typing import Any

from segrl.grading.rationals import NotExact, Undefined
from segrl.grading.tree import Node, is_value, number, rebuild, variables
from segrl.grading.values import close, samples, value


def proportional(left: Node, right: Node, positive: bool) -> bool:
    """Whether one expression is the other times a constant; with ``positive``, times a positive constant."""
    quotients = []
    for at in samples(variables(left) | variables(right)):
        try:
            above, below = value(left, at), value(right, at)
        except (Undefined, NotExact):
            continue
        if not below or not above:
            return False
        quotients.append(above / below)
    if len(quotients) < 2 or (positive and not all(_is_real(q) and q.real > 0 for q in quotients)):
        return False
    return all(close(quotients[0], q) for q in quotients[1:])


def _is_real(quotient: Any) -> bool:
    return not getattr(quotient, "imag", 0)


def solves(equation: Node, pred: Node, name: str = "") -> bool | None:
    """Whether an expression is the equation solved for the variable it lacks: ``6 / x`` for ``xy = 6``.

    The equation must be linear in that variable, or the expression would be one root of several.
    """
    if equation[0] != "rel" or not all(map(is_value, equation[2])) or not is_value(pred):
        return False
    missing = {name} if name else variables(equation) - variables(pred)
    if len(missing) != 1 or not variables(pred) <= variables(equation):
        return False
    [unknown] = missing
    difference = ("add", (equation[2][0], ("neg", equation[2][1])))
    steps = [("add", (pred, number(step))) for step in range(3)]
    return _vanishes([replaced(difference, {("var", unknown): step}) for step in steps])


def replaced(node: Node, new: dict[Node, Node]) -> Node:
    """The tree with other nodes in place of the variables that ``new`` names."""
    return rebuild(node, lambda part: new.get(part) if part[0] == "var" else None)


def _vanishes(shifted: list[Node]) -> bool:
    """Whether a difference is zero at the solution and grows evenly one and two steps away from it."""
    checked = 0
    for at in samples(variables(("add", tuple(shifted)))):
        try:
            at_solution, step, two_steps = (value(node, at) for node in shifted)
        except (Undefined, NotExact):
            continue
        if not step or abs(at_solution) > abs(step) * 1e-30 or not close(two_steps, 2 * step):
            return False
        checked += 1
    return checked >= 2

"""A tree in the fewer forms that are compared: chains of equations, lists of definitions and plus-minus rewritten."""

from __future__ import annotations

import re

from segrl.grading.quantities import same_quantity
from segrl.grading.rationals import NotExact
from segrl.grading.tree import Node, is_value, signs, variables, walk

MOST_ITEMS = 64


def plain(node: Node) -> Node:
    """A tree in fewer forms: a chain of equations ends at its last member, plus-minus is spelt out."""
    if node[0] == "rel":
        node = _relation(node)
    if node[0] == "list":
        return _list([part for item in node[1] for part in _spelt(item)], node[2])
    parts = _spelt(node)
    return parts[0] if len(parts) == 1 else ("list", tuple(parts), "or")


def _spelt(node: Node) -> list[Node]:
    return [_relation(part) if part[0] == "rel" else part for part in signs(node)]


def _relation(node: Node) -> Node:
    """What a chain of equations says: ``x = 5 + 5 = 10 \\approx 9.9`` is ``x = 10``, ``3 + 4 = 7`` is 7, ``7 = 8`` is
    itself."""
    ops, members = list(node[1]), list(node[2])
    if "~" in ops:
        at = ops.index("~")
        if at or not _is_name(members[0]):
            ops, members = ops[:at], members[: at + 1]
        else:
            ops[at] = "="
    if not ops:
        return members[0]
    if set(ops) == {"="}:
        if not any(variables(m) or not is_value(m) for m in members):
            true = all(same_quantity(members[0], member) for member in members[1:])
            return members[-1] if true else ("rel", tuple(ops), tuple(members))
        named = [member for member in members[:-1] if _is_name(member)]
        ops, members = ["="], [named[0] if named else members[0], members[-1]]
        if not _is_name(members[0]) and _is_name(members[1]) and not variables(members[0]):
            members.reverse()
    return ("rel", tuple(ops), tuple(members))


def _list(items: list[Node], joint: str) -> Node:
    """The list that the items make: ``x = 1, 2`` gives both to x; ``p = 5, q = 2; p = 7, q = 2`` are two pairs."""
    if len(items) > MOST_ITEMS:
        raise NotExact("a list of too many items")
    items = [item for item in items if not _is_domain(item)] or items
    if len(items) == 1:
        return items[0]
    names = [item[2][0] if is_definition(item) else None for item in items]
    if names[0] is not None and not any(names[1:]) and all(map(is_value, items[1:])):
        items, names = [items[0], *(("rel", ("=",), (names[0], item)) for item in items[1:])], [names[0]] * len(items)
    period = next((at for at, name in enumerate(names[1:], 1) if name == names[0]), len(names))
    if all(names) and 1 < period < len(names) and len(names) % period == 0:
        groups = [items[at : at + period] for at in range(0, len(items), period)]
        if all([item[2][0] for item in group] == names[:period] for group in groups):
            items = [("seq", "(", tuple(item[2][1] for item in group), ")") for group in groups]
    return ("list", tuple(items), joint)


def _is_domain(node: Node) -> bool:
    r"""Whether a node only says what a parameter may be, and is no part of the answer: ``k \in \mathbb{Z}``."""
    return node[0] == "rel" and node[1] == ("in",) and node[2][0][0] == "var" and node[2][1] in _DOMAINS


_DOMAINS = [("var", name) for name in ("Z", "N", "R", "Q", "Z_+", "N_+", "Z^+")]


def _is_name(node: Node) -> bool:
    r"""Whether a node may name an answer: ``x``, ``f(x)``, ``(x, y)``, ``|AB|``, ``V_1 : V_2``, ``\frac{NO}{BO}``."""
    if node[0] == "var" or (node[0] == "call" and all(_is_name(arg) or arg[0] == "num" for arg in node[2])):
        return True
    if node[0] == "seq":
        return all(map(_is_name, node[2]))
    if node[0] == "mul" and len(node[1]) == 2 and node[1][0][0] == "var" and re.match("[A-Z]", node[1][0][1]):
        return all(_is_name(part) or part[0] == "num" for part in node[1])
    if node[0] == "div" and all(part[0] == "mul" and part[1][0] == ("var", "d") for part in node[1:]):  # dy/dx
        return True
    if node[0] == "mul" or node[0] in ("ratio", "div", "abs"):
        return all(re.match(r"[A-Z](_|$)", part[1]) for part in walk(node) if part[0] == "var") and not any(
            part[0] not in ("var", "mul", "ratio", "div", "abs") for part in walk(node)
        )
    return False


def is_definition(node: Node) -> bool:
    return node[0] == "rel" and node[1] == ("=",) and len(node[2]) == 2 and _is_name(node[2][0])

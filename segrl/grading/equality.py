"""Whether two trees are the same answer. ``quantities.py`` compares values, ``regions.py`` sets of reals, and
``equations.py`` equations. This module compares what holds them: tuples in order, lists and sets in any order, matrices
by place, definitions by name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from segrl.grading.equations import proportional, replaced, solves
from segrl.grading.plain import is_definition, plain
from segrl.grading.quantities import same_quantity
from segrl.grading.rationals import NotExact, Undefined, exact
from segrl.grading.regions import NoRegion, region, same_region
from segrl.grading.tree import Node, is_value, variables, walk
from segrl.grading.vocabulary import PARAMETERS

MOST_DISTINCT = 16  # members of a set that are compared with each other by value


def equal(gold: Node, pred: Node) -> bool | None:
    """Whether the prediction says what the gold says; None where this module cannot tell."""
    verdict = _equal(plain(gold), plain(pred))
    if verdict is False and (renamed := _same_parameter(gold, pred)):
        return _equal(plain(gold), plain(renamed))
    return verdict


def _same_parameter(gold: Node, pred: Node) -> Node | None:
    r"""The prediction in the gold's parameter, where both are families of angles: ``n\\pi`` and ``k\\pi``."""
    free = [frozenset().union(*map(variables, _values(_members(node)))) for node in (gold, pred)]
    of_gold, of_pred = free[0] - free[1], free[1] - free[0]
    periodic = all(any(part == ("const", "pi") or part[0] == "deg" for part in walk(node)) for node in (gold, pred))
    if not (periodic and len(of_gold) == len(of_pred) == 1 and of_gold | of_pred <= PARAMETERS):
        return None
    [new], [old] = of_gold, of_pred
    return replaced(pred, {("var", old): ("var", new)})


def _equal(gold: Node, pred: Node) -> bool | None:
    if gold == pred:
        return True
    kinds = {gold[0], pred[0]}
    if "clause" in kinds:
        return _equal_clauses(gold, pred)
    if is_definition(gold) and is_definition(pred):
        return _equal_definitions(gold, pred)
    if is_definition(gold) and pred[0] != "rel":
        return _equal(plain(gold[2][1]), pred) or solves(gold, pred)
    if is_definition(pred) and gold[0] != "rel":
        return _equal(gold, plain(pred[2][1]))
    if "matrix" in kinds:
        return _equal_matrices(gold, pred)
    if gold[0] == pred[0] == "seq":
        return _equal_sequences(gold, pred)
    if kinds & {"rel", "union", "inter", "minus", "builder"} or ("var", "R") in (gold, pred):
        return _equal_conditions(gold, pred)
    if kinds & {"list", "seq"}:
        return _equal_collections(gold, pred)
    return same_quantity(gold, pred)


def _equal_clauses(gold: Node, pred: Node) -> bool | None:
    """``2k for all k``: clauses must agree where both answers have one; a clause on one side alone is forgiven."""
    both = gold[0] == pred[0]
    if both and gold[2] != pred[2]:
        return None if _equal(plain(gold[1]), plain(pred[1])) else False
    strip = [node[1] if node[0] == "clause" else node for node in (gold, pred)]
    return _equal(plain(strip[0]), plain(strip[1]))


def _equal_definitions(gold: Node, pred: Node) -> bool | None:
    (name, left), (other, right) = gold[2], pred[2]
    if name == other:
        return _equal(plain(left), plain(right))
    if name[0] == other[0] == "call" and name[1] == other[1] and len(name[2]) == len(other[2]):
        renamed = dict(zip(other[2], name[2], strict=True))  # f(n) = 2n is f(m) = 2m
        if all(old[0] == new[0] == "var" for old, new in renamed.items()):
            return _equal(plain(left), plain(replaced(right, renamed)))
    if {name[0], other[0]} == {"var", "call"} and (name[0] == "call" or name == ("var", "y")):
        return _equal(plain(left), plain(right))
    if not _renamed(name, other):
        return _equal_equations(gold, pred)
    return _equal(plain(left), plain(right))


def _renamed(name: Node, other: Node) -> bool:
    r"""Whether two names differ by a subscript of words on one side alone: ``m_{\max}`` and ``m``."""
    if name[0] != "var" or other[0] != "var":
        return False
    (base, _, sub), (other_base, _, other_sub) = name[1].partition("_"), other[1].partition("_")
    return (
        base == other_base and bool(re.fullmatch(r"(\\?[a-z]{3,}\s*)?", sub or other_sub)) and not (sub and other_sub)
    )


def _equal_matrices(gold: Node, pred: Node) -> bool | None:
    if gold[0] != pred[0]:
        rows, other = (gold[1], pred) if gold[0] == "matrix" else (pred[1], gold)
        if min(len(rows), max(map(len, rows))) != 1 or other[0] != "seq" or other[1] not in ("(", "["):
            return False
        flat = [cell for row in rows for cell in row]
        return _in_order(flat, other[2]) if gold[0] == "matrix" else _in_order(other[2], flat)
    if [len(row) for row in gold[1]] != [len(row) for row in pred[1]]:
        return False
    return _all(
        same_quantity(a, b)
        for left, right in zip(gold[1], pred[1], strict=True)
        for a, b in zip(left, right, strict=True)
    )


def _equal_sequences(gold: Node, pred: Node) -> bool | None:
    if (gold[1], gold[3]) != (pred[1], pred[3]):
        return False
    if gold[1] == "{":
        return _in_any_order(_distinct(gold[2]), _distinct(pred[2]))
    return _in_order(gold[2], pred[2])


def _distinct(items: Sequence[Node]) -> list[Node]:
    spelt = list(dict.fromkeys(items))
    if len(spelt) > MOST_DISTINCT:
        return spelt
    distinct: list[Node] = []
    for item in spelt:
        if not any(_equal(plain(item), plain(other)) for other in distinct):
            distinct.append(item)
    return distinct


def _equal_collections(gold: Node, pred: Node) -> bool | None:
    """A list against a list, a set, a tuple, or one value. A tuple keeps its order; a list and a set have none."""
    if gold[0] == pred[0] == "list":
        return _equal_lists(gold[1], pred[1])
    listed, other = (gold, pred) if gold[0] == "list" else (pred, gold)
    if listed[0] != "list":  # a tuple or a set against one value
        return False
    if other[0] != "seq":
        return False
    members = _values(listed[1])
    if other[1] == "{":
        return _in_any_order(members, other[2])
    if other[1] + other[3] != "()":
        return False
    return _in_order(members, other[2])


def _equal_lists(gold: Sequence[Node], pred: Sequence[Node]) -> bool | None:
    defined = [all(map(is_definition, items)) for items in (gold, pred)]
    if all(defined) and len({item[2][0] for item in (*gold, *pred)}) <= max(len(gold), len(pred)):
        return _in_any_order(gold, pred)
    return _in_any_order(_values(gold), _values(pred))


def _values(items: Sequence[Node]) -> list[Node]:
    return [item[2][1] if is_definition(item) else item for item in items]


def _members(node: Node) -> Sequence[Node]:
    node = plain(node)
    return node[1] if node[0] == "list" else (node,)


def _in_order(gold: Sequence[Node], pred: Sequence[Node]) -> bool | None:
    if len(gold) != len(pred):
        return False
    return _all(_equal(plain(a), plain(b)) for a, b in zip(gold, pred, strict=True))


def _in_any_order(gold: Sequence[Node], pred: Sequence[Node]) -> bool | None:
    """Whether the members of both pair off as equals."""
    if len(gold) != len(pred):
        return False
    unmatched, unsure = list(pred), False
    for item in sorted(gold, key=lambda item: item not in pred):  # members written alike first, which costs nothing
        if item in unmatched:
            unmatched.remove(item)
            continue
        verdicts = [_equal(plain(item), plain(other)) for other in unmatched]
        if True in verdicts:
            del unmatched[verdicts.index(True)]
        elif None in verdicts:
            unsure = True
        else:
            return False
    return None if unsure else True


def _all(verdicts: Iterable[bool | None]) -> bool | None:
    unsure = False
    for verdict in verdicts:
        if verdict is False:
            return False
        unsure = unsure or verdict is None
    return None if unsure else True


def _equal_conditions(gold: Node, pred: Node) -> bool | None:
    """Relations and sets of reals: by the intervals they describe, else as equations and inequalities."""
    if gold[0] == pred[0] == "rel":
        return _equal_relations(gold, pred)
    try:
        return same_region(region(gold), region(pred))
    except NoRegion:
        pass
    if gold[0] == "rel" and is_value(pred):
        return gold[1] == ("=",) and solves(gold, pred)
    if gold[0] == "rel" and gold[1] == ("in",):
        return _equal(plain(gold[2][1]), pred)
    if pred[0] == "rel" and pred[1] == ("in",):
        return _equal(gold, plain(pred[2][1]))
    equation = any(node[0] == "rel" and set(node[1]) == {"="} for node in (gold, pred))
    return False if equation or is_value(gold) or is_value(pred) else None


def _equal_relations(gold: Node, pred: Node) -> bool | None:
    if gold[1] == pred[1] == ("=",) and len(gold[2]) == len(pred[2]) == 2:
        return _equal_equations(gold, pred)
    if gold[1] == pred[1] and _in_order(gold[2], pred[2]):
        return True
    if gold[1] == pred[1] == ("mod", "mod"):
        return _congruent(gold[2], pred[2])
    if len(gold[1]) == len(pred[1]) == 1:
        (above, below), (upper, lower) = _directed(gold), _directed(pred)
        if gold[1][0] in _ORDER and pred[1][0] in _ORDER:
            strict = "=" in gold[1][0], "=" in pred[1][0]
            return strict[0] == strict[1] and proportional(
                ("add", (above, ("neg", below))), ("add", (upper, ("neg", lower))), True
            )
    try:
        return same_region(region(gold), region(pred)) and _same_unknowns(gold, pred)
    except NoRegion:
        return None if gold[1] == pred[1] else False


def _congruent(gold: Sequence[Node], pred: Sequence[Node]) -> bool:
    """The same number by the same modulus, and remainders that differ by a multiple of it."""
    if not (_equal(gold[0], pred[0]) and _equal(gold[2], pred[2])):
        return False
    try:
        return (exact(gold[1]) - exact(pred[1])) % exact(gold[2]) == 0
    except (NotExact, Undefined, ZeroDivisionError):
        return False


_ORDER = ("<", ">", "<=", ">=")


def _directed(node: Node) -> tuple[Node, Node]:
    left, right = node[2]
    return (left, right) if node[1][0] in (">", ">=") else (right, left)


def _same_unknowns(gold: Node, pred: Node) -> bool:
    return variables(gold) == variables(pred)


def _equal_equations(gold: Node, pred: Node) -> bool | None:
    if not all(is_value(member) for node in (gold, pred) for member in node[2]):
        return _in_order(gold[2], pred[2])
    if variables(gold) != variables(pred):
        return False
    left, right = (("add", (node[2][0], ("neg", node[2][1]))) for node in (gold, pred))
    return proportional(left, right, False) or (is_definition(pred) and solves(gold, pred[2][1], pred[2][0][1]))

"""Toy solutions as redundant as real traces: of three thoughts one solves a step, two are redundant.

A redundant thought repeats or checks a step that is solved, breaks off before a step, remarks on nothing, or, in
``detours``, is a detour: it states a false value of a step, which the step itself then corrects.
"""

from __future__ import annotations

import random

from segrl.toy.wording import Thought

REDUNDANCIES = {
    "repeats": ("repeat", "recheck", "truncated", "superficial"),
    "detours": ("repeat", "recheck", "truncated", "superficial", "detour"),
}
PER_STEP = 2
BACK = 2  # the most steps that a repeat goes back


def redundant_plan(rng: random.Random, n: int, redundancy: str) -> list[Thought]:
    """The kind and the step of each thought of a solution in n steps, in order: n that solve and 2n redundant ones.

    A step has one detour at most, which stands right before the step; a second one that is drawn becomes a repeat.
    """
    if redundancy not in REDUNDANCIES:
        names = " and ".join(map(repr, REDUNDANCIES))
        raise ValueError(f"redundancy={redundancy!r} is no redundancy of the toy world; it has {names}")
    before: list[list[Thought]] = [[] for _ in range(n)]
    after: list[list[Thought]] = [[] for _ in range(n)]
    detours: set[int] = set()
    for _ in range(PER_STEP * n):
        kind, at = rng.choice(REDUNDANCIES[redundancy]), rng.randrange(n)
        if kind == "detour" and at not in detours:
            detours.add(at)
        elif kind == "truncated":
            before[at].append((kind, at))
        elif kind == "recheck":
            after[at].append((kind, at))
        elif kind == "superficial":
            rng.choice((before, after))[at].append((kind, -1))
        else:
            after[at].append(("repeat", rng.randint(max(at - BACK, 0), at)))
    plan: list[Thought] = []
    for at in range(n):
        solved = [("detour", at), ("correction", at)] if at in detours else [("needed", at)]
        plan += [*before[at], *solved, *after[at]]
    return [*plan, ("close", -1)]

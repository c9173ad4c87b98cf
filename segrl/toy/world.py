r"""A small reasoning world with planted truth: chains of one-digit arithmetic modulo ten, solved in R1 style.

A problem defines path variables ``a b c ...``, each from an earlier one or from two digits, and up to three distractors
``z y x``; it asks for all path variables as one number. So every step decides a digit of the answer, and no later step
screens it off. A step states its definition and its result but never the operand's value, so the value of a variable
stands in its step, in what repeats it, and nowhere else.

    problem   Modulo ten: b = a-4; z = b+2; a = 3+9; c = b*7. Write the values of a b c as one number.
    response  Okay, let me look here a = 3+9 = 2.                  needed
              Wait, clearly as n = 6, n is 6.                      superficial
              However, then let me see b = a-4, 4...               truncated
              But wait, right again b = a-4 = 5.                   wrong
              Going back, b was wrong, b = a-4 = 8.                correction
              Alternatively, as it stands a = 3+9 = 2.             repeat
              Another look, now let me check c = b*7 = 6.          needed
              Backtrack, that is all of it.                        close
              </think> So, the final answer is \boxed{286}         answer

With ``ask="last"`` each path variable depends on the one before it and the problem ends "Write the value of c.": every
step is needed, and the answer is one digit. In ``sample_mistakes`` one step is wrong and never corrected.

No surface feature may tell needed from redundant. A thought is an opener, a filler and a core. The opener, and the size
in tokens and characters to which the filler brings the core, are drawn regardless of kind; every core has two or three
digits; redundant thoughts stand before and after the steps they deal with, equally often.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from segrl.toy.problems import ASKS, Arithmetic, Step, answer_of, draw_path, draw_problem, modulo_ten
from segrl.toy.redundancy import redundant_plan
from segrl.toy.wording import Thought, write_response
from segrl.types import Trace

CLASSES: Mapping[str, str] = {
    "needed": "needed",
    "repeat": "redundant",
    "truncated": "redundant",
    "superficial": "redundant",
    "recheck": "redundant",
    "detour": "redundant",
    "wrong": "other",
    "carried": "other",
    "correction": "other",
    "check": "other",
    "restated": "other",
    "close": "other",
    "answer": "other",
}

MAX_REDUNDANT = 6  # redundant thoughts of one trace, and never more than steps
P_WRONG, P_CHECK, P_RESTATED = 0.25, 0.2, 0.15


def sample_problems(n: int, seed: int, ask: str = "all") -> list[Trace]:
    """n problems with their answers and empty responses; problem i of a seed is the same for every n.

    ``ask="all"`` wants the values of all path variables as one number, ``ask="last"`` the value of the last one.
    """
    return [_draw(seed, index, ask).trace for index in range(n)]


def sample_traces(
    n: int, seed: int, arithmetic: Arithmetic = modulo_ten, ask: str = "all", redundancy: str | None = None
) -> list[Trace]:
    """n right solutions of ``sample_problems(n, seed, ask)``, the kind of each segment in ``meta["kinds"]``.

    ``meta["steps"]`` is the step each segment deals with, or -1, and ``meta["n_steps"]`` their number. Another
    ``arithmetic`` gives the traces of a solver who calculates so. ``redundancy``, one of ``REDUNDANCIES``, gives each
    step two redundant thoughts, so that about a third of the thoughts are needed.
    """
    draws = (_draw(seed, index, ask, arithmetic) for index in range(n))
    return [_right(draw) if redundancy is None else _redundant_right(draw, redundancy) for draw in draws]


def sample_mistakes(n: int, seed: int, ask: str = "last") -> list[Trace]:
    """n wrong solutions of ``sample_problems(n, seed, ask)``: one step is wrong, and what depends on it carries it on.

    ``Trace.answer`` stays the gold answer; the box holds the wrong one. The wrong step has the kind ``wrong``, the
    later ones that are computed rightly from it ``carried``. With ``ask="last"`` the wrong value is neither the digit
    in the box nor the gold one, so the mistake itself stands in neither answer.
    """
    return [_wrong(_draw(seed, index, ask)) for index in range(n)]


@dataclass(frozen=True)
class Draw:
    """A problem without a response, the steps that solve it, and the random numbers that a response is drawn from."""

    trace: Trace
    path: Sequence[Step]
    ask: str
    rng: random.Random

    def respond(self, plan: Sequence[Thought], stated: Sequence[Step], kinds: Sequence[str], **meta: Any) -> Trace:
        """The trace of a solver who states these values."""
        response = write_response(self.rng, plan, stated, self.ask)
        meta |= {"kinds": (*kinds, "answer"), "steps": (*(step for _, step in plan), -1)}
        return replace(self.trace, response=response, meta={**self.trace.meta, **meta})


def _draw(seed: int, index: int, ask: str, arithmetic: Arithmetic = modulo_ten) -> Draw:
    if ask not in ASKS:
        raise ValueError(f"ask={ask!r} is no question of the toy world; it has {' and '.join(map(repr, ASKS))}")
    form = [] if ask == "all" else [ask]
    # Seeding by str is stable over processes and Python versions.
    rng = random.Random(" ".join(map(str, ("segrl toy", *form, seed, index))))
    path = draw_path(rng, arithmetic, ask)
    trace = Trace(
        id="-".join(map(str, ("toy", *form, seed, index))),
        problem=draw_problem(rng, path, arithmetic, ask),
        answer=answer_of(path, ask),
        meta={"n_steps": len(path)},
    )
    return Draw(trace, path, ask, rng)


def _right(draw: Draw) -> Trace:
    plan = _plan(draw.rng, len(draw.path), P_WRONG)
    return draw.respond(plan, draw.path, [kind for kind, _ in plan])


def _redundant_right(draw: Draw, redundancy: str) -> Trace:
    plan = redundant_plan(draw.rng, len(draw.path), redundancy)
    trace = draw.respond(plan, draw.path, [kind for kind, _ in plan], problem_id=draw.trace.id)
    return replace(trace, id=f"{trace.id}#{redundancy}")


def _wrong(draw: Draw) -> Trace:
    mistaken, stated = _mistake(draw)
    plan = _plan(draw.rng, len(draw.path), p_wrong=0)
    kinds = []
    for kind, at in plan:
        solves_wrongly = kind == "needed" and stated[at] != draw.path[at]
        kinds.append(("wrong" if at == mistaken else "carried") if solves_wrongly else kind)
    trace = draw.respond(plan, stated, kinds, problem_id=draw.trace.id)
    return replace(trace, id=f"{trace.id}#mistake")


def _mistake(draw: Draw) -> tuple[int, list[Step]]:
    """Which step is wrong, and all steps as they are then stated."""
    path, last = draw.path, draw.ask == "last"
    choices: dict[int, list[list[Step]]] = {}
    for at in range(len(path) - last):  # the last step states the answer, so no mistake may stand there
        for value in range(10):
            stated = _carry(path, at, value)
            answers = {int(answer_of(steps, draw.ask)) for steps in (path, stated)} if last else set()
            leads_with_zero = not last and at == value == 0
            if value != path[at].value and value not in answers and not leads_with_zero:
                choices.setdefault(at, []).append(stated)
    # A step has no choice where the steps after it leave every value as it is: its value would then be the answer. The
    # step before the last always has some: a product modulo ten leaves two values as they are, a sum none.
    mistaken = draw.rng.choice(list(choices))
    return mistaken, draw.rng.choice(choices[mistaken])


def _carry(path: Sequence[Step], at: int, value: int) -> list[Step]:
    """The steps when one has ``value``, and all that depend on it are computed rightly from there."""
    stated = {path[at].name: replace(path[at], value=value)}
    for step in path:
        if step.left in stated:
            stated[step.name] = replace(step, value=modulo_ten(step.op, stated[step.left].value, step.right))
    return [stated.get(step.name, step) for step in path]


def _plan(rng: random.Random, n: int, p_wrong: float) -> list[Thought]:
    """The kind and the step of each thought of a solution, in order; a wrong thought is followed by its correction."""
    before, after = _redundant(rng, n)
    mistaken = rng.randrange(n) if rng.random() < p_wrong else -1
    if rng.random() < P_CHECK:
        at = rng.randrange(n)
        after[at].insert(0, ("check", at))
    plan: list[Thought] = []
    for at in range(n):
        solved = [("wrong", at), ("correction", at)] if at == mistaken else [("needed", at)]
        plan += [*before[at], *solved, *after[at]]
    if rng.random() < P_RESTATED:
        plan.append(("restated", -1))
    return [*plan, ("close", -1)]


def _redundant(rng: random.Random, n: int) -> tuple[list[list[Thought]], list[list[Thought]]]:
    """Redundant thoughts before and after each step: a truncated one stands before its step, a repeat after it."""
    before: list[list[Thought]] = [[] for _ in range(n)]
    after: list[list[Thought]] = [[] for _ in range(n)]
    for _ in range(rng.randint(1, min(n, MAX_REDUNDANT))):
        kind, at = rng.choice(("repeat", "truncated", "superficial")), rng.randrange(n)
        if kind == "truncated":
            before[at].append((kind, at))
        elif kind == "repeat":
            after[at].append((kind, rng.randrange(max(at - 2, 0), at + 1)))
        else:
            rng.choice((before, after))[at].append((kind, -1))
    return before, after

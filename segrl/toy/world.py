r"""A small reasoning world with planted truth: chains of one-digit arithmetic modulo ten, solved in R1 style.

A problem defines path variables ``a b c ...``, each from an earlier one, and a few distractors ``z y x``; it asks for
the digits of all path variables as one number. So every step decides one digit of the answer by itself: no later
step screens it off. A step states the definition and the result but never the operand's value, so the value of a
variable stands in its own step (and in repeats of it) and nowhere else.

    problem   Modulo ten: b = a-4; z = b+2; a = 3+9; c = b*7. Write the values of a b c as one number.
    thinking  Okay, so a = 3+9 = 2.
              Wait, I can see that (3) c = b*7...
              However, let me see (2) b = a-4 = 8.
              ...
    answer    </think> So, the final answer is \boxed{286}

No surface feature may tell the kinds apart: each thought is an opener, filler words and a core; the opener
and its size in tokens and characters are drawn from distributions that do not know the kind, and all cores hold two or
three digits.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from segrl.types import Trace

CLASSES: Mapping[str, str] = {
    "needed": "needed",
    "repeat": "redundant",
    "truncated": "redundant",
    "superficial": "redundant",
    "wrong": "other",
    "correction": "other",
    "check": "other",
    "restated": "other",
    "close": "other",
    "answer": "other",
}

PATH, DISTRACTORS = "abcdefghi", "zyx"
STEP_WEIGHTS = {3: 7, 4: 6, 5: 5, 6: 4, 7: 3, 8: 2, 9: 1}
# Factors are the units modulo ten, so every value stays equally likely along the chain and every step can be undone.
OPERANDS = {"+": range(1, 10), "-": range(1, 10), "*": (3, 7, 9)}
INVERSE = {"+": "-", "-": "+", "*": "*"}
INVERSE_FACTOR = {3: 7, 7: 3, 9: 9}

FIRST_OPENER = "Okay,"
OPENERS = (
    "Wait,",
    "Alternatively,",
    "But wait,",
    "But alternatively,",
    "But just to be sure,",
    "However,",
    "Not sure yet,",
    "Going back,",
    "Backtrack,",
    "Trace back,",
    "Another look,",
)
SUPERFICIAL = (
    " if n = {x}, n is {x}.",
    " if {x} = n, {x} is n.",
    " as n = {x}, n is {x}.",
    " {x}+0 = {x} as it is.",
    " {x}-0 = {x} as it is.",
)
# With one of these in front, every needed or redundant core comes to each of SIZES exactly.
FILLERS = (
    *(" clearly", " perhaps", " finally", " briefly"),
    *(" right again", " simply then", " really well"),
    *(" clearly then", " finally then", " perhaps then"),
    *(" then we see", " here we see", " okay so now"),
    *(" as it stands", " so it stands", " so we simply"),
    *(" then once again", " well once again", " it clearly says"),
    *(" right then again", " now clearly then", " it simply stands"),
    *(" well let me see", " then let me see", " okay now we see"),
    *(" let me try again", " let me look here", " now let me check"),
    *(" now it clearly says", " well now once again", " right so once again"),
    *(" then it clearly says", " well then once again", " okay then once again"),
    *(" now let me see that", " so let me look here", " so let me try again"),
    *(" now let me look here", " now let me try again", " so then let me check"),
)
SIZES = ((12, 26), (13, 30), (14, 34))  # tokens and characters of a thought after its opener
CLOSES = (" that is all of it", " everything asked is known", " nothing is left to find")

MAX_REDUNDANT = 6  # redundant thoughts of one trace, and never more than steps
P_ROOT = 0.3  # a later variable that starts anew from two digits, as the first does: digit counts then tell less
UNFILLED = ("correction", "check", "restated", "close")  # of class other: nothing to hide
P_WRONG, P_CHECK, P_RESTATED = 0.25, 0.2, 0.15


@dataclass(frozen=True)
class Step:
    """One definition, ``name = left op right``, and its value; left is a variable, or a digit in the first step."""

    name: str
    left: str
    op: str
    right: int
    value: int

    @property
    def definition(self) -> str:
        return f"{self.name} = {self.left}{self.op}{self.right}"

    @property
    def undone(self) -> str:
        right = INVERSE_FACTOR[self.right] if self.op == "*" else self.right
        return f"{self.name}{INVERSE[self.op]}{right}"


def apply(op: str, left: int, right: int) -> int:
    return {"+": left + right, "-": left - right, "*": left * right}[op] % 10


def sample_problems(n: int, seed: int) -> list[Trace]:
    """n problems with their answers and empty responses; problem i of a seed is the same for every n."""
    return [_trace(seed, index, respond=False) for index in range(n)]


def sample_traces(n: int, seed: int) -> list[Trace]:
    """n right solutions of ``sample_problems(n, seed)``, the kind of each segment in ``meta["kinds"]``.

    ``meta["steps"]`` is the step each segment deals with, or -1, and ``meta["n_steps"]`` their number.
    """
    return [_trace(seed, index, respond=True) for index in range(n)]


def _trace(seed: int, index: int, respond: bool) -> Trace:
    rng = random.Random(f"segrl toy {seed} {index}")  # seeding by str is stable over processes and Python versions
    path = _chain(rng)
    problem, answer = _problem(rng, path), "".join(str(step.value) for step in path)
    meta = {"n_steps": len(path)}
    response = ""
    if respond:
        plan = _plan(rng, len(path))
        response = _response(rng, plan, path, answer)
        meta["kinds"] = (*(kind for kind, _ in plan), "answer")
        meta["steps"] = (*(step for _, step in plan), -1)
    return Trace(id=f"toy-{seed}-{index}", problem=problem, response=response, answer=answer, meta=meta)


def _chain(rng: random.Random) -> list[Step]:
    (n,) = rng.choices(list(STEP_WEIGHTS), STEP_WEIGHTS.values())
    path = [_step(rng, PATH[0], [])]
    while path[0].value == 0:  # the answer is read as a number, so it has no leading zero
        path = [_step(rng, PATH[0], [])]
    for name in PATH[1:n]:
        path.append(_step(rng, name, path))
    return path


def _step(rng: random.Random, name: str, earlier: Sequence[Step]) -> Step:
    op = rng.choice("+-*")
    right = rng.choice(OPERANDS[op])
    if earlier and rng.random() >= P_ROOT:
        source = rng.choice(earlier)
        return Step(name, source.name, op, right, apply(op, source.value, right))
    left = rng.randrange(1, 10)
    return Step(name, str(left), op, right, apply(op, left, right))


def _problem(rng: random.Random, path: Sequence[Step]) -> str:
    extra = [_step(rng, name, path) for name in DISTRACTORS[: rng.randrange(len(DISTRACTORS) + 1)]]
    steps = [*path, *extra]
    rng.shuffle(steps)
    definitions = "; ".join(step.definition for step in steps)
    asked = " ".join(step.name for step in path)
    return f"Modulo ten: {definitions}. Write the values of {asked} as one number."


def _plan(rng: random.Random, n: int) -> list[tuple[str, int]]:
    """The thoughts as (kind, step). A truncated thought stands before its step and a repeat after it, equally often,
    so that position tells nothing."""
    before: list[list[tuple[str, int]]] = [[] for _ in range(n)]
    after: list[list[tuple[str, int]]] = [[] for _ in range(n)]
    for _ in range(rng.randint(1, min(n, MAX_REDUNDANT))):
        kind, at = rng.choice(("repeat", "truncated", "superficial")), rng.randrange(n)
        if kind == "truncated":
            before[at].append((kind, at))
        elif kind == "repeat":
            after[at].append((kind, rng.randrange(max(at - 2, 0), at + 1)))
        else:
            rng.choice((before, after))[at].append((kind, -1))
    mistaken = rng.randrange(n) if rng.random() < P_WRONG else -1
    if rng.random() < P_CHECK:
        at = rng.randrange(n)
        after[at].insert(0, ("check", at))
    plan = []
    for at in range(n):
        solved = [("wrong", at), ("correction", at)] if at == mistaken else [("needed", at)]
        plan += [*before[at], *solved, *after[at]]
    if rng.random() < P_RESTATED:
        plan.append(("restated", -1))
    return [*plan, ("close", -1)]


def _response(rng: random.Random, plan: Sequence[tuple[str, int]], path: Sequence[Step], answer: str) -> str:
    thoughts = []
    for i, (kind, at) in enumerate(plan):
        opener = rng.choice(OPENERS) if i else FIRST_OPENER
        thoughts.append(opener + _thought(rng, kind, path[at], answer))
    return "\n\n".join(thoughts) + f"\n</think> So, the final answer is \\boxed{{{answer}}}"


def _thought(rng: random.Random, kind: str, step: Step, answer: str) -> str:
    core = _core(rng, kind, step, answer)
    if kind in UNFILLED:
        return core
    tokens, characters = rng.choice(SIZES)
    return rng.choice(FILLERS_BY_SIZE[tokens - count_tokens(core), characters - len(core)]) + core


def _core(rng: random.Random, kind: str, step: Step, answer: str) -> str:
    if kind == "wrong":
        return f" {step.definition} = {(step.value + rng.randrange(1, 10)) % 10}."
    if kind == "superficial":
        return rng.choice(SUPERFICIAL).format(x=rng.randrange(1, 10))
    return {
        "needed": f" {step.definition} = {step.value}.",
        "repeat": f" {step.definition} = {step.value}.",
        "truncated": f" {step.definition}, {step.right}...",
        "correction": f" {step.name} was wrong, {step.definition} = {step.value}.",
        "check": f" {step.undone} gives {step.left} back, so {step.name} = {step.value}.",
        "restated": f" together that makes {answer}.",
        "close": rng.choice(CLOSES) + ".",
    }[kind]


def count_digits(text: str) -> int:
    return sum(character.isdigit() for character in text)


def count_tokens(text: str) -> int:
    """Tokens of toy text: words, digits, blanks before digits, and runs of punctuation."""
    return len(re.findall(r" ?[A-Za-z]+|\d| ?[^\sA-Za-z\d]+\n*|\s", text))


FILLERS_BY_SIZE: dict[tuple[int, int], list[str]] = {}
for _filler in FILLERS:
    FILLERS_BY_SIZE.setdefault((count_tokens(_filler), len(_filler)), []).append(_filler)

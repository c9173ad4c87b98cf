r"""A small reasoning world with planted truth: chains of one-digit arithmetic modulo ten, solved in R1 style.

A problem defines path variables ``a b c ...``, each from an earlier one or from two digits, and up to three distractors
``z y x``; it asks for all path variables as one number. So every step decides a digit of the answer by itself: no later
step screens it off. A step states its definition and its result but never the operand's value, so the value of a
variable stands in its step, in what repeats it, and nowhere else.

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

No surface feature may tell needed from redundant. A thought is an opener, a filler and a core. The opener, and the size
in tokens and characters to which the filler brings the core, are drawn regardless of kind; every core has two or three
digits; redundant thoughts stand before and after the steps they deal with, equally often.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from segrl.types import Trace

CLASSES: Mapping[str, str] = {
    "needed": "needed",
    "repeat": "redundant",
    "truncated": "redundant",
    "superficial": "redundant",
    "wrong": "other",
    "carried": "other",
    "correction": "other",
    "check": "other",
    "restated": "other",
    "close": "other",
    "answer": "other",
}

ASKS = ("all", "last")  # all path variables as one number, or the last one's digit
PATH, DISTRACTORS = "abcdefghi", "zyx"
N_STEPS, STEP_WEIGHTS = (3, 4, 5, 6, 7, 8, 9), (7, 6, 5, 4, 3, 2, 1)
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
CLOSES = (" that is all of it.", " everything asked is known.", " nothing is left to find.")

MAX_REDUNDANT = 6  # redundant thoughts of one trace, and never more than steps
P_ROOT = 0.3  # a later variable starts from two digits, as the first does; so digit counts tell less
UNFILLED = ("correction", "check", "restated", "close")  # in class other, so their size gives nothing away
P_WRONG, P_CHECK, P_RESTATED = 0.25, 0.2, 0.15

Arithmetic = Callable[[str, int, int], int]  # operator, left, right -> result
Thought = tuple[str, int]  # its kind, and the step it deals with or -1


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


def modulo_ten(op: str, left: int, right: int) -> int:
    return {"+": left + right, "-": left - right, "*": left * right}[op] % 10


def sample_problems(n: int, seed: int, ask: str = "all") -> list[Trace]:
    """n problems with their answers and empty responses; problem i of a seed is the same for every n."""
    return [_draw(seed, index, ask).trace("") for index in range(n)]


def sample_traces(n: int, seed: int, arithmetic: Arithmetic = modulo_ten, ask: str = "all") -> list[Trace]:
    """n right solutions of ``sample_problems(n, seed, ask)``, the kind of each segment in ``meta["kinds"]``.

    ``meta["steps"]`` is the step each segment deals with, or -1, and ``meta["n_steps"]`` their number. Another
    ``arithmetic`` gives the traces of a solver who calculates so.
    """
    return [_right(_draw(seed, index, ask, arithmetic)) for index in range(n)]


def sample_mistakes(n: int, seed: int, ask: str = "last") -> list[Trace]:
    """n wrong solutions of ``sample_problems(n, seed, ask)``: one step is wrong, and what hangs on it carries it on.

    ``Trace.answer`` stays the gold answer; the box holds the wrong one. The wrong step is of kind ``wrong``, the later
    steps that are computed rightly from it are ``carried``. With ``ask="last"`` the wrong value is neither the digit in
    the box nor the gold one, so the mistake stands nowhere in the answer.
    """
    return [_wrong(_draw(seed, index, ask)) for index in range(n)]


@dataclass(frozen=True)
class Draw:
    """A problem with the steps that solve it, and the random numbers that its response is drawn from."""

    id: str
    ask: str
    path: Sequence[Step]
    problem: str
    rng: random.Random

    def answer(self, path: Sequence[Step]) -> str:
        """What the box holds when the steps have the values of ``path``."""
        return "".join(str(step.value) for step in (path if self.ask == "all" else path[-1:]))

    def trace(self, response: str, **meta: Any) -> Trace:
        meta = {"n_steps": len(self.path), **meta}
        return Trace(id=self.id, problem=self.problem, response=response, answer=self.answer(self.path), meta=meta)

    def respond(self, plan: Sequence[Thought], stated: Sequence[Step], kinds: Sequence[str]) -> Trace:
        response = _response(self.rng, plan, stated, self.answer(stated))
        return self.trace(response, kinds=(*kinds, "answer"), steps=(*(step for _, step in plan), -1))


def _draw(seed: int, index: int, ask: str, arithmetic: Arithmetic = modulo_ten) -> Draw:
    if ask not in ASKS:
        raise ValueError(f"ask={ask!r} is no form of question of the toy world; give one of {', '.join(ASKS)}")
    form = "" if ask == "all" else f"{ask} "
    # Seeding by str is stable over processes and Python versions.
    rng = random.Random(f"segrl toy {form}{seed} {index}")
    path = _chain(rng, arithmetic, ask)
    problem = _problem(rng, path, arithmetic, ask)
    return Draw(f"toy-{form.replace(' ', '-')}{seed}-{index}", ask, path, problem, rng)


def _right(draw: Draw) -> Trace:
    n = len(draw.path)
    plan = _plan(draw.rng, n, P_WRONG)
    return draw.respond(plan, draw.path, [kind for kind, _ in plan])


def _wrong(draw: Draw) -> Trace:
    at, stated = _mistake(draw)
    plan = _plan(draw.rng, len(draw.path), p_wrong=0)
    off = [step != right for step, right in zip(stated, draw.path, strict=True)]
    kinds = [kind if kind != "needed" or not off[i] else "wrong" if i == at else "carried" for kind, i in plan]
    return draw.respond(plan, stated, kinds)


def _mistake(draw: Draw) -> tuple[int, list[Step]]:
    """The step that is wrong, and all steps as they are stated from there on."""
    path, last = draw.path, draw.ask == "last"
    options: dict[int, list[list[Step]]] = {}
    for at in range(len(path) - last):
        for value in range(10):
            stated = _carry(path, at, value)
            # The last value is not where the mistake may stand; a number has no leading zero.
            spoilt = {path[-1].value, stated[-1].value} if last else {0} if at == 0 else set()
            if value not in {path[at].value, *spoilt}:
                options.setdefault(at, []).append(stated)
    at = draw.rng.choice(list(options))  # a step before a product has seven options or more, so there is always one
    return at, draw.rng.choice(options[at])


def _carry(path: Sequence[Step], at: int, value: int) -> list[Step]:
    """The steps with ``value`` at one of them, and all that hang on it computed rightly from there."""
    stated = {path[at].name: replace(path[at], value=value)}
    for step in path:
        if step.left in stated:
            stated[step.name] = replace(step, value=modulo_ten(step.op, stated[step.left].value, step.right))
    return [stated.get(step.name, step) for step in path]


def _chain(rng: random.Random, arithmetic: Arithmetic, ask: str) -> list[Step]:
    (n,) = rng.choices(N_STEPS, STEP_WEIGHTS)
    first = _step(rng, PATH[0], [], arithmetic)
    while ask == "all" and first.value == 0:  # the answer is read as a number, so it has no leading zero
        first = _step(rng, PATH[0], [], arithmetic)
    path = [first]
    for name in PATH[1:n]:
        path.append(_step(rng, name, path if ask == "all" else path[-1:], arithmetic, P_ROOT if ask == "all" else 0))
    return path


def _step(
    rng: random.Random, name: str, earlier: Sequence[Step], arithmetic: Arithmetic, p_root: float = P_ROOT
) -> Step:
    op = rng.choice("+-*")
    right = rng.choice(OPERANDS[op])
    if earlier and rng.random() >= p_root:
        source = rng.choice(earlier)
        return Step(name, source.name, op, right, arithmetic(op, source.value, right))
    left = rng.randrange(1, 10)
    return Step(name, str(left), op, right, arithmetic(op, left, right))


def _problem(rng: random.Random, path: Sequence[Step], arithmetic: Arithmetic, ask: str) -> str:
    extra = [_step(rng, name, path, arithmetic) for name in DISTRACTORS[: rng.randrange(len(DISTRACTORS) + 1)]]
    steps = [*path, *extra]
    rng.shuffle(steps)
    definitions = "; ".join(step.definition for step in steps)
    names = " ".join(step.name for step in path)
    asked = f"values of {names} as one number" if ask == "all" else f"value of {path[-1].name}"
    return f"Modulo ten: {definitions}. Write the {asked}."


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


def _response(rng: random.Random, plan: Sequence[Thought], path: Sequence[Step], answer: str) -> str:
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
    return rng.choice(_fillers(tokens - count_tokens(core), characters - len(core))) + core


def _core(rng: random.Random, kind: str, step: Step, answer: str) -> str:
    if kind == "wrong":
        return f" {step.definition} = {(step.value + rng.randrange(1, 10)) % 10}."
    if kind == "superficial":
        return rng.choice(SUPERFICIAL).format(x=rng.randrange(1, 10))
    if kind == "close":
        return rng.choice(CLOSES)
    return {
        "needed": f" {step.definition} = {step.value}.",
        "repeat": f" {step.definition} = {step.value}.",
        "truncated": f" {step.definition}, {step.right}...",
        "correction": f" {step.name} was wrong, {step.definition} = {step.value}.",
        "check": f" {step.undone} gives {step.left} back, so {step.name} = {step.value}.",
        "restated": f" together that makes {answer}.",
    }[kind]


@cache
def _fillers(tokens: int, characters: int) -> list[str]:
    return [filler for filler in FILLERS if (count_tokens(filler), len(filler)) == (tokens, characters)]


def count_tokens(text: str) -> int:
    """The number of tokens in toy text: words, digits, blanks before digits, and runs of punctuation."""
    return len(re.findall(r" ?[A-Za-z]+|\d| ?[^\sA-Za-z\d]+\n*|\s", text))

"""The toy world's problems: chains of one-digit arithmetic modulo ten, and what is asked of them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

ASKS = ("all", "last")  # the values of all path variables as one number, or the last one's value
PATH, DISTRACTORS = "abcdefghi", "zyx"
N_STEPS, STEP_WEIGHTS = (3, 4, 5, 6, 7, 8, 9), (7, 6, 5, 4, 3, 2, 1)
# Factors are the units modulo ten, so every value stays equally likely along the chain and every step can be undone.
OPERANDS = {"+": range(1, 10), "-": range(1, 10), "*": (3, 7, 9)}
INVERSE = {"+": "-", "-": "+", "*": "*"}
INVERSE_FACTOR = {3: 7, 7: 3, 9: 9}
P_ROOT = 0.3  # with ask=all, the chance that a later variable starts from two digits: digit counts then tell less

Arithmetic = Callable[[str, int, int], int]  # operator, left, right -> result


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


def mistaken(op: str, left: int, right: int) -> int:
    """The result of a solver who multiplies by three instead of by seven."""
    return modulo_ten(op, left, 3 if (op, right) == ("*", 7) else right)


def draw_path(rng: random.Random, arithmetic: Arithmetic, ask: str) -> list[Step]:
    """The steps of a problem, in order; where the last value is asked, each depends on the step before it."""
    (n,) = rng.choices(N_STEPS, STEP_WEIGHTS)
    first = _step(rng, PATH[0], [], arithmetic)
    while ask == "all" and first.value == 0:  # the answer is read as a number, so it has no leading zero
        first = _step(rng, PATH[0], [], arithmetic)
    path = [first]
    for name in PATH[1:n]:
        if ask == "all":
            path.append(_step(rng, name, path, arithmetic))
        else:
            path.append(_step(rng, name, path[-1:], arithmetic, p_root=0))
    return path


def draw_problem(rng: random.Random, path: Sequence[Step], arithmetic: Arithmetic, ask: str) -> str:
    """The text of a problem: its definitions shuffled, up to three distractors among them, and the question."""
    extra = [_step(rng, name, path, arithmetic) for name in DISTRACTORS[: rng.randrange(len(DISTRACTORS) + 1)]]
    steps = [*path, *extra]
    rng.shuffle(steps)
    definitions = "; ".join(step.definition for step in steps)
    names = " ".join(step.name for step in path)
    question = f"values of {names} as one number" if ask == "all" else f"value of {path[-1].name}"
    return f"Modulo ten: {definitions}. Write the {question}."


def answer_of(path: Sequence[Step], ask: str) -> str:
    """What the box holds when the steps have these values."""
    return "".join(str(step.value) for step in (path if ask == "all" else path[-1:]))


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

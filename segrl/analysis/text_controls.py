"""Controls of a table of truth that read the texts of the thoughts and the answers alone: no model, no tokens."""

from __future__ import annotations

import operator
import re

from segrl.attribution.target import own_answer
from segrl.types import TokenisedTrace

OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul}
# An operation with its result, and the name that it defines, if it defines one: "b = a*3 = 9", "4 * 15 = 60".
STATED = re.compile(r"(?:\b([a-z]) = )?\b(\w+) ?([-+*]) ?(\w+) = (\d+)\b")


def digits(texts: list[str], trace: TokenisedTrace) -> list[float]:
    """The number of digits in each thought."""
    return [float(sum(map(str.isdigit, text))) for text in texts]


def new_result(texts: list[str], trace: TokenisedTrace) -> list[float]:
    """One for each thought that states an operation with its result which no thought before it states, else zero."""
    seen: set[str] = set()
    new = []
    for text in texts:
        stated = {match[0] for match in STATED.finditer(text)}
        new.append(float(bool(stated - seen)))
        seen |= stated
    return new


def redone(texts: list[str], trace: TokenisedTrace) -> list[float]:
    """Above zero for thoughts with an operation that has another result, by what was stated for its operands. The
    first such thought has the highest score.
    """
    values: dict[str, int] = {}
    modulus = 10 if trace.problem.startswith("Modulo ten") else None
    scores = []
    for s, text in enumerate(texts):
        wrong = False
        for name, left, sign, right, result in STATED.findall(text):
            operands = [int(word) if word.isdigit() else values.get(word) for word in (left, right)]
            if None not in operands:
                value = OPERATORS[sign](*operands)
                wrong |= (value % modulus if modulus else value) != int(result)
            if name:
                values[name] = int(result)
        scores.append(float(len(texts) - s) if wrong else 0.0)
    return scores


def lookup(texts: list[str], trace: TokenisedTrace) -> list[float]:
    """Above zero for thoughts that state the response's own answer, or a character in which it differs from gold. The
    first such thought has the highest score.
    """
    answer, gold = own_answer(trace) or "", trace.answer or ""
    parted = {new for new, old in zip(answer, gold, strict=False) if new != old} if len(answer) == len(gold) else set()
    sought = {answer} | parted
    states = [any(re.search(rf"(?<!\d){re.escape(text)}(?!\d)", thought) for text in sought) for thought in texts]
    return [float(len(texts) - s) if stated else 0.0 for s, stated in enumerate(states)]

"""The toy world's thoughts in words: an opener, a filler and a core, in sizes that tell nothing of their kind."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from functools import cache

from segrl.toy.problems import Step, answer_of

Thought = tuple[str, int]  # its kind, and the step it deals with or -1

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
TWO_DIGITS = (" if n = {x}, n is {x}.", " if {x} = n, {x} is n.", " as n = {x}, n is {x}.")
THREE_DIGITS = (" {x}+0 = {x} as it is.", " {x}-0 = {x} as it is.")
# A step from two digits states three digits. With ask=last only the first step does so, and it is repeated most often;
# to make up for it, no superficial thought has three digits there.
SUPERFICIAL = {"all": (*TWO_DIGITS, *THREE_DIGITS), "last": TWO_DIGITS}
# With a filler in front, every needed or redundant core can have each of SIZES exactly.
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
UNFILLED = ("correction", "check", "recheck", "restated", "close")  # in class other, so their size gives nothing away


def write_response(rng: random.Random, plan: Sequence[Thought], path: Sequence[Step], ask: str) -> str:
    """The response whose thoughts are those of the plan, and which ends with the answer in a box."""
    answer = answer_of(path, ask)
    thoughts = []
    for i, (kind, at) in enumerate(plan):
        opener = rng.choice(OPENERS) if i else FIRST_OPENER
        thoughts.append(opener + _thought(rng, kind, path[at], ask, answer))
    return "\n\n".join(thoughts) + f"\n</think> So, the final answer is \\boxed{{{answer}}}"


def _thought(rng: random.Random, kind: str, step: Step, ask: str, answer: str) -> str:
    core = _core(rng, kind, step, ask, answer)
    if kind in UNFILLED:
        return core
    tokens, characters = rng.choice(SIZES)
    return rng.choice(_fillers(tokens - count_tokens(core), characters - len(core))) + core


def _core(rng: random.Random, kind: str, step: Step, ask: str, answer: str) -> str:
    if kind in ("wrong", "detour"):
        return f" {step.definition} = {(step.value + rng.randrange(1, 10)) % 10}."
    if kind == "superficial":
        return rng.choice(SUPERFICIAL[ask]).format(x=rng.randrange(1, 10))
    if kind == "close":
        return rng.choice(CLOSES)
    return {
        "needed": f" {step.definition} = {step.value}.",
        "repeat": f" {step.definition} = {step.value}.",
        "truncated": f" {step.definition}, {step.right}...",
        "correction": f" {step.name} was wrong, {step.definition} = {step.value}.",
        "check": f" {step.undone} gives {step.left} back, so {step.name} = {step.value}.",
        "recheck": f" {step.undone} gives {step.left} back, so {step.name} = {step.value}.",
        "restated": f" together that makes {answer}.",
    }[kind]


@cache
def _fillers(tokens: int, characters: int) -> list[str]:
    return [filler for filler in FILLERS if (count_tokens(filler), len(filler)) == (tokens, characters)]


def count_tokens(text: str) -> int:
    """The number of tokens in toy text: words, digits, blanks before digits, and runs of punctuation."""
    return len(re.findall(r" ?[A-Za-z]+|\d| ?[^\sA-Za-z\d]+\n*|\s", text))

"""The verdict on an answer: by its text, by its trees, and last by math-verify in a process that can be killed."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from segrl.grading import latex
from segrl.grading.answer import explosive, extract, last_answer, same_choice, too_long
from segrl.grading.equality import equal
from segrl.grading.parser import read
from segrl.grading.pool import shared
from segrl.grading.rationals import NotExact, TooBig, Undefined
from segrl.grading.tokens import Unreadable
from segrl.grading.tree import Node, is_value, variables

LONG = 20_000  # characters
COMPARED = ("exact", "numeric", "symbolic")
UNDECIDED = ("gold_unparsable", "timeout", "refused")


@dataclass(frozen=True)
class Verdict:
    """Whether ``pred`` is ``gold``, and which stage said so.

    ``exact``: by the text. ``numeric``: as numbers. ``symbolic``: as expressions, sets or relations. Where no verdict
    was reached, the answer is not correct: ``no_answer``, ``gold_unparsable``, ``timeout``, ``refused``.
    """

    correct: bool
    status: str
    pred: str | None
    gold: str
    ms: float

    @property
    def wrong(self) -> bool:
        """Whether the answer was compared and is another one than the gold one."""
        return not self.correct and self.status in COMPARED

    @property
    def word(self) -> str:
        """``right``, ``wrong``, or ``undecided`` where grading gave up."""
        return "right" if self.correct else "undecided" if self.status in UNDECIDED else "wrong"


@dataclass(frozen=True)
class Answer:
    """An answer as it is compared: its tidied text, and the trees it may be read as."""

    text: str
    key: str
    trees: tuple[Node, ...]
    worded: bool  # it holds words, which math-verify would take for products of letters


def grade(gold: str, response: str, *, thinking: str = "auto", prompt: str = "", finish: str | None = None) -> Verdict:
    """The verdict on a whole response. ``prompt``, or its tail, and ``finish`` say whether it was still thinking."""
    return grade_answer(gold, extract(response, thinking, prompt, finish))


async def grade_async(
    gold: str, response: str, *, thinking: str = "auto", prompt: str = "", finish: str | None = None
) -> Verdict:
    """``grade`` for an event loop, which goes on while a worker process is asked."""
    return await grade_answer_async(gold, await _aside(response, extract, response, thinking, prompt, finish))


def grade_answer(gold: str, pred: str | None) -> Verdict:
    """The verdict on an extracted answer."""
    start = time.perf_counter()
    settled = cheap(gold, pred) or shared().call(_gold(gold), pred or "")
    return _verdict(settled, gold, pred, start)


async def grade_answer_async(gold: str, pred: str | None) -> Verdict:
    """``grade_answer`` for an event loop."""
    start = time.perf_counter()
    settled = await _aside(pred, cheap, gold, pred) or await shared().call_async(_gold(gold), pred or "")
    return _verdict(settled, gold, pred, start)


async def _aside(text: str | None, function: Callable[..., Any], *given: Any) -> Any:
    """What the function returns; long texts are read in a thread. Four hostile texts of a million characters would hold
    an event loop up for 0.1 s.
    """
    return await asyncio.to_thread(function, *given) if len(text or "") > LONG else function(*given)


def _verdict(settled: tuple[bool, str], gold: str, pred: str | None, start: float) -> Verdict:
    return Verdict(settled[0], settled[1], pred, gold, 1e3 * (time.perf_counter() - start))


def cheap(gold: str, pred: str | None) -> tuple[bool, str] | None:
    """(correct, status) where no computer algebra is needed, None where it is."""
    pred, gold = (pred or "").strip(), gold.strip()
    if not gold:
        return False, "gold_unparsable"
    if not pred:
        return False, "no_answer"
    if too_long(pred) or too_long(gold):
        same = "".join(pred.split()) == "".join(gold.split())
        return same, "exact" if same else "refused"
    if _bare(gold) == _bare(pred):
        return True, "exact"
    left, right = answer(_gold(gold)), answer(pred)
    if not right.key:
        return False, "no_answer"
    if left.key == right.key:
        return True, "exact"
    letter = same_choice(left.text, right.text)
    if letter is not None:
        return letter, "exact"
    if _is_run(left) and _is_run(right):
        return left.key.lower() == right.key.lower(), "exact"
    return _by_reading(left, right) or _by_words(left, right) or _guarded(left, right)


def _bare(text: str) -> str:
    return re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", text).strip("$").rstrip(".")


def _gold(gold: str) -> str:
    r"""The answer in a gold: what its boxes hold, or the gold itself where it has none, as in ``$125$ miles``."""
    gold = gold.strip()
    return (last_answer(gold, adjacent=True) or gold) if "boxed" in gold else gold


@lru_cache(maxsize=4096)
def answer(text: str) -> Answer:
    """An answer as it is compared; cached, because the same golds come again and again."""
    tidied = latex.tidy(text)
    trees = []
    for reading in _readings(tidied):
        try:
            trees.append(read(reading))
        except (Unreadable, RecursionError):
            continue
    return Answer(tidied, latex.key(tidied), tuple(trees), latex.has_words(tidied))


def _is_run(side: Answer) -> bool:
    """Whether an answer is letters alone, a word or points of a figure, which are compared as text."""
    return bool(re.fullmatch("[A-Za-z]{2,}", side.key)) and len(latex.words(side.text)) == 1


_THOUSANDS = re.compile(r"(?<![\d.,_])[1-9]\d{0,2}(?:,\d{3})+(?![\d,])")
_DECIMAL_COMMA = re.compile(r"(-?(?:0|\d{4,})),(\d+)")


def _readings(tidied: str) -> list[str]:
    """The texts an answer may be read as: ``1,234`` is a number or, as in brackets, two; ``1000,99`` a decimal."""
    grouped = _THOUSANDS.sub(lambda m: m[0].replace(",", "") if _outside(tidied, m.start()) else m[0], tidied)
    decimal = _DECIMAL_COMMA.sub(r"\1.\2", tidied) if _DECIMAL_COMMA.fullmatch(tidied) else tidied
    return list(dict.fromkeys((grouped, decimal, tidied)))


def _outside(text: str, at: int) -> bool:
    """Whether no bracket is open at ``at``."""
    opened, closed = (
        sum(text.count(mark, 0, at) for mark in marks) for marks in (("(", "[", "\\{"), (")", "]", "\\}"))
    )
    return opened == closed


def _by_reading(gold: Answer, pred: Answer) -> tuple[bool, str] | None:
    """The verdict of the trees, None where one is missing or open: right if any two of them are the same."""
    verdicts: list[tuple[bool | None, str]] = []
    for left in gold.trees:
        for right in pred.trees:
            plain = all(is_value(tree) and not variables(tree) for tree in (left, right))
            try:
                verdicts.append((equal(left, right), "numeric" if plain else "symbolic"))
            except TooBig:
                return False, "refused"
            except (NotExact, Undefined, RecursionError):
                verdicts.append((None, ""))
    for same, status in verdicts:
        if same:
            return True, status
    return None if not verdicts or any(same is None for same, _ in verdicts) else (False, verdicts[0][1])


def _by_words(gold: Answer, pred: Answer) -> tuple[bool, str] | None:
    """The verdict on answers in words, None for others: the same words in any case, a date in any order."""
    if not (gold.worded or pred.worded):
        return None
    left, right = (_content_words(side.text) for side in (gold, pred))
    dated = 1 < len(left) < 4 and sum(word.isdigit() for word in left) == 1 and left[0].isalnum()
    return left == right or (dated and sorted(left) == sorted(right)), "exact"


def _content_words(text: str) -> list[str]:
    words = [word for word in latex.words(text) if word not in ("the", "a", "an")]
    return words[2:] if words[:2] == ["answer", "is"] else words


def _guarded(gold: Answer, pred: Answer) -> tuple[bool, str] | None:
    """The verdict where math-verify is not asked: it might not end, or the gold is a value and the prediction none."""
    if explosive(gold.text) or explosive(pred.text):
        return False, "refused"
    no_value = any(map(is_value, gold.trees)) and _NO_VALUE.search(_BOUNDS.sub("", pred.text))
    return (False, "symbolic") if no_value else None


_BOUNDS = re.compile(r"[_^]\s*\{[^{}]*\}")  # of a sum, where an equals sign is no relation
_NO_VALUE = re.compile(r"[<>=,;?]|\\(?:le|ge|ne|in|to|approx|equiv|cup|cap|boxed|\\|\{)(?![A-Za-z])")

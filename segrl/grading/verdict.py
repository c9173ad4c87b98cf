"""Is the answer right? An exact match, else math-verify in this process.

This is the plain form: math-verify's own alarm bounds it, which works in a main thread alone. Elsewhere an answer that
is not an exact match is compared without a bound on its time, unless it is longer than ``LONGEST`` or holds a tower.
"""

from __future__ import annotations

import re
import threading
import time
from dataclasses import dataclass

from segrl.grading.answer import extract

LONGEST = 500
SECONDS = 5
EXPLOSIVE = re.compile(r"\^\s*\{?[^{}]*\^|!|\\binom|\\Gamma|\d{6,}\s*\^|\^\s*\{?\s*\d{4,}")


@dataclass(frozen=True)
class Verdict:
    """``status``: exact, symbolic, no_answer, gold_unparsable, timeout or refused."""

    correct: bool
    status: str
    pred: str | None
    gold: str
    ms: float


def grade(gold: str, response: str, *, thinking: str = "auto", prompt: str = "") -> Verdict:
    """The verdict on a whole response."""
    return grade_answer(gold, extract(response, thinking, prompt))


def grade_answer(gold: str, pred: str | None) -> Verdict:
    """The verdict on an extracted answer."""
    start = time.perf_counter()
    correct, status = _judge(gold, pred)
    return Verdict(correct, status, pred, gold, 1e3 * (time.perf_counter() - start))


def _judge(gold: str, pred: str | None) -> tuple[bool, str]:
    if not pred:
        return False, "no_answer"
    if _plain(gold) == _plain(pred):
        return True, "exact"
    if len(pred) > LONGEST or EXPLOSIVE.search(pred):
        return False, "refused"
    return _math_verify(gold, pred)


def _plain(answer: str) -> str:
    return re.sub(r"\s+", "", answer).strip("$").rstrip(".")


def _math_verify(gold: str, pred: str) -> tuple[bool, str]:
    from math_verify import parse, verify
    from math_verify.errors import TimeoutException

    seconds = SECONDS if threading.current_thread() is threading.main_thread() else None
    try:
        parsed = parse(f"\\boxed{{{gold}}}", parsing_timeout=seconds)
        if not parsed:
            return False, "gold_unparsable"
        return bool(
            verify(parsed, parse(f"\\boxed{{{pred}}}", parsing_timeout=seconds), timeout_seconds=seconds)
        ), "symbolic"
    except TimeoutException:
        return False, "timeout"

r"""Whether a segment breaks off unfinished, asked of a model in two rounds ([IG] appendix B, in our own words).

In the first round the model sees the segment between its neighbours and thinks before it answers 1 or 0. Where its
tokens run out first, the second round goes on from what it has thought, says that time is up, and takes the answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from segrl.text.boxed import last_boxed
from segrl.text.prompting import THINK_END
from segrl.types import Trace

QUESTION = r"""A model solved a problem by reasoning aloud. Below are three steps of its reasoning, A, B and C, which
follow each other directly. Decide whether step B is a truncated step, that is, one which was given up unfinished.

What tells them apart:
- A finished step carries its line of thought to a result: a value, a conclusion, a decision. What comes before leads to
  it or is answered by it, and what comes after can build on it.
- A truncated step begins something, a calculation, a check, a new approach, and stops before it has shown anything. It
  often drops what step A was doing, and step C in turn drops it and begins anew.

A finished step, for example:
"But is 17 * 24 really 408? 17 * 20 is 340 and 17 * 4 is 68, together 408. Yes, so the area is 408."
It asks something, works it out, and says what follows.

A truncated step, for example:
"Alternatively, maybe count the pairs by symmetry. For n = 1 there is one, for n = 2 there are"
It opens another way and leaves it without a result.

Steps A and C are there for context; judge step B alone.

Step A:
<<<
{before}
>>>

Step B:
<<<
{judged}
>>>

Step C:
<<<
{after}
>>>

Is step B truncated? The final answer is a single digit: \boxed{1} for yes, \boxed{0} for no; write nothing after it."""
TIME_IS_UP = "\n\nThere is no time left to think about this. I stop here and answer at once, with 1 or 0."
ANSWER = "\nThe final answer is \\boxed{"
BEGINNING, END = "(the reasoning begins with step B)", "(the reasoning ends with step B)"


def questions(found: Mapping[str, Any]) -> list[Trace]:
    """One for each thought of a trace, called ``id/s``; the last thought is followed by what stands behind it."""
    texts = found["texts"]
    around = [BEGINNING, *texts, found["answer_text"] or END]
    return [
        Trace(id=f"{found['id']}/{s}", problem=_filled(around[s], texts[s], around[s + 2])) for s in range(len(texts))
    ]


def _filled(before: str, judged: str, after: str) -> str:
    """One pass, so that braces in a segment are text."""
    head, _, rest = QUESTION.partition("{before}")
    middle, _, rest = rest.partition("{judged}")
    between, _, tail = rest.partition("{after}")
    return head + before + middle + judged + between + after + tail


def verdict(response: str) -> bool | None:
    """What was answered behind the thought, or None."""
    return {"1": True, "0": False}.get(last_boxed(response.rpartition(THINK_END)[2]) or "")


def hurried(response: Trace) -> Trace | None:
    """The second round for a response without a verdict: the same prompt and thoughts, cut short.

    None where the prompt did not travel with the response, as from a chat endpoint, whose turn cannot be gone on with.
    """
    prompt = response.prompt
    if not prompt:
        return None
    end = "" if THINK_END in response.response else f"\n{THINK_END}"
    said = response.response.rstrip() + TIME_IS_UP
    return Trace(id=response.problem_id, problem=f"{prompt}{said}{end}{ANSWER}")


def hurried_verdict(response: str) -> bool | None:
    """What stands in the box that the second round has opened."""
    return {"1": True, "0": False}.get(response.strip()[:1])


def by_trace(found: Sequence[Mapping[str, Any]], verdicts: Mapping[str, bool | None]) -> list[list[float | None]]:
    """1 where a thought was judged truncated, 0 where not, None where no verdict came."""
    return [[_number(verdicts.get(f"{one['id']}/{s}")) for s in range(len(one["texts"]))] for one in found]


def planted(found: Sequence[Mapping[str, Any]]) -> list[list[float | None]]:
    """The same from planted kinds."""
    return [
        [float(kind == "truncated") for kind in one["kinds"]] if one["kinds"] else [None] * len(one["texts"])
        for one in found
    ]


def _number(verdict: bool | None) -> float | None:
    return None if verdict is None else float(verdict)

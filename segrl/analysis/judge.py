r"""Questions that ask a model, in two rounds, whether a segment breaks off unfinished ([IG] appendix B, reworded).

In the first round the model sees the segment between its neighbours and thinks before it answers 1 or 0. Where its
tokens run out first, the second round continues what it has thought, says that time is up, and takes the answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from segrl.grading.answer import extract
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


def questions(row: Mapping[str, Any]) -> list[Trace]:
    """A question for each thought of a trace, called ``id/s``; behind the last thought stands the answer's text."""
    texts = row["texts"]
    around = [BEGINNING, *texts, row["answer_text"] or END]
    return [
        Trace(id=f"{row['id']}/{s}", problem=_filled(around[s], texts[s], around[s + 2])) for s in range(len(texts))
    ]


def _filled(before: str, judged: str, after: str) -> str:
    """The question about ``judged``, filled in one pass, so that braces in a segment are text."""
    head, _, rest = QUESTION.partition("{before}")
    middle, _, rest = rest.partition("{judged}")
    between, _, tail = rest.partition("{after}")
    return head + before + middle + judged + between + after + tail


def verdict(response: Trace) -> bool | None:
    """The answer of the first round: True for 1, False for 0, else None, as for a box quoted by an unfinished thought.

    A response that was cut off has answered only behind ``</think>``, whether or not a tag has opened its thought.
    """
    thinking = "required" if response.finish == "length" else "auto"
    answer = extract(response.response, thinking, response.prompt or "", response.finish)
    return {"1": True, "0": False}.get(answer or "")


def hurried(response: Trace) -> Trace | None:
    """The second round for a response without a verdict: the same prompt and thoughts, cut short.

    None where the response came without its prompt, as from a chat endpoint: such a turn cannot be continued.
    """
    prompt = response.prompt
    if not prompt:
        return None
    end = "" if THINK_END in response.response else f"\n{THINK_END}"
    said = response.response.rstrip() + TIME_IS_UP
    return Trace(id=response.problem_id, problem=f"{prompt}{said}{end}{ANSWER}")


def hurried_verdict(response: str) -> bool | None:
    """The answer in the box that the second round has opened: True for 1, False for 0, else None."""
    return {"1": True, "0": False}.get(response.strip()[:1])


def by_trace(rows: Sequence[Mapping[str, Any]], verdicts: Mapping[str, bool | None]) -> list[list[float | None]]:
    """1 where a thought was judged truncated, 0 where not, None where no verdict came."""
    return [[_number(verdicts.get(f"{row['id']}/{s}")) for s in range(len(row["texts"]))] for row in rows]


def planted(rows: Sequence[Mapping[str, Any]]) -> list[list[float | None]]:
    """1 where a thought was planted as truncated, 0 where not, None in a trace without planted kinds."""
    return [
        [float(kind == "truncated") for kind in row["kinds"]] if row["kinds"] else [None] * len(row["texts"])
        for row in rows
    ]


def _number(verdict: bool | None) -> float | None:
    return None if verdict is None else float(verdict)

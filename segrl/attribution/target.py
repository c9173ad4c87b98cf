r"""What is explained: the answer in ``</think> So, the final answer is \boxed{...}``, appended to the thinking.

All tokens of an answer are explained. A contrast explains one token: the first at which the response's own answer and
the gold answer part. Both sequences are equal up to it, so one row says why the model prefers one token to the other.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from segrl.grading import grade_answer
from segrl.grading.answer import extract
from segrl.tokenization import encode, thinking_tokens
from segrl.types import TokenisedTrace

TEMPLATE = "</think> So, the final answer is \\boxed{{answer}}"
TARGETS = ("gold", "own", "contrast")
CONTEXTS = ("think", "full")


@dataclass(frozen=True, eq=False)
class Explained:
    """One sequence ``prompt + thinking + suffix`` and where in it the explained answer stands."""

    trace: TokenisedTrace
    answer: str
    input_ids: Tensor
    thinking: slice
    answer_span: tuple[int, int]
    restates: Tensor  # per input position: does this token of the thinking restate the answer?
    rival: int | None = None  # in a contrast, the gold answer's token; the span holds the response's own

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def thinking_tokens(self) -> int:
        """The number of tokens of the thinking."""
        return self.thinking.stop - self.thinking.start

    def of_response(self, values_L: Tensor) -> Tensor:
        """The values of the response's tokens, from those of all positions; zero for tokens after the thinking."""
        values_T = torch.zeros(self.trace.tokens, *values_L.shape[1:], dtype=values_L.dtype)
        values_T[: self.thinking_tokens] = values_L[self.thinking]
        return values_T


def explain(
    trace: TokenisedTrace, tokenizer, target: str = "gold", template: str = TEMPLATE, context: str = "think"
) -> Explained:
    """The trace's thinking with the answer appended; the answer's tokens are found by their characters.

    A right response has no other answer to contrast: its gold answer is explained.
    """
    if context not in CONTEXTS:
        raise ValueError(f"context={context!r}, expected one of {CONTEXTS}")
    if target == "contrast":
        answer, gold = answer_of(trace, "own"), answer_of(trace, "gold")
        if not grade_answer(gold, answer).correct:
            return _contrast(trace, tokenizer, answer, gold, template, context)
        target = "gold"
    answer = answer_of(trace, target)
    suffix_ids, first, last = answer_suffix(answer, tokenizer, template)
    return _appended(trace, answer, suffix_ids, (first, last), context)


def _contrast(trace: TokenisedTrace, tokenizer, answer: str, gold: str, template: str, context: str) -> Explained:
    suffix_ids, _, _ = answer_suffix(answer, tokenizer, template)
    gold_ids, _, _ = answer_suffix(gold, tokenizer, template)
    pairs = zip(suffix_ids.tolist(), gold_ids.tolist(), strict=False)
    parted = [at for at, (id, gold_id) in enumerate(pairs) if id != gold_id]
    if not parted:
        raise ValueError(
            f"trace {trace.id!r}: its own answer {answer!r} and the gold one {gold!r} have no token at which they part "
            f"in the template {template!r}; end the template with a word behind '{{answer}}'"
        )
    at = parted[0]
    return _appended(trace, answer, suffix_ids[: at + 1], (at, at + 1), context, rival=int(gold_ids[at]))


def _appended(
    trace: TokenisedTrace,
    answer: str,
    suffix_ids: Tensor,
    span: tuple[int, int],
    context: str,
    rival: int | None = None,
) -> Explained:
    kept = thinking_tokens(trace) if context == "think" else trace.tokens
    start, end = len(trace.prompt_ids), len(trace.prompt_ids) + kept
    restates = torch.zeros(end + len(suffix_ids), dtype=torch.bool)
    restates[start:end] = restating_tokens(trace, answer)[:kept]
    return Explained(
        trace=trace,
        answer=answer,
        input_ids=torch.cat([trace.prompt_ids, trace.response_ids[:kept], suffix_ids]),
        thinking=slice(start, end),
        answer_span=(end + span[0], end + span[1]),
        restates=restates,
        rival=rival,
    )


def answer_of(trace: TokenisedTrace, target: str) -> str:
    """The gold answer, or the answer that the response itself gives."""
    if target not in TARGETS:
        raise ValueError(f"target={target!r}, expected one of {TARGETS}")
    answer = trace.answer if target == "gold" else own_answer(trace)
    if not answer:
        missing, other = ("has no gold answer", "own") if target == "gold" else ("boxes no answer of its own", "gold")
        raise ValueError(
            f"trace {trace.id!r} {missing}: there is nothing to explain; leave it out, or take target={other}"
        )
    return answer


def own_answer(trace: TokenisedTrace) -> str | None:
    """The answer that the response gives: as the trace says, or as it is graded."""
    return trace.own_answer or extract(trace.response, prompt=trace.prompt or "", finish=trace.finish)


def answer_suffix(answer: str, tokenizer, template: str = TEMPLATE) -> tuple[Tensor, int, int]:
    """The ids of the filled template, and the half-open range of those that hold a character of the answer."""
    if template.count("{answer}") != 1:
        raise ValueError(f"the answer template {template!r} must hold '{{answer}}' once")
    start = template.index("{answer}")
    ids, offsets_T = encode(template.replace("{answer}", answer), tokenizer, "answer template")
    inside = (offsets_T[:, 1] > start) & (offsets_T[:, 0] < start + len(answer))
    positions = inside.nonzero().flatten()
    return ids, int(positions[0]), int(positions[-1]) + 1


def restating_tokens(trace: TokenisedTrace, answer: str) -> Tensor:
    """A mask of the response tokens that hold a character of any occurrence of the answer."""
    restating_T = torch.zeros(trace.tokens, dtype=torch.bool)
    start = trace.response.find(answer)
    while start >= 0:
        restating_T |= (trace.offsets_T[:, 1] > start) & (trace.offsets_T[:, 0] < start + len(answer))
        start = trace.response.find(answer, start + 1)
    return restating_T

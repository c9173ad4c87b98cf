"""The log-probability of the answer after parts of the thinking, and its gradient at the input."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from segrl.attribution.evaluator import Batching, Evaluator, Row, left_padded, tail_of, unwrapped
from segrl.attribution.path import evaluating, feeding_forward_last
from segrl.attribution.target import Explained
from segrl.importance.reading import Reading, read_on
from segrl.types import Segments, TokenisedTrace


class Reader(Evaluator):
    """Evaluates rows at the input itself: the answer's log-probability and, for rows with a weight, two numbers a
    position: gradient . embedding, and the norm of their elementwise product.
    """

    def __init__(self, model, explained: list[Explained]) -> None:
        super().__init__(model, explained, baseline="mean")  # never asked for: nothing moves

    def __call__(self, rows: Sequence[Row], checkpointing: bool = False) -> tuple[list[float], list[Tensor]]:
        traces = [self.explained[row.index] for row in rows]
        ids_BL, attended_BL = left_padded([one.input_ids for one in traces], 0, self.device)
        wants_gradient = rows[0].weight is not None
        with ExitStack() as state:
            state.enter_context(evaluating(self.model, checkpointing))
            if self.keeps_logits:
                state.enter_context(feeding_forward_last(self.model, tail_of(traces)))
            state.enter_context(torch.set_grad_enabled(wants_gradient))
            embedded = state.enter_context(leaves(self.embedding)) if wants_gradient else []
            logp_B = self.answer_logp(ids_BL, attended_BL, traces)
            masses = _products(logp_B, embedded[0]) if wants_gradient else torch.zeros(*ids_BL.shape, 2)
        return logp_B.tolist(), [row_L[-len(one) :] for row_L, one in zip(masses.cpu(), traces, strict=True)]


@contextmanager
def leaves(embedding) -> Iterator[list[Tensor]]:
    """The embedding's outputs, as leaves that gradients reach."""
    found: list[Tensor] = []

    def keep(module, args, output: Tensor) -> Tensor:
        found.append(output.detach().requires_grad_())
        return found[-1]

    handle = embedding.register_forward_hook(keep, prepend=True)  # before FSDP2's, as the path does
    try:
        yield found
    finally:
        handle.remove()


def _products(logp_B: Tensor, embedded: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(logp_B.sum(), embedded)
    product = gradient.float() * embedded.detach().float()
    return torch.stack([product.sum(-1), product.norm(dim=-1)], -1)


# --- gatherers -------------------------------------------------------------------------------------------------------


def gradients(model, traces: Sequence[TokenisedTrace], tokenizer, segments, reading: Reading) -> list[dict[str, Any]]:
    """One evaluation a trace."""
    explained = reading.explained(model, traces, tokenizer)
    rows = [Row(index, 1.0, 1.0) for index in range(len(explained))]
    fields: list[dict[str, Any]] = [{} for _ in traces]
    for row, logp, products_L2 in reading.batching.run(Reader(model, explained), rows):
        one = explained[row.index]
        inside_T2 = torch.zeros(one.trace.tokens, 2)
        inside_T2[: one.thinking.stop - one.thinking.start] = products_L2[one.thinking]
        fields[row.index] = {
            "gradient_T": inside_T2[:, 0],
            "gradnorm_T": inside_T2[:, 1],
            "answer_logp": logp,
            "cost": {"gradient_T": 1.0, "gradnorm_T": 1.0},
        }
    return fields


def prefixes(
    model, traces: Sequence[TokenisedTrace], tokenizer, segments: Sequence[Segments], reading: Reading
) -> list[dict[str, Any]]:
    """The answer's log-probability after each prefix that ends with a segment, and after none."""
    explained = reading.explained(model, traces, tokenizer)
    if reading.shared_prefixes:
        found = [in_one_pass(model, one, own) for one, own in zip(explained, segments, strict=True)]
    else:
        kept = [_prefixes(one, own) for one, own in zip(explained, segments, strict=True)]
        found = kept_answer_logprob(model, explained, kept, reading.batching)
    return [
        {
            "prefix_logp_S": logp_K[1:],
            "empty_logp": float(logp_K[0]),
            "answer_logp": float(logp_K[-1]),
            "cost": {"prefix_logp_S": cost},
        }
        for logp_K, cost in found
    ]


def without(
    model, traces: Sequence[TokenisedTrace], tokenizer, segments: Sequence[Segments], reading: Reading
) -> list[dict[str, Any]]:
    """The answer's log-probability without each segment, and with all."""
    explained = reading.explained(model, traces, tokenizer)
    kept = [_all_but_one(one, own) for one, own in zip(explained, segments, strict=True)]
    return [
        {"without_logp_S": logp_K[1:], "answer_logp": float(logp_K[0]), "cost": {"without_logp_S": cost}}
        for logp_K, cost in kept_answer_logprob(model, explained, kept, reading.batching)
    ]


def prefix_answer_logprob(
    model, traces: Sequence[TokenisedTrace], tokenizer=None, segments: Sequence[Segments] = (), **options
) -> list[Tensor]:
    """The answer's log-probability after no segment, after the first, the first two, ...: S + 1 values a trace.

    Every prefix is a row of its own under a budget of tokens a forward (``batch_tokens``), prefixes of all traces
    together; with ``shared_prefixes`` each trace is read once. ``options``: :class:`segrl.importance.reading.Reading`.
    """
    found = prefixes(model, traces, tokenizer, segments, Reading(**options))
    return [torch.cat([torch.tensor([one["empty_logp"]]), one["prefix_logp_S"]]) for one in found]


# --- rows ------------------------------------------------------------------------------------------------------------


def kept_answer_logprob(
    model, explained: Sequence[Explained], kept: Sequence[Tensor], batching: Batching
) -> list[tuple[Tensor, float]]:
    """For each trace and each row of its ``kept`` (K, thinking tokens): the answer's log-probability when only these
    tokens stand in the thinking; and what that took, in forwards over the whole trace. Equal rows are read once.
    """
    pieces: list[Explained] = []
    places: list[Tensor] = []
    for one, kept_KT in zip(explained, kept, strict=True):
        distinct, index_K = kept_KT.unique(dim=0, return_inverse=True)
        places.append(len(pieces) + index_K)
        pieces += [keeping(one, kept_T) for kept_T in distinct]
    values = torch.zeros(len(pieces), dtype=torch.float64)
    rows = [Row(index, 1.0, None) for index in range(len(pieces))]
    for row, logp, _ in batching.run(Reader(model, pieces), rows):
        values[row.index] = logp
    costs = [
        sum(len(pieces[k]) for k in set(index_K.tolist())) / len(one)
        for one, index_K in zip(explained, places, strict=True)
    ]
    return [(values[index_K], cost) for index_K, cost in zip(places, costs, strict=True)]


@torch.no_grad()
def in_one_pass(model, one: Explained, segments: Segments) -> tuple[Tensor, float]:
    """The answer's log-probability after each prefix, the trace read once: the template goes on from a copy of the keys
    and values of what came before. For long traces, whose prefixes together are many times as long.
    """
    inner, start, stop = unwrapped(model), one.thinking.start, one.thinking.stop
    first, last = one.answer_span
    values: dict[int, float] = {}
    cache, read, tokens = None, 0, 0
    for end in (min(start + boundary, stop) for boundary in segments.boundaries):
        if end not in values:
            before = max(end - 1, 0)  # the prefix's last token predicts an answer that the template begins with
            cache, read = read_on(inner, one.input_ids[read:before], cache), before
            asking = torch.cat([one.input_ids[before:end], one.input_ids[stop:]]).to(inner.device)
            logits_LV = inner(input_ids=asking[None], past_key_values=copy.deepcopy(cache), use_cache=True).logits[0]
            answer = slice(first - stop + end - before, last - stop + end - before)
            logp_AV = torch.log_softmax(logits_LV[answer.start - 1 : answer.stop - 1].float(), -1)
            values[end] = float(logp_AV.gather(-1, asking[answer, None]).sum())
            tokens += len(asking)
    logps = [values[min(start + boundary, stop)] for boundary in segments.boundaries]
    return torch.tensor(logps, dtype=torch.float64), (read + tokens) / len(one)


def keeping(one: Explained, kept_T: Tensor) -> Explained:
    """The same with only these tokens of its thinking."""
    start, stop = one.thinking.start, one.thinking.stop
    whole_L = torch.ones(len(one), dtype=torch.bool)
    whole_L[start:stop] = kept_T
    gone = int((~whole_L).sum())
    return replace(
        one,
        input_ids=one.input_ids[whole_L],
        thinking=slice(start, stop - gone),
        answer_span=(one.answer_span[0] - gone, one.answer_span[1] - gone),
        restates=one.restates[whole_L],
    )


def _prefixes(one: Explained, segments: Segments) -> Tensor:
    """(S + 1, thinking tokens): nothing, the first segment, the first two, ..."""
    token_T = torch.arange(one.thinking.stop - one.thinking.start)
    return token_T[None] < torch.tensor(segments.boundaries)[:, None]


def _all_but_one(one: Explained, segments: Segments) -> Tensor:
    """(S + 1, thinking tokens): everything, and everything but each segment."""
    index_T = segments.index_T[: one.thinking.stop - one.thinking.start]
    return index_T[None] != torch.arange(-1, len(segments))[:, None]

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
    """Evaluates rows at the input itself, without a path.

    A row gives the answer's log-probability and, if it has a weight, two numbers a position: gradient . embedding, and
    the norm of their elementwise product.
    """

    def __init__(self, model, explained: list[Explained]) -> None:
        super().__init__(model, explained, baseline="mean")  # not used: nothing moves

    def __call__(self, rows: Sequence[Row], checkpointing: bool = False) -> tuple[list[float], list[Tensor]]:
        sequences = [self.explained[row.index] for row in rows]
        ids_BL, attended_BL = left_padded([sequence.input_ids for sequence in sequences], 0, self.device)
        wants_gradient = rows[0].weight is not None
        with ExitStack() as state:
            state.enter_context(evaluating(self.model, checkpointing))
            if self.keeps_logits:
                state.enter_context(feeding_forward_last(self.model, tail_of(sequences)))
            state.enter_context(torch.set_grad_enabled(wants_gradient))
            embedded = state.enter_context(leaves(self.embedding)) if wants_gradient else []
            logp_B = self.answer_value(ids_BL, attended_BL, sequences)
            products = _products(logp_B, embedded[0]) if wants_gradient else torch.zeros(*ids_BL.shape, 2)
        products_B = zip(products.cpu(), sequences, strict=True)
        return logp_B.tolist(), [products_L2[-len(sequence) :] for products_L2, sequence in products_B]


@contextmanager
def leaves(embedding) -> Iterator[list[Tensor]]:
    """A list to which each forward adds the embedding's output, as a leaf tensor that requires a gradient."""
    outputs: list[Tensor] = []

    def keep(module, args, output: Tensor) -> Tensor:
        outputs.append(output.detach().requires_grad_())
        return outputs[-1]

    handle = embedding.register_forward_hook(keep, prepend=True)  # before FSDP2's hook, as in path.py
    try:
        yield outputs
    finally:
        handle.remove()


def _products(logp_B: Tensor, embedded: Tensor) -> Tensor:
    """The sum and the norm of gradient x embedding at each position."""
    (gradient,) = torch.autograd.grad(logp_B.sum(), embedded)
    product = gradient.float() * embedded.detach().float()
    return torch.stack([product.sum(-1), product.norm(dim=-1)], -1)


# --- gatherers -------------------------------------------------------------------------------------------------------


def gradients(model, traces: Sequence[TokenisedTrace], tokenizer, segments, reading: Reading) -> list[dict[str, Any]]:
    """The gradient of the answer's log-probability at each token, from one evaluation a trace."""
    explained = reading.explained(model, traces, tokenizer)
    rows = [Row(index, 1.0, 1.0) for index in range(len(explained))]
    fields: list[dict[str, Any]] = [{} for _ in traces]
    for row, logp, products_L2 in reading.batching.run(Reader(model, explained), rows):
        sequence = explained[row.index]
        inside_T2 = torch.zeros(sequence.trace.tokens, 2)
        inside_T2[: sequence.thinking.stop - sequence.thinking.start] = products_L2[sequence.thinking]
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
    """The answer's log-probability after each prefix that ends with a segment, and after an empty thinking."""
    explained = reading.explained(model, traces, tokenizer)
    if reading.shared_prefixes:
        logps = [
            in_one_pass(model, sequence, trace_segments)
            for sequence, trace_segments in zip(explained, segments, strict=True)
        ]
    else:
        kept = [
            _prefixes(sequence, trace_segments) for sequence, trace_segments in zip(explained, segments, strict=True)
        ]
        logps = kept_answer_logprob(model, explained, kept, reading.batching)
    return [
        {
            "prefix_logp_S": logp_K[1:],
            "empty_logp": float(logp_K[0]),
            "answer_logp": float(logp_K[-1]),
            "cost": {"prefix_logp_S": cost},
        }
        for logp_K, cost in logps
    ]


def without(
    model, traces: Sequence[TokenisedTrace], tokenizer, segments: Sequence[Segments], reading: Reading
) -> list[dict[str, Any]]:
    """The answer's log-probability without each segment, and with all segments."""
    explained = reading.explained(model, traces, tokenizer)
    kept = [
        _all_but_one(sequence, trace_segments) for sequence, trace_segments in zip(explained, segments, strict=True)
    ]
    return [
        {"without_logp_S": logp_K[1:], "answer_logp": float(logp_K[0]), "cost": {"without_logp_S": cost}}
        for logp_K, cost in kept_answer_logprob(model, explained, kept, reading.batching)
    ]


def prefix_answer_logprob(
    model, traces: Sequence[TokenisedTrace], tokenizer=None, segments: Sequence[Segments] = (), **options
) -> list[Tensor]:
    """The answer's log-probability after no segment, after the first, the first two, ...: S + 1 values a trace.

    Every prefix is a row by itself; prefixes of all traces share forwards of ``batch_tokens`` tokens. With
    ``shared_prefixes`` each trace is read once. ``options`` are those of :class:`segrl.importance.reading.Reading`.
    """
    fields = prefixes(model, traces, tokenizer, segments, Reading(**options))
    return [torch.cat([torch.tensor([field["empty_logp"]]), field["prefix_logp_S"]]) for field in fields]


# --- rows ------------------------------------------------------------------------------------------------------------


def kept_answer_logprob(
    model, explained: Sequence[Explained], kept: Sequence[Tensor], batching: Batching
) -> list[tuple[Tensor, float]]:
    """The answer's log-probability under each mask of ``kept``, and the cost in forwards over the whole trace.

    ``kept`` holds for each trace K masks of its thinking's tokens: (K, thinking tokens). The tokens that a mask leaves
    out are removed from the sequence. Equal masks are read once.
    """
    shortened: list[Explained] = []
    places: list[Tensor] = []
    for sequence, kept_KT in zip(explained, kept, strict=True):
        distinct, index_K = kept_KT.unique(dim=0, return_inverse=True)
        places.append(len(shortened) + index_K)
        shortened += [keeping(sequence, kept_T) for kept_T in distinct]
    values = torch.zeros(len(shortened), dtype=torch.float64)
    rows = [Row(index, 1.0, None) for index in range(len(shortened))]
    for row, logp, _ in batching.run(Reader(model, shortened), rows):
        values[row.index] = logp
    costs = [
        sum(len(shortened[k]) for k in set(index_K.tolist())) / len(sequence)
        for sequence, index_K in zip(explained, places, strict=True)
    ]
    return [(values[index_K], cost) for index_K, cost in zip(places, costs, strict=True)]


@torch.no_grad()
def in_one_pass(model, sequence: Explained, segments: Segments) -> tuple[Tensor, float]:
    """The answer's log-probability after each prefix, and the cost in forwards, the trace being read once.

    After each prefix the template is read on a copy of the prefix's keys and values. This is for long traces, whose
    prefixes together are many times as long.
    """
    inner, start, stop = unwrapped(model), sequence.thinking.start, sequence.thinking.stop
    first, last = sequence.answer_span
    values: dict[int, float] = {}
    cache, read, tokens = None, 0, 0
    for end in (min(start + boundary, stop) for boundary in segments.boundaries):
        if end not in values:
            before = max(end - 1, 0)  # the prefix's last token predicts an answer that the template begins with
            cache, read = read_on(inner, sequence.input_ids[read:before], cache), before
            suffix = torch.cat([sequence.input_ids[before:end], sequence.input_ids[stop:]]).to(inner.device)
            logits_LV = inner(input_ids=suffix[None], past_key_values=copy.deepcopy(cache), use_cache=True).logits[0]
            answer = slice(first - stop + end - before, last - stop + end - before)
            logp_AV = torch.log_softmax(logits_LV[answer.start - 1 : answer.stop - 1].float(), -1)
            values[end] = float(logp_AV.gather(-1, suffix[answer, None]).sum())
            tokens += len(suffix)
    logps = [values[min(start + boundary, stop)] for boundary in segments.boundaries]
    return torch.tensor(logps, dtype=torch.float64), (read + tokens) / len(sequence)


def keeping(sequence: Explained, kept_T: Tensor) -> Explained:
    """The sequence with only the tokens of its thinking that ``kept_T`` marks."""
    start, stop = sequence.thinking.start, sequence.thinking.stop
    kept_L = torch.ones(len(sequence), dtype=torch.bool)
    kept_L[start:stop] = kept_T
    removed = int((~kept_L).sum())
    return replace(
        sequence,
        input_ids=sequence.input_ids[kept_L],
        thinking=slice(start, stop - removed),
        answer_span=(sequence.answer_span[0] - removed, sequence.answer_span[1] - removed),
        restates=sequence.restates[kept_L],
    )


def _prefixes(sequence: Explained, segments: Segments) -> Tensor:
    """Masks (S + 1, thinking tokens): nothing, the first segment, the first two, ..."""
    token_T = torch.arange(sequence.thinking.stop - sequence.thinking.start)
    return token_T[None] < torch.tensor(segments.boundaries)[:, None]


def _all_but_one(sequence: Explained, segments: Segments) -> Tensor:
    """Masks (S + 1, thinking tokens): everything, and everything but each segment."""
    index_T = segments.index_T[: sequence.thinking.stop - sequence.thinking.start]
    return index_T[None] != torch.arange(-1, len(segments))[:, None]

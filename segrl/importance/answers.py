"""Gatherers of what the answer's value says: its gradient at the input, and its values after parts of the thinking."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from segrl.attribution.evaluator import Row
from segrl.attribution.target import Explained
from segrl.importance.keeping import in_one_pass, kept_answer_value
from segrl.importance.reader import Reader
from segrl.importance.reading import Reading
from segrl.types import Segments, TokenisedTrace


def gradients(model, traces: Sequence[TokenisedTrace], tokenizer, segments, reading: Reading) -> list[dict[str, Any]]:
    """The gradient of the answer's value at each token, from one evaluation a trace."""
    explained = reading.explained(model, traces, tokenizer)
    rows = [Row(index, 1.0, 1.0) for index in range(len(explained))]
    fields: list[dict[str, Any]] = [{} for _ in traces]
    for row, logp, products_L2 in reading.batching.run(Reader(model, explained, reading.output), rows):
        sequence = explained[row.index]
        inside_T2 = sequence.of_response(products_L2)
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
            in_one_pass(model, sequence, trace_segments, reading.output)
            for sequence, trace_segments in zip(explained, segments, strict=True)
        ]
    else:
        kept = [
            _prefixes(sequence, trace_segments) for sequence, trace_segments in zip(explained, segments, strict=True)
        ]
        logps = kept_answer_value(model, explained, kept, reading.batching, reading.output)
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
        for logp_K, cost in kept_answer_value(model, explained, kept, reading.batching, reading.output)
    ]


# --- masks -----------------------------------------------------------------------------------------------------------


def _prefixes(sequence: Explained, segments: Segments) -> Tensor:
    """Masks (S + 1, thinking tokens): nothing, the first segment, the first two, ..."""
    token_T = torch.arange(sequence.thinking_tokens)
    return token_T[None] < torch.tensor(segments.boundaries)[:, None]


def _all_but_one(sequence: Explained, segments: Segments) -> Tensor:
    """Masks (S + 1, thinking tokens): everything, and everything but each segment."""
    index_T = segments.index_T[: sequence.thinking_tokens]
    return index_T[None] != torch.arange(-1, len(segments))[:, None]

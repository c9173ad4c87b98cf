"""Continuations: the response sampled on from each prefix of its thinking, and the share that ends right.

Where every step states its value, the model needs only the last step, so scores on the finished text do not show the
first wrong step. The answers that the model reaches from before and from after a step show it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from segrl.attribution.evaluator import check_length, unwrapped
from segrl.attribution.target import answer_of
from segrl.generation.local import draw
from segrl.grading import grade
from segrl.importance.confidence import SAMPLED
from segrl.importance.reading import Reading, seed_of
from segrl.loading import tokenizer_of
from segrl.text.ending import end_tokens, finish_of
from segrl.tokenization import thinking_tokens
from segrl.types import Segments, TokenisedTrace


def continuations(
    model, traces: Sequence[TokenisedTrace], tokenizer, segments: Sequence[Segments], reading: Reading
) -> list[dict[str, Any]]:
    """The share of right answers among ``continuations`` of each prefix, sampled at ``temperature``."""
    tokenizer = tokenizer or tokenizer_of(model)
    return [
        _continued(unwrapped(model), tokenizer, trace, trace_segments, reading)
        for trace, trace_segments in zip(traces, segments, strict=True)
    ]


def _continued(model, tokenizer, trace: TokenisedTrace, segments: Segments, reading: Reading) -> dict[str, Any]:
    gold, stop = answer_of(trace, "gold"), thinking_tokens(trace)
    ends = [min(boundary, stop) for boundary in segments.boundaries]
    prefixes = [torch.cat([trace.prompt_ids, trace.response_ids[:end]]) for end in dict.fromkeys(ends)]
    check_length(model, trace.id, len(prefixes[-1]) + 1)
    rows = [prefix for prefix in prefixes for _ in range(reading.continuations)]
    sampled = _sampled(model, tokenizer, rows, trace.id, reading)
    finishing = end_tokens(tokenizer, model.generation_config)
    right: dict[int, int] = dict.fromkeys(ends, 0)
    for end, ids in zip((end for end in right for _ in range(reading.continuations)), sampled, strict=True):
        text = tokenizer.decode([*trace.response_ids[:end].tolist(), *ids], skip_special_tokens=True)
        right[end] += grade(gold, text, prompt=trace.prompt or "", finish=finish_of(ids, finishing)).correct
    shares = [right[end] / reading.continuations for end in ends]
    read = sum(map(len, rows)) + sum(map(len, sampled))
    return {
        "continued_S": torch.tensor(shares[1:], dtype=torch.float64),
        "empty_continued": shares[0],
        "cost": {"continued_S": read / (len(trace.prompt_ids) + trace.tokens)},
    }


def _sampled(model, tokenizer, rows: list[Tensor], name: str, reading: Reading) -> list[list[int]]:
    """The tokens drawn behind each row; the same in every call for the same trace id."""
    held = reading.batching.held(model.device)
    together = max(1, SAMPLED * held // (max(map(len, rows)) + reading.continued_tokens))
    sampled: list[list[int]] = []
    with torch.random.fork_rng():
        torch.manual_seed(seed_of(reading.seed, name))
        for at in range(0, len(rows), together):
            batch = [row.tolist() for row in rows[at : at + together]]
            sampled += draw(
                model, tokenizer, batch, temperature=reading.temperature, max_tokens=reading.continued_tokens
            )
    return sampled

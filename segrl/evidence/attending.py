"""How much the answer attends to each token of the thinking."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from segrl.attribution.evaluator import unwrapped
from segrl.attribution.target import Explained
from segrl.evidence.reading import Reading, read_on
from segrl.types import Trace


def attentions(model, traces: Sequence[Trace], tokenizer, segments, reading: Reading) -> list[dict[str, Any]]:
    explained = reading.explained(model, traces, tokenizer)
    return [
        {"attention_T": _within(one, answer_attention(model, one)), "cost": {"attention_T": 1.0}} for one in explained
    ]


@torch.no_grad()
def answer_attention(model, one: Explained) -> Tensor:
    """The attention of the positions that predict the answer's tokens to each position, mean over them, over layers
    and over heads. Only their rows are made: what comes before is read by the model's own fast attention.
    """
    first, last = one.answer_span
    inner = unwrapped(model)
    ids_L = one.input_ids.to(inner.device)
    before, asking = ids_L[: first - 1], ids_L[first - 1 : last - 1]
    cache = read_on(inner, before)
    with eager(inner):
        output = inner.base_model(input_ids=asking[None], past_key_values=cache, use_cache=True, output_attentions=True)
    layers = [layer.float().mean((0, 1, 2)).cpu() for layer in output.attentions if layer is not None]
    total_L = torch.zeros(len(one))
    for attention_L in layers:  # a layer with a sliding window has only the last positions
        total_L[last - 1 - len(attention_L) : last - 1] += attention_L / len(layers)
    return total_L


@contextmanager
def eager(model) -> Iterator[None]:
    """The attention implementation that returns its weights; put back as it was."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _within(one: Explained, values_L: Tensor) -> Tensor:
    """Of the response's tokens; zero behind the thinking."""
    values_T = torch.zeros(one.trace.tokens)
    values_T[: one.thinking.stop - one.thinking.start] = values_L[one.thinking]
    return values_T

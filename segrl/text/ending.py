"""How a response ended: by a token of the model's that ends it, or because its tokens ran out."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def end_tokens(tokenizer, generation_config) -> frozenset[int]:
    """The tokens that end a response: the tokenizer's and those of ``generation_config.json``, as in vLLM."""
    shipped = getattr(generation_config, "eos_token_id", None)
    shipped = shipped if isinstance(shipped, list) else [shipped]
    return frozenset({tokenizer.eos_token_id, *shipped} - {None})


def finish_of(response_ids: Sequence[int], ends: Collection[int]) -> str:
    """``stop`` where the last token ends a response, else ``length``: its tokens ran out."""
    return "stop" if len(response_ids) and response_ids[-1] in ends else "length"

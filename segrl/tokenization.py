"""The one tokenisation of a trace: ids, and the characters each id stands for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from segrl.text.decoding import LONE_SURROGATE, decode
from segrl.text.prompting import THINK_END, prompt_hash, render, strip_opening
from segrl.types import TokenisedTrace, Trace


def tokenize(trace: Trace, tokenizer, template: str = "chat") -> TokenisedTrace:
    """The trace with its prompt rendered and its response tokenised, once and for all."""
    [tokenised] = tokenize_all([trace], tokenizer, template)
    return tokenised


def tokenize_all(traces: Sequence[Trace], tokenizer, template: str = "chat") -> list[TokenisedTrace]:
    """What :func:`tokenize` returns, for each of many traces, on all cores."""
    if not traces:
        return []
    prompts = [render(trace.problem, tokenizer, template) for trace in traces]
    responses = [strip_opening(trace.response, prompt) for trace, prompt in zip(traces, prompts, strict=True)]
    encoded = encode_all(responses, tokenizer, [trace.id for trace in traces])
    prompt_ids_of = tokenizer(prompts, add_special_tokens=False)["input_ids"]
    return [
        TokenisedTrace(
            id=trace.id,
            problem=trace.problem,
            response=response,
            answer=trace.answer,
            meta=trace.meta,
            prompt_ids=torch.tensor(prompt_ids),
            response_ids=ids,
            offsets_T=offsets_T,
            trainable_T=torch.ones(len(ids), dtype=torch.bool),
            prompt_hash=prompt_hash(prompt),
        )
        for trace, prompt, response, prompt_ids, (ids, offsets_T) in zip(
            traces, prompts, responses, prompt_ids_of, encoded, strict=True
        )
    ]


def spells(tokenizer, trace: TokenisedTrace) -> bool:
    """Whether the trace's response is what the tokenizer reads in its ids."""
    known = int(trace.response_ids.max()) < len(tokenizer)
    return known and decode(trace.response_ids, tokenizer)[0] == trace.response


def thinking_tokens(trace: TokenisedTrace) -> int:
    """How many response tokens come before the first ``</think>``; all of them where there is none.

    Where the tag is not one token, a token like `` </`` may reach into it: such a token belongs to the answer.
    """
    end = trace.response.find(THINK_END)
    if end < 0:
        return trace.tokens
    starts_T, ends_T = trace.offsets_T.unbind(-1)
    return int(((starts_T < end) & (ends_T <= end)).sum())


def encode(text: str, tokenizer, name: str = "text") -> tuple[Tensor, Tensor]:
    """Ids of ``text`` and the ``(start, end)`` characters of each; together the offsets cover the text without gaps."""
    [encoded] = encode_all([text], tokenizer, [name])
    return encoded


def encode_all(texts: Sequence[str], tokenizer, names: Sequence[str]) -> list[tuple[Tensor, Tensor]]:
    """What :func:`encode` returns, for each of many texts."""
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            f"{type(tokenizer).__name__} gives no character offsets; load a fast tokenizer (use_fast=True)"
        )
    for name, text in zip(names, texts, strict=True):
        if LONE_SURROGATE.search(text):
            raise ValueError(
                f"trace {name!r}: the text holds a lone surrogate, which no tokenizer can read; "
                "repair it with text.encode('utf-8', 'replace').decode()"
            )
    encoding = tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return [
        (torch.tensor(ids, dtype=torch.long), _without_gaps(offsets, len(text)))
        for text, ids, offsets in zip(texts, encoding["input_ids"], encoding["offset_mapping"], strict=True)
    ]


def _without_gaps(offsets: list[tuple[int, int]], length: int) -> Tensor:
    """The offsets without gaps: some tokenizers leave spaces out. A token also covers the gap before it, the last token
    the end of the text."""
    covered = np.asarray(offsets, dtype=np.int64).reshape(-1, 2)
    ends = np.maximum.accumulate(covered[:, 1])
    starts = np.minimum(covered[:, 0], np.concatenate([[0], ends[:-1]]))
    ends[-1:] = length
    return torch.from_numpy(np.stack([starts, ends], axis=1))

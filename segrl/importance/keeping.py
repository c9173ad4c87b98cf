"""The value of the answer with only parts of the thinking kept: many short forwards, which share their prompt."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from segrl.attribution.evaluator import Batching, Row, token_values, unwrapped
from segrl.attribution.target import Explained
from segrl.importance.reader import Reader
from segrl.importance.reading import read_on
from segrl.types import Segments

Values = tuple[Tensor, float]  # of K masks, and what they cost


def kept_answer_value(
    model,
    explained: Sequence[Explained],
    kept: Sequence[Tensor],
    batching: Batching,
    output: str = "logp",
) -> list[Values]:
    """The answer's value under each mask of ``kept``, and the cost in forwards over the whole trace.

    ``kept`` holds for each trace K masks of its thinking's tokens: (K, thinking tokens). The tokens that a mask leaves
    out are removed from the sequence. Equal masks are read once, and so is the prompt.
    """
    return [
        _kept_answer_value(model, sequence, kept_KT, batching, output)
        for sequence, kept_KT in zip(explained, kept, strict=True)
    ]


def _kept_answer_value(model, sequence: Explained, kept_KT: Tensor, batching: Batching, output: str) -> Values:
    distinct, index_K = kept_KT.unique(dim=0, return_inverse=True)
    shared = max(sequence.thinking.start - 1, 0)  # the prompt's last token may predict the answer
    shortened = [behind(keeping(sequence, kept_T), shared) for kept_T in distinct]
    reader = Reader(model, shortened, output, sequence.input_ids[:shared] if shared else None)
    values = torch.zeros(len(shortened), dtype=torch.float64)
    for row, value, _ in batching.run(reader, [Row(index, 1.0, None) for index in range(len(shortened))]):
        values[row.index] = value
    return values[index_K], (shared + sum(map(len, shortened))) / len(sequence)


@torch.no_grad()
def in_one_pass(model, sequence: Explained, segments: Segments, output: str = "logp") -> Values:
    """The answer's value after each prefix, and the cost in forwards, the trace being read once.

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
            logits_AV = logits_LV[answer.start - 1 : answer.stop - 1].float()
            values[end] = float(token_values(logits_AV[None], suffix[None, answer], output, [sequence.rival]).sum())
            tokens += len(suffix)
    after = [values[min(start + boundary, stop)] for boundary in segments.boundaries]
    return torch.tensor(after, dtype=torch.float64), (read + tokens) / len(sequence)


# --- sequences and masks ---------------------------------------------------------------------------------------------


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


def behind(sequence: Explained, start: int) -> Explained:
    """The sequence from position ``start`` on, which lies in its prompt."""
    return replace(
        sequence,
        input_ids=sequence.input_ids[start:],
        thinking=slice(sequence.thinking.start - start, sequence.thinking.stop - start),
        answer_span=(sequence.answer_span[0] - start, sequence.answer_span[1] - start),
        restates=sequence.restates[start:],
    )


def of_thoughts(sequence: Explained, segments: Segments, kept_KS: Tensor) -> Tensor:
    """Masks (K, thinking tokens) of coalitions; S counts thoughts here. An answer segment that is read always stays."""
    every_KS = torch.ones(len(kept_KS), len(segments), dtype=torch.bool)
    every_KS[:, segments.thought_S] = kept_KS
    return every_KS[:, segments.index_T[: sequence.thinking.stop - sequence.thinking.start]]

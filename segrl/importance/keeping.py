"""The value of the answer with only parts of the thinking kept. Sequences that begin alike share forwards."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

import torch
from torch import Tensor

from segrl.attribution.evaluator import Batching, Row, token_values, unwrapped
from segrl.attribution.path import evaluating
from segrl.attribution.target import Explained
from segrl.importance.reader import Reader
from segrl.importance.reading import attending, read_on
from segrl.importance.tree import Tree, beginning, trees
from segrl.types import Segments

NODES, CPU_NODES = 2_048, 512  # tokens in a tree: attention looks at all pairs of them
PIECE = 256  # the fewest tokens of a long row that are read at once
ATTENTIONS = {"full_attention", "sliding_attention", "chunked_attention"}
Values = tuple[Tensor, float]  # a value for each of K masks, and their cost in forwards over the whole trace


def kept_answer_value(
    model,
    explained: Sequence[Explained],
    kept: Sequence[Tensor],
    batching: Batching,
    output: str = "logp",
) -> list[Values]:
    """The answer's value under each mask of ``kept``, and the cost in forwards over the whole trace.

    ``kept`` holds for each trace K masks of its thinking's tokens: (K, thinking tokens). The tokens that a mask leaves
    out are removed from the sequence. A beginning that sequences share is read once (tree.py).
    """
    return [
        _kept_answer_value(model, sequence, kept_KT, batching, output)
        for sequence, kept_KT in zip(explained, kept, strict=True)
    ]


def _kept_answer_value(model, sequence: Explained, kept_KT: Tensor, batching: Batching, output: str) -> Values:
    distinct, index_K = kept_KT.unique(dim=0, return_inverse=True)
    shortened = [keeping(sequence, kept_T) for kept_T in distinct]
    read_them = _as_trees if _sees_all(model, len(sequence)) else _row_by_row
    values, read = read_them(model, shortened, batching, output)
    return values[index_K], read / len(sequence)


def _sees_all(model, tokens: int) -> bool:
    """Whether every layer attends to all tokens of a sequence of ``tokens`` tokens. The mask of a tree supports no
    window, and a recurrent state cannot be cut back as a cache can."""
    config = unwrapped(model).config.get_text_config()
    windows = [getattr(config, name, None) or tokens for name in ("sliding_window", "attention_chunk_size")]
    return tokens <= min(windows) and set(getattr(config, "layer_types", None) or ()) <= ATTENTIONS


def _row_by_row(model, sequences: list[Explained], batching: Batching, output: str) -> tuple[Tensor, int]:
    """The answer's value of each sequence, and the tokens that were read."""
    values = torch.zeros(len(sequences), dtype=torch.float64)
    rows = [Row(index, 1.0, None) for index in range(len(sequences))]
    for row, value, _ in batching.run(Reader(model, sequences, output), rows):
        values[row.index] = value
    return values, sum(map(len, sequences))


@torch.no_grad()
def _as_trees(model, sequences: list[Explained], batching: Batching, output: str) -> tuple[Tensor, int]:
    """What ``_row_by_row`` returns, for sequences that differ only in their thinking: they are read as trees, up to the
    answer's last token."""
    reader, inner, start = Reader(model, sequences, output), unwrapped(model), sequences[0].thinking.start
    shared = max(start - 1, 0)  # the prompt's last token may predict the answer
    rows = [sequence.input_ids[shared : sequence.answer_span[1] - 1].tolist() for sequence in sequences]
    order = sorted(range(len(rows)), key=rows.__getitem__)
    most, read = CPU_NODES if reader.device.type == "cpu" else NODES, shared
    most, answer = min(most, batching.tokens or most), len(range(*sequences[0].answer_span))
    values = []
    with evaluating(model), _seeing_trees(inner):
        cache = read_on(inner, sequences[0].input_ids[:shared])
        behind = _Behind(inner, cache, shared, max(most, PIECE))
        for tree in trees([rows[k] for k in order], most):
            if len(tree.paths) == 1 and cache is not None:
                read += behind.read(tree.ids, answer)
                values.append(_of_tree(reader, behind.rest, behind.cache, behind.length))
            else:
                values.append(_of_tree(reader, tree, copy.deepcopy(cache), shared))
                read += len(tree)
    return torch.cat(values)[torch.tensor(order).argsort()], read


class _Behind:
    """The cache of the prompt and of one row after it, for long rows, which each have a tree of their own.

    A row is read from the token at which it leaves the row before, in pieces of ``most`` tokens, which keep the
    attention mask small.
    """

    def __init__(self, inner, cache, shared: int, most: int) -> None:
        self.inner, self.cache, self.shared, self.most = inner, copy.deepcopy(cache), shared, most
        self.row: Sequence[int] = ()
        self.rest = Tree()  # the row's end, which is still to be read; it predicts the answer

    @property
    def length(self) -> int:
        """How many tokens the cache holds."""
        return self.shared + len(self.row) - len(self.rest)

    def read(self, row: Sequence[int], answer: int) -> int:
        """Read the row up to its ``rest``; returns how many of its tokens the row before does not share."""
        same = min(beginning(self.row, row), len(row) - answer)
        self.cache.crop(self.shared + same)
        last = max(same, len(row) - answer - self.most)
        for start in range(same, last, self.most):
            read_on(self.inner, torch.tensor(row[start : min(start + self.most, last)]), self.cache)
        self.row, self.rest = row, Tree()
        self.rest.add(row[last:], 0)
        return len(row) - same


@torch.no_grad()
def in_one_forward(model, sequences: list[Explained], output: str = "logp") -> Tensor:
    """The answer's value of each sequence. The sequences hold longer and longer prefixes of one trace's thinking."""
    inner = unwrapped(model)
    if not _sees_all(model, len(sequences[-1])):
        raise ValueError(
            f"a layer of the model does not attend to all {len(sequences[-1])} tokens of the trace "
            f"{sequences[-1].trace.id!r}, but reads through a window or a recurrent state; prefixes are read in one "
            "forward, whose mask supports neither; take a measure that follows a path"
        )
    rows = [sequence.input_ids[: sequence.answer_span[1] - 1].tolist() for sequence in sequences]
    [tree] = trees(rows, sum(map(len, rows)))
    with evaluating(model), _seeing_trees(inner):
        return _of_tree(Reader(model, sequences, output), tree, None, 0)


def _seeing_trees(inner) -> AbstractContextManager[None]:
    """A context of an attention implementation that takes the mask of a tree."""
    return attending(inner, "eager" if inner.config._attn_implementation == "eager" else "sdpa")


def _of_tree(reader: Reader, tree: Tree, cache, shared: int) -> Tensor:
    """The answer's value of each row of a tree, behind the ``shared`` tokens of the cache, which grows by the tree."""
    sequence, inner, device = reader.explained[0], unwrapped(reader.model), reader.device
    answer_A = sequence.input_ids[slice(*sequence.answer_span)]
    predicting_KA = torch.tensor([path[-len(answer_A) :] for path in tree.paths])
    nodes, place_KA = predicting_KA.unique(return_inverse=True)
    inputs = {"input_ids": torch.tensor([tree.ids]).to(device), "position_ids": (shared + tree.depths)[None].to(device)}
    if len(tree.paths) > 1:  # a single row needs no mask: causal attention sees all tokens before it
        sees_NL = torch.cat([torch.ones(len(tree), shared, dtype=torch.bool), tree.sees], 1)
        hidden = torch.zeros(sees_NL.shape, dtype=inner.dtype).masked_fill_(~sees_NL, torch.finfo(inner.dtype).min)
        inputs["attention_mask"] = hidden[None, None].to(device)
    if reader.keeps_logits:
        inputs["logits_to_keep"] = nodes.to(device)
    # The model, not the module that it wraps: FSDP2 gathers the weights of the module that is called.
    logits_NV = reader.model(**inputs, past_key_values=cache, use_cache=True).logits[0]
    logits_KAV = (logits_NV if reader.keeps_logits else logits_NV[nodes.to(device)])[place_KA.to(device)].float()
    answers_KA = answer_A.expand(len(logits_KAV), -1).to(device)
    values_KA = token_values(logits_KAV, answers_KA, reader.output, [sequence.rival] * len(logits_KAV))
    return values_KA.sum(-1).double().cpu()


@torch.no_grad()
def in_one_pass(model, sequence: Explained, segments: Segments, output: str = "logp") -> Values:
    """The answer's value after each prefix, and the cost in forwards. The trace is read once.

    After each prefix the template is read on a copy of the prefix's keys and values. This serves long traces, whose
    prefixes together are many times as long as the trace.
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


def of_thoughts(sequence: Explained, segments: Segments, kept_KS: Tensor) -> Tensor:
    """Masks (K, thinking tokens) of coalitions; S counts thoughts here. An answer segment that is read always stays."""
    every_KS = torch.ones(len(kept_KS), len(segments), dtype=torch.bool)
    every_KS[:, segments.thought_S] = kept_KS
    return every_KS[:, segments.index_T[: sequence.thinking_tokens]]

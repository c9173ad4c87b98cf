"""Traces and selections -> the rows to train on, and the count of what was dropped, cut or carried to other tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from inspect import signature
from pathlib import Path
from typing import Any

import torch

from segrl.data import read_rows
from segrl.data.files import Row
from segrl.data.records import SELECTIONS, check_identity, how_made, scores_of, segments_of, selection_of
from segrl.segmentation import segment
from segrl.selection import select
from segrl.sft.masking import Choice, Example, Masked, Rules, example, mask, project, truncate
from segrl.sft.pruning import prune
from segrl.text.prompting import THINK_END, prompt_hash, render, with_opening
from segrl.tokenization import spells, tokenize, tokenize_all
from segrl.types import Segments, Selection, TokenisedTrace, Trace
from segrl.weighting import weigh

TOGETHER = 64  # traces that are tokenised together


@dataclass
class Kept:
    """How many of how many tokens a selection keeps."""

    kept: int = 0
    tokens: int = 0

    def count(self, keep_T: torch.Tensor) -> None:
        self.kept += int(keep_T.sum())
        self.tokens += len(keep_T)

    @property
    def percent(self) -> float:
        return 100 * self.kept / self.tokens


@dataclass
class Supervision:
    """The rows to train on, and the ids of traces that were dropped or cut.

    Where selections were made on another tokenizer's tokens, ``selected`` counts those, and ``carried`` the tokens of
    the trained model that lie in the same segments.
    """

    rows: list[Masked] = field(default_factory=list)
    examples: list[Example] = field(default_factory=list)
    too_long: list[str] = field(default_factory=list)
    refused: list[tuple[int, str]] = field(default_factory=list)  # tokens, id
    empty: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    truncated: list[str] = field(default_factory=list)
    selected: Kept = field(default_factory=Kept)
    carried: Kept = field(default_factory=Kept)

    def notes(self) -> list[str]:
        """A note on each kind of trace that was dropped or cut, and on selections that were carried to other tokens."""
        notes = []
        if self.too_long:
            notes.append(f"{len(self.too_long)} too long and dropped ({_some(self.too_long)})")
        if self.truncated:
            notes.append(f"{len(self.truncated)} too long and cut at a segment boundary ({_some(self.truncated)})")
        if self.failed:
            notes.append(f"{len(self.failed)} that could not be scored, dropped ({_some(self.failed)})")
        if self.empty:
            notes.append(f"{len(self.empty)} without a kept token and dropped ({_some(self.empty)})")
        if self.selected.tokens:
            before, after = self.selected.percent, self.carried.percent
            notes.append(
                f"selections made on the attributor's tokens, found in the model's by their characters: {before:.2f}% "
                f"of the attributor's tokens kept, {after:.2f}% of the model's ({after - before:+.2f} points)"
            )
        return notes


def _some(ids: list[str]) -> str:
    return ", ".join(ids[:3]) + (", ..." if len(ids) > 3 else "")


def supervise(
    traces: Iterable[Trace],
    tokenizer,
    rules: Rules,
    max_length: int | None = None,
    selections: Mapping[str, Row] | None = None,
    selecting_tokenizer=None,
    template: str = "chat",
    reselect: Mapping[str, Any] | None = None,
) -> Supervision:
    """The rows that ``rules`` make of the traces.

    ``selecting_tokenizer`` made the selections, where it is another than ``tokenizer``. With ``reselect`` they are made
    anew, with these options, from their saved scores.
    """
    supervision, chosen = Supervision(), []
    for trace in traces:
        row = None if selections is None else _row_of(trace, selections)
        if row and row["error"]:
            supervision.failed.append(trace.id)
        else:
            chosen.append((trace, row))
    spelled = in_tokens([trace for trace, _ in chosen], tokenizer, selecting_tokenizer, template, rules.think_start)
    for (_, row), (trained, selected) in zip(chosen, spelled, strict=True):
        if row is None:
            masked = mask(trained, everything(trained, rules), rules)
        elif rules.mode == "pruned":
            masked = _masked_pruned(trained, selected, row, reselect, rules, tokenizer, template)
        else:
            masked = mask(trained, _choice(trained, selected, row, reselect, rules, supervision), rules)
        if masked is None:
            supervision.empty.append(trained.id)
        else:
            _fit(masked, rules, max_length, tokenizer.eos_token_id, supervision)
    if supervision.refused:
        tokens, id = max(supervision.refused)
        raise ValueError(
            f"{len(supervision.refused)} of {len(chosen)} traces are longer than data.max_length={max_length} with "
            f"their prompt; the longest, {id!r}, has {tokens} tokens: raise data.max_length, or set segrl.too_long to "
            "drop or truncate"
        )
    return supervision


def spelled_by(tokenizer, trace: TokenisedTrace) -> bool:
    """Whether the tokenizer makes the trace's own ids; if so they are used as they are."""
    # Models of one family share their words but not their special tokens, so the prompt is compared too.
    return spells(tokenizer, trace) and prompt_hash(tokenizer.decode(trace.prompt_ids.tolist())) == trace.prompt_hash


def in_tokens(
    traces: Sequence[Trace], tokenizer, selecting_tokenizer, template: str, think_start: str = "never"
) -> Iterator[tuple[TokenisedTrace, TokenisedTrace]]:
    """Each trace twice: in tokens of the trained model, its thought opened, and in the tokens of its selection."""
    for start in range(0, len(traces), TOGETHER):
        group = traces[start : start + TOGETHER]
        kept = [isinstance(trace, TokenisedTrace) and spelled_by(tokenizer, trace) for trace in group]
        foreign = [trace for trace, is_kept in zip(group, kept, strict=True) if not is_kept]
        opened = [_opened(trace, tokenizer, template, think_start) for trace in foreign]
        apart = selecting_tokenizer is not None or any(a is not b for a, b in zip(opened, foreign, strict=True))
        texts = [trace for trace in group if apart and not trace.tokenised]
        respelled = iter(tokenize_all(opened, tokenizer, template))
        selected = iter(tokenize_all(texts, selecting_tokenizer or tokenizer, template))
        for trace, is_kept in zip(group, kept, strict=True):
            if not isinstance(trace, TokenisedTrace):
                trained = next(respelled)
                yield trained, next(selected, trained)
            else:
                yield trace if is_kept else _trained_as(trace, next(respelled)), trace


def _opened(trace: Trace, tokenizer, template: str, think_start: str) -> Trace:
    """The trace with ``<think>`` before its response, where the rule ``think_start`` wants it there."""
    if think_start == "never" or (think_start == "closed" and THINK_END not in trace.response):
        return trace
    response = with_opening(trace.response, render(trace.problem, tokenizer, template))
    return trace if response == trace.response else Trace(trace.id, trace.problem, response, trace.answer, trace.meta)


def _trained_as(trace: TokenisedTrace, respelled: TokenisedTrace) -> TokenisedTrace:
    """The respelled trace, its ``trainable_T`` taken from the trace by each token's first character."""
    if bool(trace.trainable_T.all()):
        return respelled
    by_token = Segments(tuple(range(trace.tokens + 1)))
    token_T = project(by_token, trace.offsets_T, respelled.offsets_T, _shift(respelled, trace))
    return replace(respelled, trainable_T=trace.trainable_T[token_T])


def _fit(masked: Masked, rules: Rules, max_length: int | None, eos_id: int, supervision: Supervision) -> None:
    """Add the row to ``supervision``; a row over ``max_length`` is dropped or cut."""
    id, sequence = masked.trace.id, example(masked, eos_id, rules.normalise)
    if max_length is not None and len(sequence.ids_L) > max_length:
        if rules.too_long == "error":
            supervision.refused.append((len(sequence.ids_L), id))
            return
        short = truncate(masked, max_length - sequence.prompt_tokens) if rules.too_long == "truncate" else None
        if short is None:
            supervision.too_long.append(id)
            return
        masked, sequence = short, example(short, eos_id, rules.normalise)
        supervision.truncated.append(id)
    supervision.rows.append(masked)
    supervision.examples.append(sequence)


# --- selections ------------------------------------------------------------------------------------------------------


def read_selections(path: str | Path | None) -> dict[str, Row]:
    """The rows ``segrl select`` wrote, by trace id."""
    if path is None:
        raise ValueError("this mode needs selections=<file>; `segrl select traces=... out=...` writes it")
    return {row["id"]: row for row in read_rows(path, SELECTIONS)}


def reselecting(selections: str | None, tau: float | None, beta: float | None) -> dict[str, Any] | None:
    """The options of ``select`` where a threshold is given, else None. A given threshold counts before the note beside
    the selections, and the note before the defaults.
    """
    thresholds = {name: value for name, value in (("tau", tau), ("beta", beta)) if value is not None}
    if not thresholds or selections is None:
        return None
    options = {name: option.default for name, option in signature(select).parameters.items() if name != "scores"}
    known = how_made(selections)
    options |= {name: known[name] for name in options if name in known} | thresholds
    return options | {"match_tokens": None, "match_segments": None} if "tau" in thresholds else options


def everything(trace: TokenisedTrace, rules: Rules) -> Choice:
    """Every token counts; where the response may be cut, its segments say where."""
    segments = segment(trace) if rules.too_long == "truncate" else Segments((0, trace.tokens))
    return Choice(torch.ones(trace.tokens), segments.index_T)


def _choice(
    trained: TokenisedTrace,
    selected: TokenisedTrace,
    row: Row,
    reselect: Mapping[str, Any] | None,
    rules: Rules,
    supervision: Supervision,
) -> Choice:
    """The weight and the segment of each token to train, by the row's selection."""
    segments, selection = _selected(selected, row, reselect)
    if selected is trained:
        segment_T = segments.index_T
    else:
        segment_T = project(segments, selected.offsets_T, trained.offsets_T, _shift(trained, selected))
        supervision.selected.count(selection.keep_S[segments.index_T])
        supervision.carried.count(selection.keep_S[segment_T])
    return Choice(_weights(row, segments, selection, rules)[segment_T], _within(row, segments)[segment_T])


def _selected(trace: TokenisedTrace, row: Row, reselect: Mapping[str, Any] | None) -> tuple[Segments, Selection]:
    """The row's segments and which of them to keep; a token measure's row has a segment for each token."""
    check_identity(trace, row, "selection")
    segments = segments_of(row)
    if segments.tokens != trace.tokens:
        raise ValueError(
            f"trace {row['id']!r}: the selection covers {segments.tokens} tokens, this tokenizer makes "
            f"{trace.tokens}; name the model it was made with in attributor_path=, or select with the tokenizer of "
            "the model to train"
        )
    return segments, select(scores_of(row), **reselect) if reselect else selection_of(row)


def _weights(row: Row, segments: Segments, selection: Selection, rules: Rules) -> torch.Tensor:
    """The weight of each segment: Eq. 7's 0 or 1, or what the weighting rule makes of its score."""
    if rules.mode != "soft":
        return selection.keep_S.float()
    weights_T = weigh(scores_of(row), segments, selection, rules.rule, **rules.rule_options)
    return weights_T[torch.tensor(segments.boundaries[:-1])]


def _within(row: Row, segments: Segments) -> torch.Tensor:
    """For each segment, the one at whose start the response may be cut: itself, or in a token measure's row the segment
    that the token lies in."""
    return torch.tensor(row["segment"]) if len(row["segment"]) else torch.arange(len(segments))


def _masked_pruned(
    trained: TokenisedTrace,
    selected: TokenisedTrace,
    row: Row,
    reselect: Mapping[str, Any] | None,
    rules: Rules,
    tokenizer,
    template: str,
) -> Masked | None:
    """The pruned response, after the text that the trained trace has before the selected one."""
    segments, selection = _selected(selected, row, reselect)
    if not bool(selection.keep_S.any()):
        return None
    if not bool(selected.trainable_T.all()):
        raise ValueError(f"trace {trained.id!r} holds tokens that others wrote; mode=pruned cannot cut around them")
    shorter = prune(selected, segments, selection)
    head = trained.response[: max(0, _shift(trained, selected))]
    pruned = tokenize(replace(shorter, response=head + shorter.response), tokenizer, template)
    return mask(pruned, everything(pruned, rules), rules)


def _shift(trained: Trace, selected: Trace) -> int:
    """How many characters the trained response has before the selected one: a prompt may open the thought or not."""
    if trained.response.endswith(selected.response) or selected.response.endswith(trained.response):
        return len(trained.response) - len(selected.response)
    raise ValueError(f"trace {trained.id!r}: its response and the one the selection was made for are different texts")


def _row_of(trace: Trace, selections: Mapping[str, Row]) -> Row:
    if trace.id not in selections:
        raise ValueError(f"trace {trace.id!r} has none of the {len(selections)} selections; are they of other traces?")
    return selections[trace.id]

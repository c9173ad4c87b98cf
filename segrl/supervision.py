"""The traces and selections of files -> the rows to train on, and the count of what was dropped, cut or projected."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save

from segrl.data import read_rows
from segrl.data.files import replacing
from segrl.masking import Choice, Example, Masked, Rules, example, mask, project, truncate
from segrl.prompting import prompt_hash
from segrl.records import SELECTIONS, Row, check_identity, how_made, scores_of, segments_of, selection_of
from segrl.tokenization import decode, tokenize, tokenize_all
from segrl.types import Segments, Selection, Trace

TOGETHER = 64  # traces that are tokenised together


@dataclass
class Supervision:
    """What is trained on, row by row, and what became of the rest. ``makers`` and ``ours`` count tokens of projected
    selections, kept and all: by the tokenizer that made them and by the one that trains.
    """

    rows: list[Masked] = field(default_factory=list)
    examples: list[Example] = field(default_factory=list)
    too_long: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    truncated: list[str] = field(default_factory=list)
    makers: list[int] = field(default_factory=lambda: [0, 0])
    ours: list[int] = field(default_factory=lambda: [0, 0])

    def notes(self) -> list[str]:
        """A sentence for each thing that was done to the rows."""
        found = []
        if self.too_long:
            found.append(f"{len(self.too_long)} too long and dropped ({_some(self.too_long)})")
        if self.truncated:
            found.append(f"{len(self.truncated)} too long and cut at a segment boundary ({_some(self.truncated)})")
        if self.failed:
            found.append(f"{len(self.failed)} whose attribution failed, dropped ({_some(self.failed)})")
        if self.empty:
            found.append(f"{len(self.empty)} without a kept token and dropped ({_some(self.empty)})")
        if self.makers[1]:
            before, after = (100 * kept / tokens for kept, tokens in (self.makers, self.ours))
            found.append(
                f"selections projected from another tokenizer: {before:.2f}% of its tokens kept, {after:.2f}% of the "
                f"model's ({after - before:+.2f} points)"
            )
        return found


def _some(ids: list[str]) -> str:
    return ", ".join(ids[:3]) + (", ..." if len(ids) > 3 else "")


def supervise(
    traces: Iterable[Trace],
    tokenizer,
    rules: Rules,
    max_length: int | None = None,
    selections: Mapping[str, Row] | None = None,
    maker=None,
    template: str = "chat",
    select: Mapping[str, Any] | None = None,
) -> Supervision:
    """The rows that ``rules`` make of the traces. ``maker`` is the tokenizer that the selections were made with, where
    it is another than ``tokenizer``; with ``select`` they are made anew, with these options, from their saved scores.
    """
    done, used = Supervision(), []
    for trace in traces:
        row = None if selections is None else _row_of(trace, selections)
        if row and row["error"]:
            done.failed.append(trace.id)
        else:
            used.append((trace, row))
    spelled = in_tokens([trace for trace, _ in used], tokenizer, maker, template)
    for (trace, row), (own, counted) in zip(used, spelled, strict=True):
        choice: Choice | None = None
        if row is None:
            choice = everything(own, rules)
        else:
            segments, selection = _selected(counted, row, select)
            if rules.mode != "pruned":
                piece_T = _onto(own, counted, segments)
                choice = Choice(_weights(row, segments, selection, rules)[piece_T], _within(row, segments)[piece_T])
                if counted is not own:
                    _count(done, selection.keep_S[segments.index_T], selection.keep_S[piece_T])
            elif bool(selection.keep_S.any()):
                own = tokenize(_pruned(own, counted, segments, selection), tokenizer, template)
                choice = everything(own, rules)
        masked = None if choice is None else mask(own, choice, rules)
        if masked is None:
            done.empty.append(trace.id)
        else:
            _fit(masked, rules, max_length, tokenizer.eos_token_id, done)
    return done


def spelled_by(tokenizer, trace: Trace) -> bool:
    """Whether the trace's ids are this tokenizer's, so that they are kept and not made again."""
    if not trace.tokenised or int(trace.response_ids.max()) >= len(tokenizer):
        return False
    # Models of one family share their words but not their special tokens, so the prompt is asked too.
    prompt = tokenizer.decode(trace.prompt_ids.tolist())
    return decode(trace.response_ids, tokenizer)[0] == trace.response and prompt_hash(prompt) == trace.prompt_hash


def in_tokens(traces: Sequence[Trace], tokenizer, maker, template: str) -> Iterator[tuple[Trace, Trace]]:
    """Each trace in the tokens of the model to train, and in those that its selection counts."""
    for start in range(0, len(traces), TOGETHER):
        group = traces[start : start + TOGETHER]
        own = [spelled_by(tokenizer, trace) for trace in group]
        foreign = [trace for trace, is_own in zip(group, own, strict=True) if not is_own]
        text = [] if maker is None else [trace for trace in group if not trace.tokenised]
        ours, makers = iter(tokenize_all(foreign, tokenizer, template)), iter(tokenize_all(text, maker, template))
        for trace, is_own in zip(group, own, strict=True):
            one = trace if is_own else _trained_as(trace, next(ours))
            yield one, trace if trace.tokenised else next(makers, one)


def _trained_as(trace: Trace, own: Trace) -> Trace:
    """In other tokens what others wrote stays theirs, by each token's first character."""
    if trace.trainable_T is None or bool(trace.trainable_T.all()):
        return own
    each = Segments(tuple(range(trace.tokens + 1)))
    token_T = project(each, trace.offsets_T, own.offsets_T, _shift(own, trace))
    return replace(own, trainable_T=trace.trainable_T[token_T])


def _fit(masked: Masked, rules: Rules, max_length: int | None, eos_id: int, done: Supervision) -> None:
    """Keep the row, or drop or cut one over ``max_length``."""
    id, one = masked.trace.id, example(masked, eos_id, rules.normalise)
    if max_length is not None and len(one.ids_L) > max_length:
        if rules.too_long == "error":
            raise ValueError(
                f"trace {id!r} has {len(one.ids_L)} tokens with its prompt, data.max_length is {max_length}; raise it, "
                "or set segrl.too_long to drop or truncate"
            )
        short = truncate(masked, max_length - one.prompt_tokens) if rules.too_long == "truncate" else None
        if short is None:
            done.too_long.append(id)
            return
        masked, one = short, example(short, eos_id, rules.normalise)
        done.truncated.append(id)
    done.rows.append(masked)
    done.examples.append(one)


# --- selections ------------------------------------------------------------------------------------------------------


def read_selections(path: str | Path | None) -> dict[str, Row]:
    """The rows ``segrl select`` wrote, by trace id."""
    if path is None:
        raise ValueError("this mode needs selections=<file>; `segrl select traces=... out=...` writes it")
    return {row["id"]: row for row in read_rows(path, SELECTIONS)}


def reselecting(selections: str | None, tau: float | None, beta: float | None) -> dict[str, Any] | None:
    """What to select anew with, from the saved scores, where a threshold is given: beside it what the selections were
    made with, as far as it is known, and select's own defaults.
    """
    from segrl.selection import select

    given = {name: value for name, value in (("tau", tau), ("beta", beta)) if value is not None}
    if not given or selections is None:
        return None
    options = {name: one.default for name, one in signature(select).parameters.items() if name != "scores"}
    known = how_made(selections)
    options |= {name: known[name] for name in options if name in known} | given
    return options | {"match_tokens": None} if "tau" in given else options


def everything(trace: Trace, rules: Rules) -> Choice:
    """Every token counts; where the response may be cut, its segments say where."""
    from segrl.segmentation import segment

    segments = segment(trace) if rules.too_long == "truncate" else Segments((0, trace.tokens))
    return Choice(torch.ones(trace.tokens), segments.index_T)


def _selected(counted: Trace, row: Row, select: Mapping[str, Any] | None) -> tuple[Segments, Selection]:
    """The row's segments and which of them to keep; of a token measure each token is one."""
    from segrl.selection import select as choose

    check_identity(counted, row, "selection")
    segments = segments_of(row)
    if segments.tokens != counted.tokens:
        raise ValueError(
            f"trace {row['id']!r}: the selection covers {segments.tokens} tokens, this tokenizer makes "
            f"{counted.tokens}; name the model it was made with in attributor_path=, or select with the tokenizer of "
            "the model to train"
        )
    return segments, choose(scores_of(row), **select) if select else selection_of(row)


def _weights(row: Row, segments: Segments, selection: Selection, rules: Rules) -> torch.Tensor:
    """Of each segment: Eq. 7's 0/1, or what a rule makes of the scores."""
    from segrl.weighting import weigh

    if rules.mode != "soft":
        return selection.keep_S.float()
    weights_T = weigh(scores_of(row), segments, selection, rules.weighting, **rules.weighting_options)
    return weights_T[torch.tensor(segments.boundaries[:-1])]


def _onto(own: Trace, counted: Trace, segments: Segments) -> torch.Tensor:
    """The segment of each of ``own``'s tokens."""
    if counted is own:
        return segments.index_T
    return project(segments, counted.offsets_T, own.offsets_T, _shift(own, counted))


def _within(row: Row, segments: Segments) -> torch.Tensor:
    """Where each may be cut: by the segments themselves, or those that a token measure's tokens lie in."""
    return torch.tensor(row["segment"]) if len(row["segment"]) else torch.arange(len(segments))


def _pruned(own: Trace, counted: Trace, segments: Segments, selection: Selection) -> Trace:
    """The text of the kept segments, behind what ``own`` says before the text that they were made for."""
    from segrl.pruning import prune

    if not bool(counted.trainable_T.all()):
        raise ValueError(f"trace {own.id!r} holds tokens that others wrote; mode=pruned cannot cut around them")
    shorter = prune(counted, segments, selection)
    return replace(shorter, response=own.response[: max(0, _shift(own, counted))] + shorter.response)


def _count(done: Supervision, makers_T: torch.Tensor, ours_T: torch.Tensor) -> None:
    """How many tokens a projection kept, by either tokenizer."""
    for into, keep_T in ((done.makers, makers_T), (done.ours, ours_T)):
        into[0] += int(keep_T.sum())
        into[1] += len(keep_T)


def _shift(own: Trace, counted: Trace) -> int:
    """The characters ``own`` has before the text of ``counted``: one prompt opens the thought, another does not."""
    if own.response.endswith(counted.response) or counted.response.endswith(own.response):
        return len(own.response) - len(counted.response)
    raise ValueError(f"trace {own.id!r}: its response and the one the selection was made for are different texts")


def _row_of(trace: Trace, selections: Mapping[str, Row]) -> Row:
    if trace.id not in selections:
        raise ValueError(f"trace {trace.id!r} has none of the {len(selections)} selections; are they of other traces?")
    return selections[trace.id]


def fingerprint(examples: Iterable[Example]) -> str:
    """A hash of every id and every weight: the same data, whatever file it came from."""
    digest = hashlib.sha256()
    for one in examples:
        digest.update(one.ids_L.numpy().tobytes())
        digest.update(one.mask_L.numpy().tobytes())
    return digest.hexdigest()[:16]


def save_examples(path: Path, examples: list[Example]) -> None:
    """All rows in one file, for processes that need not make them again."""
    columns = {
        "ids": torch.cat([one.ids_L for one in examples]),
        "mask": torch.cat([one.mask_L for one in examples]),
        "lengths": torch.tensor([len(one.ids_L) for one in examples]),
        "prompts": torch.tensor([one.prompt_tokens for one in examples]),
    }
    with replacing(path) as file:
        file.write(save(columns))


def load_examples(path: Path) -> list[Example]:
    columns = load_file(path)
    lengths = columns["lengths"].tolist()
    pieces = zip(
        columns["ids"].split(lengths), columns["mask"].split(lengths), columns["prompts"].tolist(), strict=True
    )
    return [Example(*one) for one in pieces]

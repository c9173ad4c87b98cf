"""A row for each of many traces by a model, shard by shard, in this process or on Ray. An interrupted call goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import torch

from segrl.attribution.engine import attribute
from segrl.commands.common import progress
from segrl.data import write_rows
from segrl.data.records import Row, attribution_row, failed_attribution_row
from segrl.data.shards import Shards, read_shards
from segrl.loading import load_model
from segrl.types import TokenisedTrace

EXECUTORS = ("auto", "local", "ray")
MakeRows = Callable[[Any, Any, Sequence[TokenisedTrace], Any], list[Row]]  # of model, tokenizer, traces and options


def run(
    make_rows: MakeRows, shards: Shards, model: Mapping[str, Any], options: Any, executor: str, workers: int, verb: str
) -> list[Row]:
    """The rows of all shards, the missing ones made by ``make_rows``. ``model`` is what :func:`load_model` takes;
    ``verb`` says what a trace is then: attributed, scored. Where every trace failed, the shards are cleared and the
    reason is raised.
    """
    with progress(verb, shards.items, shards.done) as advance:
        for i, rows in _rows_of_groups(make_rows, shards.todo(), model, options, executor_of(executor), workers):
            write_rows(shards.part(i), rows)
            advance(len(rows), sum(trace.tokens for trace in shards.groups[i]))
    torch.cuda.empty_cache()  # a training that follows needs the room that the model had
    rows = read_shards(shards.folder)
    if all(row["error"] for row in rows):
        shards.clear()
        raise ValueError(f"not one of {len(rows)} traces could be {verb}; the first: {rows[0]['error']}")
    return rows


def executor_of(executor: str) -> str:
    """``local`` or ``ray``; of ``auto`` the one that uses all GPUs of this machine."""
    if executor not in EXECUTORS:
        raise ValueError(f"executor={executor!r}, expected one of {EXECUTORS}")
    if executor == "auto":
        return "ray" if torch.cuda.device_count() > 1 and find_spec("ray") else "local"
    return executor


def workers_of(executor: str, workers: int) -> int:
    """How many models attribute at the same time, as far as this machine knows."""
    return (workers or torch.cuda.device_count() or 1) if executor_of(executor) == "ray" else 1


def _rows_of_groups(
    make_rows: MakeRows, groups, model: Mapping[str, Any], options: Any, executor: str, workers: int
) -> Iterator[tuple[int, list[Row]]]:
    if executor == "ray":
        from segrl.attribution.cluster import run_on_ray  # Ray is installed with verl only

        yield from run_on_ray(make_rows, groups, model, options, workers)
        return
    loaded = None
    for i, group in groups:
        loaded = loaded or load_model(**model)
        yield i, make_rows(*loaded, group, options)


def attributed_rows(model, tokenizer, group: Sequence[TokenisedTrace], options: Mapping[str, Any]) -> list[Row]:
    """One row a trace; a trace that cannot be attributed gives its reason and does not stop the others."""
    try:
        attributions = attribute(model, group, tokenizer, **options)
    except ValueError as error:
        if len(group) > 1:
            return [row for trace in group for row in attributed_rows(model, tokenizer, [trace], options)]
        return [failed_attribution_row(group[0], str(error))]
    return [attribution_row(trace, attribution) for trace, attribution in zip(group, attributions, strict=True)]

"""Attribute many traces into shards, in this process or on Ray; whatever interrupts it, the same call goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from segrl.attribution.engine import attribute
from segrl.data import write_rows
from segrl.data.records import Row, attribution_row, failed_attribution_row
from segrl.data.shards import Shards
from segrl.loading import load_model
from segrl.types import TokenisedTrace

EXECUTORS = ("local", "ray")
Advance = Callable[[int, int], None]  # traces, tokens


def run(
    shards: Shards, model: Mapping[str, Any], options: Mapping[str, Any], executor: str, workers: int, advance: Advance
) -> None:
    """Fill the missing shards. ``model`` is what :func:`load_model` takes; ``options`` go to attribute."""
    if executor not in EXECUTORS:
        raise ValueError(f"executor={executor!r}, expected one of {EXECUTORS}")
    if executor == "ray":
        from segrl.attribution.cluster import attributed_on_ray as attributed
    else:
        attributed = _attributed_here
    for i, rows in attributed(shards.todo(), model, partial(attributed_rows, options=options), workers):
        write_rows(shards.part(i), rows)
        advance(len(rows), sum(len(row["input_ids"]) for row in rows))


def _attributed_here(groups, model, rows_of, workers):
    loaded = None
    for i, group in groups:
        loaded = loaded or load_model(**model)
        yield i, rows_of(*loaded, group)


def attributed_rows(model, tokenizer, group: Sequence[TokenisedTrace], options: Mapping[str, Any]) -> list[Row]:
    """One row a trace; a trace that cannot be attributed gives its reason and does not stop the others."""
    try:
        found = attribute(model, group, tokenizer, **options)
    except ValueError as error:
        if len(group) > 1:
            return [row for trace in group for row in attributed_rows(model, tokenizer, [trace], options)]
        return [failed_attribution_row(group[0], str(error))]
    return [attribution_row(trace, one) for trace, one in zip(group, found, strict=True)]

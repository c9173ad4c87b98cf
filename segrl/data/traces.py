"""Files -> traces and back: what people have is read as traces, traces are saved one row each, or as verl's rows."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain, count, islice
from typing import TypeVar

from segrl.data.columns import trace_from_row
from segrl.data.files import Row, ending, write_rows
from segrl.data.saved import SCHEMA, saved_row
from segrl.data.sources import Located, located_rows
from segrl.text.prompting import user_message
from segrl.types import Trace

AnyTrace = TypeVar("AnyTrace", bound=Trace)


def load_traces(
    path_or_hub_id: str | os.PathLike,
    split: str | None = None,
    limit: int | None = None,
    require_response: bool = False,
) -> list[Trace]:
    """Traces from a jsonl or parquet file, a folder or glob of them, or a hub id ``owner/name[:config]``.

    Columns are read as ``segrl.data.columns`` says; a row without an id is called ``<file>-<row, from 0>``. Files that
    ``save_traces`` wrote come back as they were.
    """
    return collect(located_rows(path_or_hub_id, split), limit, require_response=require_response)


def save_traces(traces: Iterable[Trace], path: str | os.PathLike) -> None:
    """Write traces as parquet or jsonl, by the file's ending, whole or not at all.

    ``load_traces`` gives the same traces back: token ids as int64, ``trainable_T`` as bool. ``meta`` passes through
    JSON, so its tuples become lists and its keys strings.
    """
    traces = list(traces)
    _refuse_duplicates((trace.id, f"trace {number}") for number, trace in enumerate(traces, 1))
    as_text = ending(path) == ".parquet"
    write_rows(path, [saved_row(trace, as_text) for trace in traces], SCHEMA)


def first(rows: Iterable[Located], limit: int | None) -> Iterator[Located]:
    """The first ``limit`` rows; all where it is None."""
    if limit is not None and limit < 1:
        raise ValueError(f"limit is {limit}; give a number of rows from 1 up, or leave it out for all")
    return islice(rows, limit)


def collect(
    rows: Iterable[Located], limit: int | None = None, with_response: bool = True, require_response: bool = False
) -> list[Trace]:
    """The first ``limit`` rows as traces with unique ids."""
    traces, places = [], []
    for where, fallback_id, row in first(rows, limit):
        trace = trace_from_row(row, where, fallback_id, with_response)
        if require_response and not trace.response.strip():
            raise ValueError(
                f"{where}: trace {trace.id!r} has no response, and this needs one; "
                f"fill in a column 'response' or remove the row (its columns: {', '.join(row)})"
            )
        traces.append(trace)
        places.append((trace.id, where))
    _refuse_duplicates(places)
    return traces


def with_problem_ids(traces: Iterable[AnyTrace]) -> list[AnyTrace]:
    """The traces, with one ``problem_id`` for all that share problem and answer: that of the first. Another problem
    of the same id, from another file, gets a number behind it."""
    first: dict[tuple[str, str | None], str] = {}
    of_id: dict[str, str] = {}
    named = []
    for trace in traces:
        asked = (trace.problem, trace.answer)
        if asked not in first:
            ids = chain([trace.problem_id], (f"{trace.problem_id}-{number}" for number in count(2)))
            first[asked] = next(id for id in ids if of_id.setdefault(id, trace.problem) == trace.problem)
        id = first[asked]
        named.append(trace if id == trace.problem_id else replace(trace, meta={**trace.meta, "problem_id": id}))
    return named


def verl_rows(traces: Iterable[Trace], data_source: str, split: str) -> list[Row]:
    """verl's rows: the chat it renders, the gold answer its reward reads, and the trace's id to find it again."""
    return [_verl_row(trace, index, data_source, split) for index, trace in enumerate(traces)]


def write_verl_parquet(traces: Iterable[Trace], path: str | os.PathLike, data_source: str, split: str) -> None:
    """Write ``verl_rows`` as parquet, whole or not at all."""
    if ending(path) != ".parquet":
        raise ValueError(f"{path} does not end in .parquet, by which verl recognises its files")
    write_rows(path, verl_rows(traces, data_source, split))


def _refuse_duplicates(places: Iterable[tuple[str, str]]) -> None:
    seen: dict[str, str] = {}
    for id, where in places:
        if id in seen:
            raise ValueError(f"the id {id!r} stands twice, in {seen[id]} and in {where}; give every trace its own id")
        seen[id] = where


def _verl_row(trace: Trace, index: int, data_source: str, split: str) -> Row:
    if not trace.answer:
        raise ValueError(f"trace {trace.id!r} has no answer, and verl's reward needs one; fill it in or leave it out")
    return {
        "data_source": data_source,
        "prompt": [user_message(trace.problem)],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": trace.answer},
        "extra_info": {"index": index, "split": split, "id": trace.id},
    }

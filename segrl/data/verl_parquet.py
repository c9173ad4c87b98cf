"""Traces as the parquet rows that verl's datasets read. verl itself is not needed to write them."""

from __future__ import annotations

import os
from collections.abc import Iterable

from segrl.data.files import Row, ending, write_rows
from segrl.text.prompting import user_message
from segrl.types import Trace


def verl_rows(traces: Iterable[Trace], data_source: str, split: str) -> list[Row]:
    """verl's rows: the chat it renders, the gold answer its reward reads, and the trace's id to find it again."""
    return [_verl_row(trace, index, data_source, split) for index, trace in enumerate(traces)]


def write_verl_parquet(traces: Iterable[Trace], path: str | os.PathLike, data_source: str, split: str) -> None:
    """Write ``verl_rows`` as parquet, whole or not at all."""
    if ending(path) != ".parquet":
        raise ValueError(f"{path} does not end in .parquet, and verl tells its files by that ending")
    write_rows(path, verl_rows(traces, data_source, split))


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

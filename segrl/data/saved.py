"""A trace as one row with the columns of ``SCHEMA``, and back."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import torch

from segrl.data.files import Row
from segrl.types import TokenisedTrace, Trace

TEXT, INTEGERS, FLAGS = pa.string(), pa.list_(pa.int64()), pa.list_(pa.bool_())
SCHEMA = pa.schema(
    {
        "id": TEXT,
        "problem": TEXT,
        "response": TEXT,
        "answer": TEXT,
        "prompt_ids": INTEGERS,
        "response_ids": INTEGERS,
        "starts": INTEGERS,
        "ends": INTEGERS,
        "trainable": FLAGS,
        "prompt_hash": TEXT,
        "meta": TEXT,
    }
)
TOKEN_COLUMNS = ("prompt_ids", "response_ids", "starts", "ends", "trainable", "prompt_hash")


def is_saved(row: Row) -> bool:
    """Whether ``saved_row`` made the row; if so its texts are taken as they stand."""
    return row.keys() >= set(SCHEMA.names)


def saved_row(trace: Trace, meta_as_text: bool) -> Row:
    """The trace as a row; ``meta`` as JSON text where columns are typed, else as a dict."""
    meta = dict(trace.meta)
    try:
        text = json.dumps(meta, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"the meta of trace {trace.id!r} cannot be written as JSON ({error}); "
            "keep to plain numbers, strings, lists and dicts"
        ) from error
    return {
        "id": trace.id,
        "problem": trace.problem,
        "response": trace.response,
        "answer": trace.answer,
        **(_token_columns(trace) if isinstance(trace, TokenisedTrace) else dict.fromkeys(TOKEN_COLUMNS)),
        "meta": text if meta_as_text else meta,
    }


def trace_from_saved(row: Row, where: str) -> Trace:
    """The trace that was saved; columns added since land in its meta."""
    texts = {name: row[name] for name in ("id", "problem", "response", "answer")}
    added = {name: value for name, value in row.items() if name not in SCHEMA.names}
    try:
        meta = json.loads(row["meta"]) if isinstance(row["meta"], str) else row["meta"]
        meta = {**meta, **added}
        if row["response_ids"] is None:
            return Trace(**texts, meta=meta)
        return TokenisedTrace(**texts, **_tokens(row), meta=meta)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{where} is not the trace that was saved ({error}); write the file again") from error


def _token_columns(trace: TokenisedTrace) -> Row:
    starts, ends = trace.offsets_T.unbind(1)
    columns = (trace.prompt_ids, trace.response_ids, starts, ends, trace.trainable_T, trace.prompt_hash)
    return dict(zip(TOKEN_COLUMNS, columns, strict=True))


def _tokens(row: Row) -> dict[str, Any]:
    starts_T, ends_T = (torch.tensor(row[name], dtype=torch.int64) for name in ("starts", "ends"))
    return {
        "prompt_ids": torch.tensor(row["prompt_ids"], dtype=torch.int64),
        "response_ids": torch.tensor(row["response_ids"], dtype=torch.int64),
        "offsets_T": torch.stack([starts_T, ends_T], dim=1),
        "trainable_T": torch.tensor(row["trainable"], dtype=torch.bool),
        "prompt_hash": row["prompt_hash"],
    }

"""The files of facts that lie beside a checkout on some machines; tests skip where they do not."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

import pytest

from segrl import Trace

DATA = Path(__file__).parents[4] / "shared" / "data"


def real_file(name: str) -> Path:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"../shared/data/{name} is not on this machine")
    return path


def real_traces() -> tuple[Trace, ...]:
    """Forty responses of R1-Distill-Qwen-7B to AMC problems."""
    return _traces(real_file("traces_r1_qwen7b_amc23.jsonl"))


@lru_cache
def _traces(path: Path) -> tuple[Trace, ...]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    fields = ("id", "problem", "response", "answer")
    return tuple(Trace(**{name: row[name] for name in fields}, meta={"correct": row["correct"]}) for row in rows)

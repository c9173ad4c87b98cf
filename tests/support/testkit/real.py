"""What lies beside a checkout on some machines, files of facts and a pretrained model; tests skip where it does not."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

import pytest

from segrl import Trace
from segrl.loading import load_tokenizer

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


def smollm2_folder() -> str:
    """SmolLM2-135M-Instruct: no pad token, a system prompt in its template, 49k words, digits one by one."""
    folder = Path(__file__).parents[3] / "runs" / "smollm2"
    if not (folder / "config.json").exists():
        pytest.skip("runs/smollm2 is not on this machine; python scripts/fetch_smollm2.py runs/smollm2 brings it")
    return str(folder)


@lru_cache
def smollm2_tokenizer():
    return load_tokenizer(smollm2_folder())

"""Traces -> verdicts and what they come to."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from segrl.commands.generating import generated
from segrl.config import needed
from segrl.types import Trace


def grade(config: DictConfig) -> None:
    """Print and, with ``out``, write the verdicts on saved responses."""
    from segrl.data import load_traces, write_rows

    (path,) = needed(config, "traces")
    rows = _verdicts(load_traces(path, limit=config.limit), config.thinking)
    if config.out:
        write_rows(config.out, rows)
    right = sum(row["correct"] for row in rows)
    statuses = Counter(row["status"] for row in rows)
    print(f"{right} of {len(rows)} right ({100 * right / len(rows):.1f}%), {dict(statuses)}")


def evaluate(config: DictConfig) -> None:
    """Generate, grade and average; ``out`` is a folder."""
    (out,) = needed(config, "out")
    traces = generated(config, Path(out) / "responses")
    summary = _summary(_verdicts(traces, config.thinking), traces)
    path = Path(out) / f"results_{config.benchmark or 'problems'}.json"
    path.write_text(json.dumps(summary, indent=1) + "\n")
    print("\n".join(f"{name:<12}{value}" for name, value in summary.items()))
    print(f"-> {path}")


def _summary(rows: Sequence[dict], traces: Sequence[Trace]) -> dict[str, Any]:
    from segrl.evaluation import accuracy

    correct: dict[str, list[bool]] = defaultdict(list)
    for row in rows:
        correct[row["problem_id"]].append(row["correct"])
    n = min(map(len, correct.values()))
    return {
        "problems": len(correct),
        "samples": n,
        **{f"pass@{k}": str(accuracy(correct, k)) for k in sorted({1, n})},
        "mean_tokens": sum(trace.meta["tokens"] for trace in traces) / len(traces),
        "truncated": sum(trace.meta["finish"] == "length" for trace in traces) / len(traces),
    }


def _verdicts(traces: Sequence[Trace], thinking: str) -> list[dict[str, Any]]:
    from segrl.grading import grade as judge

    rows = []
    for trace in traces:
        if trace.answer is None:
            raise ValueError(f"trace {trace.id!r} has no gold answer to grade against; give traces with answers")
        verdict = judge(trace.answer, trace.response, thinking=thinking)
        rows.append({"id": trace.id, "problem_id": trace.meta.get("problem_id", trace.id), **asdict(verdict)})
    return rows

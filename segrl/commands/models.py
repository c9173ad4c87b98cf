"""Models -> traces -> verdicts."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from segrl.commands.common import model_path, plain, progress
from segrl.config import ConfigError, needed
from segrl.shards import Shards
from segrl.types import Trace

HELD_OUT = 1_000_000  # the seed of toy problems that no training has seen
BACKENDS = ("transformers",)


def generate(config: DictConfig) -> None:
    """Write sampled responses, shard by shard; ``problem#sample`` tells them apart."""
    (out,) = needed(config, "out")
    print(f"{len(_generated(config, Path(out)))} responses -> {out}")


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
    traces = _generated(config, Path(out) / "responses")
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


def _generated(config: DictConfig, out: Path) -> list[Trace]:
    """Every sample of every problem, those that an interrupted run has written included."""
    from segrl.data import load_traces, save_traces
    from segrl.generation import sample
    from segrl.loading import load_model

    if config.backend not in BACKENDS:
        raise ConfigError(f"backend={config.backend!r}, expected one of {BACKENDS}")
    asked = [_sample_of(problem, k) for problem in _problems(config) for k in range(config.generation.n)]
    options = plain(config.generation)
    settings = {"model_path": model_path(config), "template": config.template, **options}
    shards = Shards(out, settings, asked, options.pop("batch"))
    seed = options.pop("seed")
    options.pop("n")
    with progress("generate", len(asked), shards.done) as advance:
        loaded = None
        for i, group in shards.todo():
            loaded = loaded or load_model(model_path(config), config.dtype, config.device)
            # Seeded by the shard, so that a resumed run draws what an uninterrupted one does.
            traces = sample(*loaded, group, **options, seed=seed * 1_000_003 + i, template=config.template)
            save_traces(traces, shards.part(i))
            advance(len(group), sum(trace.meta["tokens"] for trace in traces))
    return load_traces(str(out))


def _problems(config: DictConfig) -> list[Trace]:
    """A benchmark, the file at ``data_path``, or held-out toy problems."""
    from segrl import toy
    from segrl.data import load_benchmark, load_traces

    if config.get("benchmark"):
        return load_benchmark(config.benchmark, config.data_path, limit=config.limit)
    if config.data_path:
        return load_traces(config.data_path, limit=config.limit)
    return toy.sample_problems(config.limit or 64, seed=HELD_OUT)


def _sample_of(problem: Trace, k: int) -> Trace:
    return replace(problem, id=f"{problem.id}#{k}", meta={**problem.meta, "problem_id": problem.id, "sample": k})


def _verdicts(traces: Sequence[Trace], thinking: str) -> list[dict[str, Any]]:
    from segrl.grading import grade as judge

    rows = []
    for trace in traces:
        if trace.answer is None:
            raise ValueError(f"trace {trace.id!r} has no gold answer to grade against; give traces with answers")
        verdict = judge(trace.answer, trace.response, thinking=thinking)
        rows.append({"id": trace.id, "problem_id": trace.meta.get("problem_id", trace.id), **asdict(verdict)})
    return rows

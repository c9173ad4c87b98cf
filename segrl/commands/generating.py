"""Models -> traces."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

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
    print(f"{len(generated(config, Path(out)))} responses -> {out}")


def generated(config: DictConfig, out: Path) -> list[Trace]:
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

"""To look at: one trace in the terminal, and the whole job on the toy world."""

from __future__ import annotations

import time
from pathlib import Path

from omegaconf import DictConfig

from segrl import records
from segrl.commands.common import tokenised
from segrl.config import ConfigError, compose
from segrl.shards import read_shards


def show(config: DictConfig) -> None:
    """Print one trace, with its selection where given."""
    from segrl.report import draw, terminal
    from segrl.segmentation import segment

    traces = tokenised(config)
    trace = next((one for one in traces if config.id in (None, one.id)), None)
    if trace is None:
        raise ConfigError(f"no trace is called {config.id!r}; the first of {len(traces)} is {traces[0].id!r}")
    rows = read_shards(config.selections) if config.selections else []
    row = next((row for row in rows if row["id"] == trace.id), None)
    if row is None:
        draw(terminal(trace, segment(trace)))
        return
    records.check_identity(trace, row, "selection")
    draw(terminal(trace, records.segments_of(row), records.scores_of(row), records.selection_of(row)))


def quickstart(config: DictConfig) -> None:
    """Toy problems -> sampled traces -> verdicts -> attributions -> selections -> one trace in colour."""
    from segrl.commands import evaluating, generating, traces

    began, folder = time.perf_counter(), Path(config.out)
    given = f"traces={folder / 'traces'}"
    steps = {
        generating.generate: [f"out={folder / 'traces'}", f"limit={config.problems}", f"generation.seed={config.seed}"],
        evaluating.grade: [given, f"out={folder / 'verdicts.parquet'}"],
        traces.attribute: [given, f"out={folder / 'attributions'}"],
        traces.select: [given, f"attributions={folder / 'attributions'}", f"out={folder / 'selections.parquet'}"],
        show: [given, f"selections={folder / 'selections.parquet'}"],
    }
    for command, overrides in steps.items():
        print(f"\n[{time.perf_counter() - began:4.0f} s] segrl {command.__name__} {' '.join(overrides)}", flush=True)
        command(compose(command.__name__, overrides))

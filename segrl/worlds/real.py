"""Real traces from a file; nothing is planted in them, so their only truth is the model's Shapley values."""

from __future__ import annotations

from segrl.data.traces import load_traces, with_problem_ids
from segrl.types import Trace
from segrl.worlds.halves import from_file, world_file

PATH = "../shared/data/traces_r1_qwen7b_amc23.jsonl"


def real(half: str, n: int | None, seed: int, *, path: str = PATH) -> list[Trace]:
    """The traces of a file as ``load_traces`` reads it, right or wrong; each must have a gold answer."""
    traces = with_problem_ids(load_traces(world_file("real", path), require_response=True))
    if bare := [trace.id for trace in traces if not trace.answer]:
        raise ValueError(
            f"{path}: {len(bare)} of {len(traces)} traces have no answer, {bare[0]!r} is the first; world=real "
            "explains gold answers, so fill them in or remove the rows"
        )
    return from_file(traces, half, n, seed)

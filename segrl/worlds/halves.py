"""The dev and the test half of a world, split by problem: a problem of the dev half is never drawn for test."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path
from zlib import crc32

from segrl.types import Trace

HALVES = ("dev", "test", "all")
MOST_TRIES = 64  # problems that are looked at for each trace that fits


def half_of(problem_id: str) -> str:
    """The half of a problem from a file, the same on every machine."""
    return HALVES[crc32(problem_id.encode()) % 2]


def from_file(traces: Iterable[Trace], half: str, n: int | None, seed: int) -> list[Trace]:
    """At most n traces of the half, drawn by ``seed``; all where n is None. A smaller n gives the first of a larger."""
    of_half = [trace for trace in traces if half in ("all", half_of(trace.problem_id))]
    if n is None:
        return of_half
    random.Random(f"segrl world {seed}").shuffle(of_half)
    return of_half[:n]


def generated(sample: Callable[[int, int], list[Trace]], half: str, n: int | None, seed: int) -> list[Trace]:
    """n traces of ``sample(n, seed)``: of the dev half from even seeds, of the test half from odd ones."""
    if n is None:
        raise ValueError("a generated world has no end: give the number of traces, n=...")
    if half != "all":
        return sample(n, 2 * seed + HALVES.index(half))
    both = zip(sample(n, 2 * seed), sample(n, 2 * seed + 1), strict=True)
    return list(chain.from_iterable(both))[:n]


Sample = Callable[[int], list[Trace]]  # the first n traces, the same for every n


def short(sample: Sample, n: int, most: int | None) -> list[Trace]:
    """The first n traces with planted kinds for at most ``most`` thoughts."""
    wanted = f"have at most {most} thoughts; give a larger most=..."
    return fitting(sample, n, lambda trace: most is None or thoughts(trace) <= most, wanted)


def fitting(sample: Sample, n: int, fits: Callable[[Trace], bool], wanted: str) -> list[Trace]:
    """The first n traces that fit; raises where they are too rare, with ``wanted`` in the sentence."""
    drawn = n
    while drawn <= MOST_TRIES * n:
        fitted = [trace for trace in sample(drawn) if fits(trace)]
        if len(fitted) >= n:
            return fitted[:n]
        drawn *= 2
    raise ValueError(f"fewer than {n} of {MOST_TRIES * n} traces {wanted}")


def thoughts(trace: Trace) -> int:
    """The number of thoughts of a trace with planted kinds; the last kind is the answer's."""
    return len(trace.meta["kinds"]) - 1


def world_file(world: str, path: str) -> Path:
    """The file of a world; raises where there is none."""
    place = Path(path).expanduser()
    if not place.is_file():
        raise FileNotFoundError(
            f"world={world} reads its problems from a file, and there is none at {path!r} (looked at "
            f"{place.absolute()}); give its place as path=..."
        )
    return place

r"""Human solutions of GSM8K, a line a thought.

People wrote these lines, so nothing is planted in them. The only truth is how much a model's answer depends on each
line, as exact Shapley values, which only solutions of few lines allow.

    problem   A robe takes 2 bolts of blue fiber and half that much white fiber. How many bolts in total does it take?
    response  It takes 2/2=1 bolt of white fiber
              So the total amount of fabric is 2+1=3 bolts of fabric
              </think> So, the final answer is \boxed{3}
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from segrl.data.benchmarks import load_benchmark
from segrl.types import Trace
from segrl.worlds.halves import from_file, world_file

PATH = "../shared/data/benchmarks/gsm8k_test.jsonl"
CALCULATOR = re.compile(r"<<[^<>]*>>")  # <<16-3-4=9>>, behind an equals sign


def lines(half: str, n: int | None, seed: int, *, path: str = PATH, fewest: int = 4, most: int = 7) -> list[Trace]:
    """Solutions of ``fewest`` to ``most`` lines from a file of rows with problem, answer and solution."""
    if not 1 <= fewest <= most:
        raise ValueError(f"world=lines: fewest={fewest} and most={most} lines, expected 1 or more, and fewest <= most")
    traces = []
    for row in load_benchmark("gsm8k", world_file("lines", path)):
        if not row.meta.get("solution"):
            raise ValueError(f"{path}: the row {row.id!r} has no solution to take lines from; world=lines needs a text")
        thoughts = lines_of(row.meta["solution"])
        if fewest <= len(thoughts) <= most:
            traces.append(Trace(id=row.id, problem=row.problem, response=_response(thoughts, row), answer=row.answer))
    return from_file(traces, half, n, seed)


def lines_of(solution: str) -> list[str]:
    """The lines of a solution without calculator marks, blank lines and the last line, ``#### 18``."""
    texts = [line.strip() for line in CALCULATOR.sub("", solution).splitlines()]
    return [text for text in texts if text and not text.startswith("####")]


def _response(thoughts: Sequence[str], row: Trace) -> str:
    return "\n".join(thoughts) + f"\n</think> So, the final answer is \\boxed{{{row.answer}}}"

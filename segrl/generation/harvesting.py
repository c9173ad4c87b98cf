"""The shortest correct and the shortest incorrect candidate for each problem: the paper's self-generated supervision
([IG] sections 2.1 and 4).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from segrl.grading.verdict import UNDECIDED
from segrl.types import Trace

KEEPS = {"correct": (True,), "incorrect": (False,), "both": (True, False)}


def harvest(judged: Iterable[Trace], keep: str = "both", unanswered: bool = False) -> tuple[list[Trace], list[dict]]:
    """The kept traces, and a row of counts and lengths for each problem.

    ``meta`` of each candidate says ``correct``, ``status`` and ``tokens``. A candidate that gives no answer counts as
    incorrect only with ``unanswered``; of equally short candidates the first is kept.
    """
    if keep not in KEEPS:
        raise ValueError(f"keep={keep!r}, expected one of {', '.join(KEEPS)}")
    kept: list[Trace] = []
    rows = []
    for problem_id, candidates in by_problem(judged).items():
        right = [candidate for candidate in candidates if candidate.meta["correct"]]
        wrong = [candidate for candidate in candidates if _wrong(candidate, unanswered)]
        best = {True: _shortest(right), False: _shortest(wrong)}
        kept += [trace for side in KEEPS[keep] if (trace := best[side])]
        rows.append(
            {
                "problem_id": problem_id,
                "candidates": len(candidates),
                "correct": len(right),
                "incorrect": len(wrong),
                "shortest_correct": _tokens(best[True]),
                "shortest_incorrect": _tokens(best[False]),
            }
        )
    return kept, rows


def by_problem(traces: Iterable[Trace]) -> dict[str, list[Trace]]:
    """The candidates for each problem, by its id."""
    groups: dict[str, list[Trace]] = defaultdict(list)
    for trace in traces:
        groups[trace.problem_id].append(trace)
    return groups


def _wrong(trace: Trace, unanswered: bool) -> bool:
    status = trace.meta["status"]
    return not trace.meta["correct"] and status not in UNDECIDED and (unanswered or status != "no_answer")


def _shortest(traces: Sequence[Trace]) -> Trace | None:
    return min(traces, key=lambda trace: trace.meta["tokens"], default=None)


def _tokens(trace: Trace | None) -> int | None:
    return None if trace is None else trace.meta["tokens"]

"""The numbers behind the figures, from gathered rows: one nested dict, ready to be written as json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from segrl.analysis import classes, search
from segrl.analysis.classes import Row, Values
from segrl.evaluation.statistics import bootstrap
from segrl.grading.verdict import UNDECIDED
from segrl.importance.ranking import spearman

# The paper's own figures, on R1-Distill-Qwen-7B's traces of LIMO problems.
PAPER_POSITIONS = {"important": 0.40, "unimportant": 0.57, "low strength": 0.64, "high consistency": 0.72}
SIDES = {"important": "after", "unimportant": "before", "low strength": "before", "high consistency": "after"}

HELD = 0.8  # the share of the attribution that the paper asks about
REPETITIVE = 0.8  # the paper's line: a segment whose BLEU is above it repeats what was said
LANGUAGE = ("log_perplexity", "entropy", "bleu")


def usable(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """(right, wrong) traces that could be read and have a verdict; raises where none is right."""
    good = [row for row in rows if row["error"] is None]
    if not good:
        raise ValueError(f"none of {len(rows)} traces could be read; the first says: {rows[0]['error']}")
    right = [row for row in good if row["correct"]]
    wrong = [row for row in good if not row["correct"] and row["status"] not in UNDECIDED]
    if not right:
        statuses = sorted({row["status"] for row in good})
        raise ValueError(
            f"none of {len(good)} traces is right (verdicts: {', '.join(statuses)}); the analysis compares thoughts of "
            "right traces. Give traces of a model that solves some problems, or check their answers with segrl grade"
        )
    return right, wrong


def summarise(
    rows: Sequence[Row],
    truncated: Mapping[str, Values] | None,
    *,
    tau: float,
    beta: float,
    taus: Sequence[float],
    betas: Sequence[float],
    gain: str,
    held: float,
) -> dict[str, Any]:
    """All numbers; ``truncated`` has 1 or 0 for each thought of each trace id, where thoughts were judged."""
    right, wrong = usable(rows)
    decided = [row for row in right if classes.decision(row) is not None]
    if not decided:
        raise ValueError(
            f"the model never gives the right answer, after any thought of {len(right)} right traces; it cannot tell "
            "which thoughts matter. Is attributor_path a model of this domain, and the template the one it knows?"
        )
    sampled = all(row["confidence"] is not None for row in right)
    return {
        "settings": {"tau": tau, "beta": beta, "gain": gain},
        "traces": {
            "right": len(right),
            "wrong": len(wrong),
            "without_decision": len(right) - len(decided),
            "unread": sum(row["error"] is not None for row in rows),
            "first_unread": next((row["error"] for row in rows if row["error"]), None),
            "coarse": sum("coarse" in (row["flags"] or ()) for row in rows),
        },
        "redundancy": {
            side: _redundancy(traces, held) for side, traces in (("right", right), ("wrong", wrong)) if traces
        },
        "counts": _counts(right, wrong),
        "gain": {
            name: classes.by_class(right, [classes.gains(row, name) for row in right], tau, beta)
            for name in (*(["sampled"] if sampled else []), "probability", "nats")
        },
        "language": {name: classes.by_class(right, _of(right, name), tau, beta) for name in LANGUAGE},
        "repetitive": classes.by_class(right, [classes.above(row["bleu"], REPETITIVE) for row in right], tau, beta),
        "truncated": truncated and classes.by_class(right, [truncated[row["id"]] for row in right], tau, beta),
        "position": _positions(right, tau, beta),
        "kinds": _kinds(right, tau, beta),
        "kept": search.kept(right, tau, beta),
        "consistency_and_length": _with_length(right),
        "search": _search(right, taus, beta, gain),
        "grid": search.grid(right, taus, betas, gain),
    }


def _of(traces: Sequence[Row], name: str) -> list[Values]:
    return [row[name] for row in traces]


# --- how few segments hold most of the attribution ([IG] section 3, figure 1) ----------------------------------------


def _redundancy(traces: Sequence[Row], held: float) -> dict[str, Any]:
    shares = [row["share"] for row in traces if sum(row["share"]) > 0]
    if not shares:
        raise ValueError(f"no thought of {len(traces)} traces has any attribution; see the flags of segrl attribute")
    at, curve = mean_curve(shares)
    return {
        "held": held,
        "segments": bootstrap([holding(share_S, held) for share_S in shares]),
        "mean_curve_reaches_it_at": crossing(at, curve, held),
        "curve": {"segments": at.tolist(), "attribution": curve.tolist()},
    }


def cumulative(share_S: ArrayLike) -> NDArray:
    """0, the strongest segment's share, that of the two strongest, ... 1 ([IG] Eq. 5)."""
    return np.concatenate([[0.0], np.sort(np.asarray(share_S, dtype=float))[::-1].cumsum()])


def holding(share_S: ArrayLike, held: float = HELD) -> float:
    """The share of segments, strongest first, that together hold ``held`` of the attribution ([IG] Eq. 6)."""
    reached = cumulative(share_S)
    return int((reached < held - 1e-12).sum()) / (len(reached) - 1)


def mean_curve(shares: Sequence[ArrayLike], points: int = 101) -> tuple[NDArray, NDArray]:
    """Even shares of the segments, and the cumulative attribution there, averaged over traces."""
    at = np.linspace(0, 1, points)
    curves = [np.interp(at, np.linspace(0, 1, len(curve)), curve) for curve in map(cumulative, shares)]
    return at, np.mean(curves, axis=0)


def crossing(at: NDArray, curve: NDArray, held: float = HELD) -> float:
    """The share of the segments at which the mean curve reaches ``held``."""
    return float(np.interp(held, curve, at))


# --- right traces against wrong ones, and classes of thoughts --------------------------------------------------------


def _counts(right: Sequence[Row], wrong: Sequence[Row]) -> dict[str, Any]:
    """The mean segments and tokens of right and of wrong traces, over the problems with both where there are any."""
    shared = {row["problem_id"] for row in right} & {row["problem_id"] for row in wrong}
    sides = {"right": right, "wrong": wrong}
    if shared:
        sides = {side: [row for row in rows if row["problem_id"] in shared] for side, rows in sides.items()}
    return {
        "same_problems": len(shared),
        **{
            side: {
                "segments": bootstrap([len(row["share"]) for row in rows]),
                "tokens": bootstrap([sum(row["tokens"]) for row in rows]),
            }
            for side, rows in sides.items()
            if rows
        },
    }


def _positions(right: Sequence[Row], tau: float, beta: float) -> dict[str, Any]:
    """The share of each class before or after the decision segment, as the paper asks, and the paper's figure."""
    shares = {
        side: classes.by_class(right, [classes.positions(row, side) for row in right], tau, beta)
        for side in ("before", "after")
    }
    return {
        name: {"side": side, "share": shares[side][name], "paper": PAPER_POSITIONS[name]}
        for name, side in SIDES.items()
    }


def _kinds(right: Sequence[Row], tau: float, beta: float) -> dict[str, Any] | None:
    """How often a thought of each planted kind is important; None on traces without planted kinds."""
    with_kinds = [row for row in right if row["kinds"]]
    names = sorted({kind for row in with_kinds for kind in row["kinds"]})
    if not names:
        return None
    kept = [[reason == "strength" for reason in classes.reasons(row, tau, beta)] for row in with_kinds]
    problems = [row["problem_id"] for row in with_kinds]
    return {
        name: classes.pooled(
            problems,
            [
                [float(keep) for keep, kind in zip(row_kept, row["kinds"], strict=True) if kind == name]
                for row_kept, row in zip(kept, with_kinds, strict=True)
            ],
        )
        for name in names
    }


def _with_length(right: Sequence[Row]) -> float | None:
    """Spearman of a thought's consistency with its tokens: short thoughts are consistent by chance."""
    return spearman(
        np.concatenate([row["consistency"] for row in right]), np.concatenate([row["tokens"] for row in right])
    )


def _search(right: Sequence[Row], taus: Sequence[float], beta: float, gain: str) -> dict[str, Any]:
    points = [search.point(right, tau, beta, gain) for tau in taus]
    return {"beta": beta, "best_tau": search.best_tau(points), "points": points}

"""Rows of scores -> how well each arm agrees with what is known of the thoughts, as a table with intervals.

*Planted*: needed against redundant thoughts, by the generator. *Shapley*: the model's own dependence on each thought;
its positives are the thoughts above their trace's median. *Mistake*: the first wrong step against all other thoughts.
An arm ranks the thoughts of one trace, so agreement is taken on each trace and averaged, with intervals over traces.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from segrl.evaluation.statistics import Estimate, bootstrap
from segrl.importance.ranking import auroc, average_precision, outranked, spearman
from segrl.toy import CLASSES

Row = dict[str, Any]
Agreement = dict[str, float | None]
LEFT_OUT = ("restated",)  # copies of the answer: the agreement with Shapley values leaves them out
REFERENCE = "ig"
# The columns of the table by length; each says whether an answer with that number of tokens belongs to it.
LENGTHS: Mapping[str, Callable[[int], bool]] = {
    "1 token": lambda tokens: tokens == 1,
    "2 to 4": lambda tokens: 2 <= tokens <= 4,
    "5 and more": lambda tokens: tokens >= 5,
}


def table(rows: Sequence[Row], reference: str = REFERENCE) -> dict[str, Row]:
    """For each arm: its agreement with each truth, how far it stands above the reference on the same traces, its cost,
    the gap of its attributions, what it marks, and its agreement by the length of the answer."""
    names = list(dict.fromkeys(name for row in rows for name in row["scores"]))
    agreements = {name: [agreement(row, row["scores"][name]) for row in rows] for name in names}
    known = [what for what in WHAT if any(line[what] is not None for lines in agreements.values() for line in lines)]
    return {name: _line(rows, name, agreements[name], agreements.get(reference), known) for name in names}


def _line(
    rows: Sequence[Row],
    name: str,
    results: Sequence[Agreement],
    reference: Sequence[Agreement] | None,
    known: Sequence[str],
) -> Row:
    values = {what: [value for result in results if (value := result[what]) is not None] for what in known}
    return {
        **{what: bootstrap(values[what]) if values[what] else None for what in known},
        "above": {what: difference(results, reference, what) for what in known} if reference else {},
        "traces": {what: len(values[what]) for what in known},
        "evaluations": float(np.mean([row["evaluations"][name] for row in rows])),
        "seconds": float(np.mean([row["seconds"][name] for row in rows])),
        "gap": _gap(rows, name),
        "marked": _marked(rows, name),
        "by_length": _by_length(rows, results, known),
        "by_kind": _by_kind(rows, name),
    }


def difference(results: Sequence[Agreement], others: Sequence[Agreement], what: str) -> Estimate | None:
    """How much higher the results are than others on the same traces."""
    pairs = [(a[what], b[what]) for a, b in zip(results, others, strict=True)]
    known = [a - b for a, b in pairs if a is not None and b is not None]
    return bootstrap(known) if known else None


def agreement(row: Row, thoughts: Sequence[float]) -> Agreement:
    """How well the scores of one trace's thoughts agree with each truth; None where the truth is not known."""
    scores, truth = np.asarray(thoughts, dtype=float), row["truth"]
    return {
        **dict.fromkeys(WHAT),
        **(_with_kinds(scores, truth["kinds"]) if truth.get("kinds") else {}),
        **(_with_shapley(scores, truth) if truth.get("shapley") else {}),
        **(_with_mistake(scores, truth["mistake"]) if truth.get("mistake") is not None else {}),
    }


def _with_kinds(scores: np.ndarray, kinds: Sequence[str]) -> Agreement:
    classes = [CLASSES[kind] for kind in kinds]
    sided = [s for s, name in enumerate(classes) if name != "other"]
    needed = [classes[s] == "needed" for s in sided]
    return {"planted_auroc": auroc(scores[sided], needed), "planted_ap": average_precision(scores[sided], needed)}


def _with_shapley(scores: np.ndarray, truth: Mapping[str, Any]) -> Agreement:
    kinds = truth.get("kinds") or [""] * len(scores)
    read = [s for s, kind in enumerate(kinds) if kind not in LEFT_OUT]
    values, scores = np.asarray(truth["shapley"])[read], scores[read]
    return {
        "shapley_auroc": auroc(scores, values > np.median(values)),
        "shapley_spearman": spearman(scores, values),
        "shapley_spearman_but_last": spearman(scores[:-1], values[:-1]),
    }


def _with_mistake(scores: np.ndarray, mistake: int) -> Agreement:
    first = np.arange(len(scores)) == mistake
    best = scores == scores.max()
    return {"mistake_auroc": auroc(scores, first), "mistake_top1": float(best[mistake] / best.sum())}


WHAT = {
    "planted_auroc": "AUROC, planted",
    "planted_ap": "AP, planted",
    "shapley_auroc": "AUROC, Shapley",
    "shapley_spearman": "Spearman, Shapley",
    "shapley_spearman_but_last": "Spearman without the last",
    "mistake_auroc": "AUROC, first wrong step",
    "mistake_top1": "top 1, first wrong step",
}


def _gap(rows: Sequence[Row], name: str) -> dict[str, float] | None:
    """The median and the 90th percentile of the completeness gap, over the traces for which the arm has one."""
    gaps = [gap for row in rows if (gap := row.get("gaps", {}).get(name)) is not None]  # not in rows of earlier runs
    if not gaps:
        return None
    return {"median": float(np.median(gaps)), "p90": float(np.quantile(gaps, 0.9)), "traces": len(gaps)}


def _marked(rows: Sequence[Row], name: str) -> dict[str, Estimate | None] | None:
    """The share of traces in which the arm marks a thought, and what the marked thoughts are; None where it cannot."""
    tested = [row for row in rows if name in row.get("marked", {}) and "misled" in row["truth"]]  # not in earlier runs
    marks = [(row["marked"][name], row["truth"]) for row in tested]
    if not marks:
        return None
    first = [float(truth["mistake"] == thought) for marked, truth in marks for thought in marked]
    either = [float(thought in truth["misled"]) for marked, truth in marks for thought in marked]
    return {
        "marked": bootstrap([float(bool(marked)) for marked, _ in marks]),
        "first wrong step": bootstrap(first) if first else None,
        "wrong or carried": bootstrap(either) if either else None,
    }


def _by_length(rows: Sequence[Row], results: Sequence[Agreement], known: Sequence[str]) -> dict[str, Any]:
    """The first kind of agreement by the number of tokens of the explained answer."""
    values: dict[str, list[float]] = defaultdict(list)
    for row, result in zip(rows, results, strict=True):
        if known and (value := result[known[0]]) is not None:
            values[next(label for label, fits in LENGTHS.items() if fits(row["answer_tokens"]))].append(value)
    return {label: (float(np.mean(values[label])), len(values[label])) for label in LENGTHS if label in values}


def _by_kind(rows: Sequence[Row], name: str) -> dict[str, Any]:
    """For each kind, the share of the trace's other thoughts that such a thought outranks; 0.5 is chance."""
    shares: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        for s, kind in enumerate(row["truth"].get("kinds") or ()):
            if (share := outranked(row["scores"][name], s)) is not None:
                shares[kind].append(share)
    return {kind: bootstrap(values) for kind, values in sorted(shares.items())}

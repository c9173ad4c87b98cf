"""How well each measure ranks the thoughts of toy traces, against two known truths.

*Planted*: needed against redundant thoughts, by the generator's graph. *Shapley*: the model's own dependence on each
thought, exact; its positives are the thoughts above their trace's median. Measures rank the thoughts of one trace, so
AUROC and average precision are taken on each trace and averaged, with intervals over draws of traces.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from segrl.analysis.gathering import kinds_of, thought_texts
from segrl.analysis.shapley import MOST, dependence
from segrl.evaluation.statistics import Estimate, bootstrap
from segrl.importance import MEASURES, measure_of, score
from segrl.importance.gathering import gather
from segrl.importance.ranking import auroc, average_precision, outranked, spearman
from segrl.importance.reading import Reading
from segrl.selection import select
from segrl.toy import CLASSES
from segrl.types import Evidence, Segments, SegmentScores, TokenisedTrace

Row = dict[str, Any]
Scored = tuple[list[float], float]  # a number for each thought, and what it took in evaluations
SHORTCUTS = ("length", "position", "digits", "keyword")
# What can differ in the path of integrated gradients; each value other than the configured one has a row in the table.
CHOICES: Mapping[str, tuple[Any, ...]] = {
    "context": ("think", "full"),
    "hide_answer": (False, True),
    "interpolate": ("all", "response"),
}
AGGREGATES = ("sqrt", "sum", "top20")  # of |IG| over a segment; each one that is not configured has a row in the table
TOP_TOKENS = 0.45  # what a measure of tokens keeps, as the paper lets it ([IG] section 4.3)
LEFT_OUT = ("restated",)  # copies of the answer: counted in the table by kind alone


def check_planted(trace: TokenisedTrace, segments: Segments) -> None:
    """Refuse a trace whose truth is not known, or takes more than 2**MOST evaluations."""
    if kinds_of(trace, segments) is None:
        planted = trace.kinds
        how = "has no planted kinds" if planted is None else f"has {len(planted)} kinds for {len(segments)} segments"
        raise ValueError(
            f"trace {trace.id!r} {how}: its truth is not known. Give traces of segrl.toy.sample_traces, "
            "or leave traces= out to sample some"
        )
    thoughts = int(segments.thought_S.sum())
    if thoughts > MOST:
        raise ValueError(f"trace {trace.id!r} has {thoughts} thoughts; exact Shapley values are for at most {MOST}")


# --- one trace -------------------------------------------------------------------------------------------------------


def judged(
    model,
    tokenizer,
    trace: TokenisedTrace,
    segments: Segments,
    *,
    measures: Sequence[str],
    measure_options: Mapping[str, Mapping[str, Any]],
    attribution: Mapping[str, Any],
    tau: float,
    beta: float,
) -> Row:
    """A row: the scores of every measure for each thought, their costs, and both truths."""
    check_planted(trace, segments)
    needs = tuple(dict.fromkeys(("ig", *(need for name in measures for need in measure_of(name).needs))))
    [evidence] = gather(model, [trace], tokenizer, needs, segments=[segments], **attribution)
    texts = thought_texts(trace, segments)
    scored: dict[str, Scored] = {"digits": ([float(sum(map(str.isdigit, text))) for text in texts], 0.0)}
    for name in measures:
        scores = score(evidence, segments, name, **measure_options.get(name, {}))
        cost = sum(evidence.cost.get(need, 0.0) for need in measure_of(name).needs)
        scored[name] = by_thought(scores, segments), cost
    ig_options = measure_options.get("ig", {})
    for name, options in variants(attribution).items():
        [other] = gather(model, [trace], tokenizer, ("ig",), **options)
        scored[name] = by_thought(score(other, segments, "ig", **ig_options), segments), other.cost["ig"]
    scored |= _same_path(evidence, segments, ig_options, tau, beta)
    path = {name: attribution[name] for name in ("target", "template", "batch_tokens") if name in attribution}
    exact = dependence(model, tokenizer, trace, segments, Reading(**path))
    scored["shapley"] = exact["shapley"], exact["evaluations"]
    return {
        "id": trace.id,
        "problem_id": trace.problem_id,
        "kinds": kinds_of(trace, segments),
        "keywords": [text.partition(",")[0] for text in texts],
        "answer_logp": [exact["without"], exact["with"]],
        "scores": {name: values for name, (values, _) in scored.items()},
        "costs": {name: cost for name, (_, cost) in scored.items()},
    }


def _same_path(
    evidence: Evidence, segments: Segments, ig_options: Mapping[str, Any], tau: float, beta: float
) -> dict[str, Scored]:
    """The scores that need no other attribution: other aggregates, and the sets selected with and without beta."""
    scores = {
        name: by_thought(score(evidence, segments, "ig", **options), segments)
        for name, options in aggregates(ig_options).items()
    }
    for name, most in (("tau alone", 1.0), ("tau and beta", beta)):
        keep_S = select(score(evidence, segments, "ig", **ig_options), tau=tau, beta=most, force=()).keep_S
        scores[name] = keep_S[segments.thought_S].double().tolist()
    return {name: (values, evidence.cost["ig"]) for name, values in scores.items()}


def variants(attribution: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The options of each other path, by the name of its row: ``ig context=full`` and so on."""
    return {
        f"ig {name}={str(value).lower()}": {**attribution, name: value}
        for name, values in CHOICES.items()
        for value in values
        if value != attribution.get(name, values[0])
    }


def aggregates(ig_options: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The options of ``ig`` with each other aggregate, by the name of its row: ``ig aggregate=sum`` and so on."""
    others = [value for value in AGGREGATES if value != ig_options.get("aggregate", AGGREGATES[0])]
    return {f"ig aggregate={value}": {**ig_options, "aggregate": value} for value in others}


def by_thought(scores: SegmentScores, segments: Segments) -> list[float]:
    """A number for each thought: its strength, or the share of its tokens in the top of a measure of tokens."""
    if scores.segment_T is None:
        return scores.strength_S[segments.thought_S].tolist()
    inside_T = segments.thought_S[segments.index_T]
    count = max(1, round(TOP_TOKENS * int(inside_T.sum())))
    ranked = torch.where(inside_T, scores.strength_S, -torch.inf).argsort(descending=True, stable=True)
    top_T = torch.zeros(len(inside_T))
    top_T[ranked[:count]] = 1
    pieces = zip(segments.slices, segments.thought_S.tolist(), strict=True)
    return [float(top_T[piece].mean()) for piece, thought in pieces if thought]


# --- the table -------------------------------------------------------------------------------------------------------


WHAT = ("planted_auroc", "planted_ap", "shapley_auroc", "shapley_spearman")


def table(rows: Sequence[Row]) -> dict[str, Row]:
    """For each measure, how well it ranks against both truths, and its cost; the shortcuts first."""
    keyword = _keyword_scores(rows)
    rows = [{**row, "scores": {**row["scores"], "keyword": keyword[row["id"]]}} for row in rows]
    named = dict.fromkeys(name for row in rows for name in row["scores"])
    return {name: _line(rows, name) for name in dict.fromkeys((*SHORTCUTS, *named)) if name in named}


def _line(rows: Sequence[Row], name: str) -> Row:
    results = [_of_trace(row, row["scores"][name]) for row in rows]
    ig_results = [_of_trace(row, row["scores"]["ig"]) if "ig" in row["scores"] else None for row in rows]
    known = {what: [value for result in results if (value := result[what]) is not None] for what in WHAT}
    return {
        **{what: bootstrap(values) if values else None for what, values in known.items()},
        "above_ig": {what: _above(results, ig_results, what) for what in ("planted_auroc", "shapley_auroc")},
        "traces": {what: len(values) for what, values in known.items()},
        "evaluations": float(np.mean([row["costs"].get(name, 0.0) for row in rows])),
        "by_kind": _by_kind(rows, name),
    }


def _of_trace(row: Row, thoughts: Sequence[float]) -> dict[str, float | None]:
    classes = [CLASSES[kind] for kind in row["kinds"]]
    sided = [s for s, name in enumerate(classes) if name != "other"]
    needed = [classes[s] == "needed" for s in sided]
    not_copies = [s for s, kind in enumerate(row["kinds"]) if kind not in LEFT_OUT]
    values = np.asarray(row["scores"]["shapley"])[not_copies]
    scores = np.asarray(thoughts, dtype=float)
    return {
        "planted_auroc": auroc(scores[sided], needed),
        "planted_ap": average_precision(scores[sided], needed),
        "shapley_auroc": auroc(scores[not_copies], values > np.median(values)),
        "shapley_spearman": spearman(scores[not_copies], values),
    }


def _keyword_scores(rows: Sequence[Row]) -> dict[str, list[float]]:
    """By trace id, for each thought: how often thoughts with its keyword are needed in the other half of the traces."""
    halves = [rows[0::2], rows[1::2]]
    scores = {}
    for half, other in (halves, halves[::-1]):
        counts: dict[str, list[int]] = defaultdict(lambda: [1, 2])  # as if seen twice, needed once
        for row in other:
            for keyword, kind in zip(row["keywords"], row["kinds"], strict=True):
                if CLASSES[kind] != "other":
                    counts[keyword][0] += CLASSES[kind] == "needed"
                    counts[keyword][1] += 1
        for row in half:
            scores[row["id"]] = [counts[keyword][0] / counts[keyword][1] for keyword in row["keywords"]]
    return scores


def _above(results: Sequence[Row], ig_results: Sequence[Row | None], what: str) -> Estimate | None:
    """How much higher a measure's ``what`` is than that of ``ig`` on the same traces."""
    differences = [
        result[what] - ig[what]
        for result, ig in zip(results, ig_results, strict=True)
        if ig is not None and result[what] is not None and ig[what] is not None
    ]
    return bootstrap(differences) if differences else None


def _by_kind(rows: Sequence[Row], name: str) -> dict[str, Any]:
    """For each kind, the share of the trace's other thoughts that such a thought outranks; 0.5 is chance."""
    shares: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        for s, kind in enumerate(row["kinds"]):
            if (share := outranked(row["scores"][name], s)) is not None:
                shares[kind].append(share)
    return {kind: bootstrap(values) for kind, values in sorted(shares.items())}


def default_measures() -> list[str]:
    """The measures of the table, the controls first."""
    controls = [name for name in SHORTCUTS if name in MEASURES]
    return [*controls, *(name for name in MEASURES if name not in controls)]

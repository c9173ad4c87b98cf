"""How far each measure is right, where the truth is known: on toy traces, against two truths side by side.

*Planted*: needed against redundant thoughts, by the generator's graph. *Shapley*: the model's own dependence on each
thought, exact; its positives are the thoughts above their trace's median. Measures rank the thoughts of one trace, so
AUROC and average precision are those of each trace, averaged over traces, with intervals from drawing traces again.
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
# How the path of integrated gradients can differ; each value that is not the one asked for is a row of its own.
CHOICES: Mapping[str, tuple[Any, ...]] = {
    "context": ("think", "full"),
    "hide_answer": (False, True),
    "interpolate": ("all", "response"),
}
AGGREGATES = ("sqrt", "sum", "top20")  # of |IG| over a segment; the one that is not asked for has a row of its own
TOP_TOKENS = 0.45  # what a measure of tokens keeps, as the paper lets it ([IG] section 4.3)
LEFT_OUT = ("restated",)  # copies of the answer: neither truth counts them, the table by kind has them


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
    """The scores of every measure for each thought, what they cost, and both truths."""
    check_planted(trace, segments)
    needs = tuple(dict.fromkeys(("ig", *(need for name in measures for need in measure_of(name).needs))))
    [evidence] = gather(model, [trace], tokenizer, needs, segments=[segments], **attribution)
    texts = thought_texts(trace, segments)
    found: dict[str, Scored] = {"digits": ([float(sum(map(str.isdigit, text))) for text in texts], 0.0)}
    for name in measures:
        scores = score(evidence, segments, name, **measure_options.get(name, {}))
        found[name] = by_thought(scores, segments), sum(evidence.cost.get(need, 0.0) for need in measure_of(name).needs)
    asked = measure_options.get("ig", {})
    for name, options in variants(attribution).items():
        [other] = gather(model, [trace], tokenizer, ("ig",), **options)
        found[name] = by_thought(score(other, segments, "ig", **asked), segments), other.cost["ig"]
    found |= _same_path(evidence, segments, asked, tau, beta)
    path = {name: attribution[name] for name in ("target", "template", "batch_tokens") if name in attribution}
    own = dependence(model, tokenizer, trace, segments, Reading(**path))
    found["shapley"] = own["shapley"], own["evaluations"]
    return {
        "id": trace.id,
        "problem_id": trace.problem_id,
        "kinds": kinds_of(trace, segments),
        "keywords": [text.partition(",")[0] for text in texts],
        "answer_logp": [own["without"], own["with"]],
        "scores": {name: values for name, (values, _) in found.items()},
        "costs": {name: cost for name, (_, cost) in found.items()},
    }


def _same_path(
    evidence: Evidence, segments: Segments, asked: Mapping[str, Any], tau: float, beta: float
) -> dict[str, Scored]:
    """What else can be made of one attribution: other aggregates, and the selected sets with and without beta."""
    found = {
        name: by_thought(score(evidence, segments, "ig", **options), segments)
        for name, options in aggregates(asked).items()
    }
    for name, most in (("tau alone", 1.0), ("tau and beta", beta)):
        keep_S = select(score(evidence, segments, "ig", **asked), tau=tau, beta=most, force=()).keep_S
        found[name] = keep_S[segments.thought_S].double().tolist()
    return {name: (values, evidence.cost["ig"]) for name, values in found.items()}


def variants(attribution: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """``ig context=full`` and so on -> the options of the path that is meant."""
    return {
        f"ig {name}={str(value).lower()}": {**attribution, name: value}
        for name, values in CHOICES.items()
        for value in values
        if value != attribution.get(name, values[0])
    }


def aggregates(asked: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """``ig aggregate=sum`` and so on -> the options of the measure that is meant."""
    others = [value for value in AGGREGATES if value != asked.get("aggregate", AGGREGATES[0])]
    return {f"ig aggregate={value}": {**asked, "aggregate": value} for value in others}


def by_thought(scores: SegmentScores, segments: Segments) -> list[float]:
    """A number for each thought; of a measure of tokens, the share of the thought's that are among the top tokens."""
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
    """measure -> how well it ranks against both truths, and what it costs; the shortcuts first."""
    keyword = _keyword_scores(rows)
    rows = [{**row, "scores": {**row["scores"], "keyword": keyword[row["id"]]}} for row in rows]
    named = dict.fromkeys(name for row in rows for name in row["scores"])
    return {name: _line(rows, name) for name in dict.fromkeys((*SHORTCUTS, *named)) if name in named}


def _line(rows: Sequence[Row], name: str) -> Row:
    found = [_of_trace(row, row["scores"][name]) for row in rows]
    beside = [_of_trace(row, row["scores"]["ig"]) if "ig" in row["scores"] else None for row in rows]
    values = {what: [one[what] for one in found if one[what] is not None] for what in WHAT}
    return {
        **{what: bootstrap(own) if own else None for what, own in values.items()},
        "above_ig": {what: _above(found, beside, what) for what in ("planted_auroc", "shapley_auroc")},
        "traces": {what: len(own) for what, own in values.items()},
        "evaluations": float(np.mean([row["costs"].get(name, 0.0) for row in rows])),
        "by_kind": _by_kind(rows, name),
    }


def _of_trace(row: Row, thoughts: Sequence[float]) -> dict[str, float | None]:
    classes = [CLASSES[kind] for kind in row["kinds"]]
    sided = [s for s, one in enumerate(classes) if one != "other"]
    needed = [classes[s] == "needed" for s in sided]
    counted = [s for s, kind in enumerate(row["kinds"]) if kind not in LEFT_OUT]
    values = np.asarray(row["scores"]["shapley"])[counted]
    scores = np.asarray(thoughts, dtype=float)
    return {
        "planted_auroc": auroc(scores[sided], needed),
        "planted_ap": average_precision(scores[sided], needed),
        "shapley_auroc": auroc(scores[counted], values > np.median(values)),
        "shapley_spearman": spearman(scores[counted], values),
    }


def _keyword_scores(rows: Sequence[Row]) -> dict[str, list[float]]:
    """How often thoughts that open with the same keyword are needed in the other half of the traces."""
    halves = [rows[0::2], rows[1::2]]
    found = {}
    for own, other in (halves, halves[::-1]):
        counts: dict[str, list[int]] = defaultdict(lambda: [1, 2])  # as if seen twice, needed once
        for row in other:
            for keyword, kind in zip(row["keywords"], row["kinds"], strict=True):
                if CLASSES[kind] != "other":
                    counts[keyword][0] += CLASSES[kind] == "needed"
                    counts[keyword][1] += 1
        for row in own:
            found[row["id"]] = [counts[keyword][0] / counts[keyword][1] for keyword in row["keywords"]]
    return found


def _above(found: Sequence[Row], ig: Sequence[Row | None], what: str) -> Estimate | None:
    """How far a measure ranks better than ``ig`` on the same traces."""
    differences = [
        one[what] - other[what]
        for one, other in zip(found, ig, strict=True)
        if other is not None and one[what] is not None and other[what] is not None
    ]
    return bootstrap(differences) if differences else None


def _by_kind(rows: Sequence[Row], name: str) -> dict[str, Any]:
    """kind -> the share of its trace's other thoughts that such a thought outranks; 0.5 is chance."""
    values: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        for s, kind in enumerate(row["kinds"]):
            values[kind].append(outranked(row["scores"][name], s))
    return {kind: bootstrap(own) for kind, own in sorted(values.items())}


def default_measures() -> list[str]:
    """All of the table, the controls first."""
    controls = [name for name in SHORTCUTS if name in MEASURES]
    return [*controls, *(name for name in MEASURES if name not in controls)]

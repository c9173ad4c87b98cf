"""How segments, attributions and selections lie in parquet: one row a trace, bound to it by two hashes."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch

from segrl.types import Attribution, Segments, SegmentScores, Selection, Trace

Row = dict[str, Any]
_NUMBERS = (
    "logp_input",
    "logp_baseline",
    "mass_prompt",
    "mass_suffix",
    "gap",
    "unevenness",
    "copy_share",
    "evaluations",
)


def response_hash(trace: Trace) -> str:
    return hashlib.sha256(trace.response.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def identity(trace: Trace) -> Row:
    return {"id": trace.id, "prompt_hash": trace.prompt_hash, "response_hash": response_hash(trace)}


def check_identity(trace: Trace, row: Row, what: str) -> None:
    """Refuse a row that was made from another prompt or response."""
    for name, have in identity(trace).items():
        if row[name] != have:
            raise ValueError(
                f"the {what} of {row['id']!r} was made for another {name.removesuffix('_hash')} "
                f"({row[name]}, this trace has {have}); make it again from these traces"
            )


def segments_row(trace: Trace, segments: Segments) -> Row:
    return {**identity(trace), "boundaries": list(segments.boundaries), "kinds": list(segments.kinds_S)}


def segments_of(row: Row) -> Segments:
    return Segments(tuple(row["boundaries"]), tuple(row["kinds"]))


def attribution_row(trace: Trace, attribution: Attribution) -> Row:
    return {
        **identity(trace),
        "scores": attribution.scores_T.tolist(),
        "target": attribution.target,
        "input_ids": attribution.input_ids.tolist(),
        "answer_span": list(attribution.answer_span),
        **{name: getattr(attribution, name) for name in _NUMBERS},
        "flags": list(attribution.flags),
        "error": None,
    }


def failed_attribution_row(trace: Trace, error: str) -> Row:
    """The same columns, empty, with the reason."""
    columns: Row = {"scores": [], "target": None, "input_ids": [], "answer_span": [], "flags": []}
    return {**identity(trace), **dict.fromkeys(_NUMBERS), **columns, "error": error}


def attribution_of(row: Row) -> Attribution:
    return Attribution(
        trace_id=row["id"],
        scores_T=torch.tensor(row["scores"]),
        target=row["target"],
        input_ids=torch.tensor(row["input_ids"]),
        answer_span=tuple(row["answer_span"]),
        flags=tuple(row["flags"]),
        **{name: row[name] for name in _NUMBERS},
    )


def selection_row(trace: Trace, segments: Segments, scores: SegmentScores, selection: Selection) -> Row:
    return {
        **segments_row(trace, segments),
        "keep": selection.keep_S.tolist(),
        "reason": list(selection.reason_S),
        "strength": scores.strength_S.tolist(),
        "share": scores.share_S.tolist(),
        "consistency": scores.consistency_S.tolist(),
    }


def scores_of(row: Row) -> SegmentScores:
    segments = segments_of(row)
    names = {"strength_S": "strength", "share_S": "share", "consistency_S": "consistency"}
    columns = {field: torch.tensor(row[name], dtype=torch.float64) for field, name in names.items()}
    return SegmentScores(**columns, tokens_S=segments.tokens_S, thought_S=segments.thought_S)


def selection_of(row: Row) -> Selection:
    return Selection(torch.tensor(row["keep"], dtype=torch.bool), tuple(row["reason"]))


def made_by(selections: str | Path) -> Path:
    """Where the note stands that says by which measure and thresholds they were made."""
    return Path(selections).with_suffix(".json")

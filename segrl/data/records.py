"""Segments, attributions and selections as rows of parquet: one row a trace, bound to it by two hashes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import torch

from segrl.data.files import Row
from segrl.types import Attribution, Segments, SegmentScores, Selection, TokenisedTrace, Trace

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
# The columns of the segments that are read.
SEGMENTS = ("id", "prompt_hash", "response_hash", "boundaries", "kinds")
_SCORES = ("strength", "share", "consistency", "excess")
PARTS = "parts"  # those of the strengths, as JSON by name; a file may come without the column


def response_hash(trace: TokenisedTrace) -> str:
    return hashlib.sha256(trace.response.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def identity(trace: TokenisedTrace) -> Row:
    return {"id": trace.id, "prompt_hash": trace.prompt_hash, "response_hash": response_hash(trace)}


def check_identity(trace: TokenisedTrace, row: Row, what: str) -> None:
    """Refuse a row that was made from another prompt or response."""
    for name, value in identity(trace).items():
        if row[name] != value:
            raise ValueError(
                f"the {what} of {row['id']!r} was made for another {name.removesuffix('_hash')} "
                f"({row[name]}, this trace has {value}); make it again from these traces"
            )


SELECTIONS = (*SEGMENTS, "keep", "reason", *_SCORES, "segment", "error")
ATTRIBUTIONS = (*SEGMENTS[:3], "scores", "target", "path", "input_ids", "answer_span", *_NUMBERS, "flags", "error")


def segments_row(trace: TokenisedTrace, segments: Segments) -> Row:
    return {**identity(trace), "boundaries": list(segments.boundaries), "kinds": list(segments.kinds_S)}


def segments_of(row: Row) -> Segments:
    return Segments(tuple(row["boundaries"]), tuple(row["kinds"]))


def attribution_row(trace: TokenisedTrace, attribution: Attribution) -> Row:
    """The row that a file of attributions holds of a trace."""
    return {
        **identity(trace),
        "scores": attribution.scores_T.tolist(),
        "target": attribution.target,
        "path": attribution.path,
        "input_ids": attribution.input_ids.tolist(),
        "answer_span": list(attribution.answer_span),
        **{name: getattr(attribution, name) for name in _NUMBERS},
        "flags": list(attribution.flags),
        "error": None,
    }


def failed_attribution_row(trace: TokenisedTrace, error: str) -> Row:
    """A row with the columns of ``attribution_row``, empty except for the reason."""
    columns: Row = {"scores": [], "target": None, "path": None, "input_ids": [], "answer_span": [], "flags": []}
    return {**identity(trace), **dict.fromkeys(_NUMBERS), **columns, "error": error}


def attribution_of(row: Row) -> Attribution:
    """The attribution that a row holds."""
    return Attribution(
        trace_id=row["id"],
        scores_T=torch.tensor(row["scores"]),
        target=row["target"],
        path=row["path"],
        input_ids=torch.tensor(row["input_ids"]),
        answer_span=tuple(row["answer_span"]),
        flags=tuple(row["flags"]),
        **{name: row[name] for name in _NUMBERS},
    )


def scores_row(trace: TokenisedTrace, segments: Segments, scores: SegmentScores) -> Row:
    """A row of the segments and their scores. A token measure's row has a segment for each token; ``segment`` there
    says which of the trace's segments the token lies in.
    """
    pieces = segments if scores.segment_T is None else segments.by_token
    return {
        **segments_row(trace, pieces),
        **{name: getattr(scores, f"{name}_S").tolist() for name in _SCORES},
        "segment": [] if scores.segment_T is None else scores.segment_T.tolist(),
        PARTS: json.dumps({name: part_S.tolist() for name, part_S in scores.parts.items()}),
        "error": None,
    }


def failed_scores_row(trace: TokenisedTrace, segments: Segments, error: str) -> Row:
    """A row with the columns of ``scores_row``, of scores that are zero, with the reason."""
    zeros = {name: [0.0] * len(segments) for name in _SCORES}
    return {**segments_row(trace, segments), **zeros, "segment": [], PARTS: "{}", "error": error}


def selection_row(trace: TokenisedTrace, segments: Segments, scores: SegmentScores, selection: Selection) -> Row:
    """A row of the segments, their scores and which are kept."""
    keep: Row = {"keep": selection.keep_S.tolist(), "reason": list(selection.reason_S)}
    return {**scores_row(trace, segments, scores), **keep}


def failed_selection_row(trace: TokenisedTrace, segments: Segments, error: str) -> Row:
    """A row with the columns of ``selection_row`` that keeps nothing, with the reason."""
    keep: Row = {"keep": [False] * len(segments), "reason": ["dropped"] * len(segments)}
    return {**failed_scores_row(trace, segments, error), **keep}


def scores_of(row: Row) -> SegmentScores:
    """The scores that a row of selections holds."""
    pieces = segments_of(row)
    columns = {f"{name}_S": torch.tensor(row[name], dtype=torch.float64) for name in _SCORES}
    segment_T = torch.tensor(row["segment"]) if len(row["segment"]) else None
    parts = {name: torch.tensor(part, dtype=torch.float64) for name, part in json.loads(row.get(PARTS, "{}")).items()}
    return SegmentScores(
        **columns, tokens_S=pieces.tokens_S, thought_S=pieces.thought_S, segment_T=segment_T, parts=parts
    )


def selection_of(row: Row) -> Selection:
    return Selection(torch.tensor(row["keep"], dtype=torch.bool), tuple(row["reason"]))


def made_by(selections: str | Path) -> Path:
    """The path of the note beside the selections that says which measure and thresholds made them."""
    return Path(selections).with_suffix(".json")


def how_made(selections: str | Path) -> Row:
    """The content of the note beside the selections; empty where there is none."""
    note = made_by(selections)
    return json.loads(note.read_text()) if note.exists() else {}


def traces_hash(traces: Iterable[Trace]) -> str:
    """A hash of the traces' ids, problems, responses and answers, in order."""
    digest = hashlib.sha256()
    for trace in traces:
        digest.update(json.dumps([trace.id, trace.problem, trace.response, trace.answer]).encode())
    return digest.hexdigest()[:16]

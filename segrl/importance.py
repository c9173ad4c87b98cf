"""Evidence and segments -> segment scores: the paper's measure (Eq. 3, 4) and its controls.

A measure is a pure function ``(evidence, segments, **options) -> SegmentScores``. The table says what each one reads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from segrl.resolving import resolve
from segrl.types import Attribution, Evidence, Segments, SegmentScores


class Measure(NamedTuple):
    score: Callable[..., SegmentScores]
    needs: tuple[str, ...] = ()


def score(
    evidence: Evidence | Attribution, segments: Segments, measure: str | Callable = "ig", **options
) -> SegmentScores:
    """Score each segment. The ``answer`` segment gets zero: it is what the others are scored for."""
    if isinstance(evidence, Attribution):
        return segment_scores(evidence.scores_T, segments, **options)
    asked = measure_of(measure)
    for need in asked.needs:
        if getattr(evidence, need) is None:
            raise ValueError(
                f"the measure {measure!r} reads {need!r}, which trace {evidence.trace.id!r} lacks; "
                f"gather it with segrl.gather(model, traces, needs=({need!r},))"
            )
    if segments.tokens != evidence.trace.tokens:
        raise ValueError(
            f"trace {evidence.trace.id!r} has {evidence.trace.tokens} tokens, its segments cover {segments.tokens}"
        )
    return asked.score(evidence, segments, **options)


def measure_of(name: str | Callable) -> Measure:
    """The measure of that name; a user's own function says what it reads in its attribute ``needs``."""
    if name in MEASURES:
        return MEASURES[name]
    function = resolve(name, {m: entry.score for m, entry in MEASURES.items()}, "measure")
    return Measure(function, tuple(getattr(function, "needs", ())))


def segment_scores(scores_T: Tensor, segments: Segments) -> SegmentScores:
    """Eq. 3 and 4. ``strength = sum|IG| / sqrt(N)``, ``consistency = |sum IG| / sum|IG|`` (0/0 is 0)."""
    scores_T = scores_T.double()
    absolute_S = _sum_by_segment(scores_T.abs(), segments)
    signed_S = _sum_by_segment(scores_T, segments)
    strength_S = absolute_S / segments.tokens_S.double().sqrt()
    consistency_S = torch.where(absolute_S > 0, signed_S.abs() / absolute_S.clamp_min(1e-300), 0.0)
    return from_strength(strength_S, segments, consistency_S.clamp_max(1.0))


def from_strength(strength_S: Tensor, segments: Segments, consistency_S: Tensor | None = None) -> SegmentScores:
    """Scores of a measure that knows only how much each segment matters."""
    strength_S = torch.where(segments.thought_S, strength_S.double(), 0.0)
    total = strength_S.sum()
    return SegmentScores(
        strength_S=strength_S,
        share_S=strength_S / total if total > 0 else torch.zeros_like(strength_S),
        consistency_S=torch.zeros_like(strength_S) if consistency_S is None else consistency_S,
        tokens_S=segments.tokens_S,
        thought_S=segments.thought_S,
    )


def _sum_by_segment(values_T: Tensor, segments: Segments) -> Tensor:
    return torch.zeros(len(segments), dtype=values_T.dtype).index_add_(0, segments.index_T, values_T)


# --- the measures ----------------------------------------------------------------------------------------------------


def ig(evidence: Evidence, segments: Segments) -> SegmentScores:
    assert evidence.ig is not None
    return segment_scores(evidence.ig.scores_T, segments)


def length(evidence: Evidence, segments: Segments) -> SegmentScores:
    """Control: the strength that segments would have if all tokens had the same \\|IG\\|."""
    return from_strength(segments.tokens_S.double().sqrt(), segments)


def position(evidence: Evidence, segments: Segments) -> SegmentScores:
    """Control: later is more."""
    return from_strength(torch.arange(1.0, len(segments) + 1), segments)


def random(evidence: Evidence, segments: Segments, seed: int = 0) -> SegmentScores:
    """Control: chance, the same for a trace whenever it is asked."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + sum(evidence.trace.id.encode()))
    return from_strength(torch.rand(len(segments), generator=generator), segments)


MEASURES: dict[str, Measure] = {
    "ig": Measure(ig, ("ig",)),
    "length": Measure(length),
    "position": Measure(position),
    "random": Measure(random),
}

"""Scores of tokens -> scores of segments ([IG] Eq. 3, 4 and appendix C.4)."""

from __future__ import annotations

from functools import cache
from math import ceil
from typing import Literal, get_args

import torch
from torch import Tensor

from segrl.types import Segments, SegmentScores

Aggregate = Literal["sqrt", "sum", "mean", "top20", "token"]
FLIPS = 256  # random signs that a segment's consistency is compared with


def segment_scores(scores_T: Tensor, segments: Segments, aggregate: str = "sqrt") -> SegmentScores:
    """The scores of Eq. 3 and 4: ``strength = sum|IG| / sqrt(N)``, ``consistency = |sum IG| / sum|IG|`` (0/0 is 0).

    Other ``aggregate``: ``sum`` and ``mean`` of \\|IG\\|; ``top20``: the mean of the largest fifth, at least one token;
    ``token``: each token alone. Strengths by ``sqrt`` depend on how finely a response is cut: where a segment is
    cut in two, each part is divided by a smaller root, so their sum rises. That of ``sum`` stays.
    """
    if aggregate == "token":
        return token_scores(scores_T.abs(), segments)
    scores_T = scores_T.double()
    absolute_S, signed_S = summed(scores_T.abs(), segments), summed(scores_T, segments)
    consistency_S = torch.where(absolute_S > 0, signed_S.abs() / absolute_S.clamp_min(1e-300), 0.0).clamp_max(1.0)
    return from_strength(
        aggregated(scores_T.abs(), segments, aggregate),
        segments,
        consistency_S,
        excess(scores_T, segments, consistency_S),
    )


def aggregated(values_T: Tensor, segments: Segments, aggregate: str) -> Tensor:
    """One value a segment, from the values of its tokens."""
    values_T, tokens_S = values_T.double(), segments.tokens_S.double()
    if aggregate == "sqrt":
        return summed(values_T, segments) / tokens_S.sqrt()
    if aggregate == "sum":
        return summed(values_T, segments)
    if aggregate == "mean":
        return summed(values_T, segments) / tokens_S
    if aggregate == "top20":
        pieces = [values_T[piece] for piece in segments.slices]
        return torch.stack([piece.topk(ceil(0.2 * len(piece))).values.mean() for piece in pieces])
    raise ValueError(f"aggregate={aggregate!r}, expected one of {', '.join(get_args(Aggregate))}")


def stream_scores(values_T: Tensor, segments: Segments, aggregate: str) -> SegmentScores:
    """Scores of a measure that gives each token one number without a direction."""
    if aggregate == "token":
        return token_scores(values_T, segments)
    return from_strength(aggregated(values_T, segments, aggregate), segments)


def token_scores(values_T: Tensor, segments: Segments) -> SegmentScores:
    """Scores with one entry a token."""
    return from_strength(values_T, segments.by_token, segment_T=segments.index_T)


def from_strength(
    strength_S: Tensor,
    segments: Segments,
    consistency_S: Tensor | None = None,
    excess_S: Tensor | None = None,
    segment_T: Tensor | None = None,
) -> SegmentScores:
    """Scores of a measure that knows only how much each segment matters.

    Strengths keep their sign, which ranks them; shares are those of the positive parts (Eq. 4 where none is negative).
    """
    strength_S = torch.where(segments.thought_S, strength_S.double(), 0.0)
    nothing_S = torch.zeros_like(strength_S)
    positive_S = strength_S.clamp_min(0)
    total = positive_S.sum()
    return SegmentScores(
        strength_S=strength_S,
        share_S=positive_S / total if total > 0 else nothing_S,
        consistency_S=nothing_S if consistency_S is None else consistency_S,
        tokens_S=segments.tokens_S,
        thought_S=segments.thought_S,
        excess_S=nothing_S if excess_S is None else excess_S,
        segment_T=segment_T,
    )


def permuted(scores: SegmentScores, segments: Segments, generator: torch.Generator) -> SegmentScores:
    """Control: the scores, permuted at random among the thoughts; those of a token measure, among their tokens."""
    order = torch.arange(len(scores))
    thoughts = order[scores.thought_S]
    order[thoughts] = thoughts[torch.randperm(len(thoughts), generator=generator)]
    return from_strength(
        scores.strength_S[order],
        segments if scores.segment_T is None else segments.by_token,
        scores.consistency_S[order],
        scores.excess_S[order],
        scores.segment_T,
    )


def summed(values_T: Tensor, segments: Segments) -> Tensor:
    return torch.zeros(len(segments), dtype=values_T.dtype).index_add_(0, segments.index_T, values_T)


def excess(scores_T: Tensor, segments: Segments, consistency_S: Tensor) -> Tensor:
    """The consistency beyond chance, as a share of the most that it could be.

    ``(c - E) / (1 - E)``, at least 0; E is the mean consistency of the segment's magnitudes under ``FLIPS`` sets of
    random signs. Short segments are consistent by chance: a single token always is, so its excess is 0 (0/0). On long
    segments E goes to 0.
    """
    expected = []
    for piece in segments.slices:
        magnitudes = scores_T[piece].abs().double()
        flipped = (_signs(1 << (len(magnitudes) - 1).bit_length())[:, : len(magnitudes)].double() @ magnitudes).abs()
        expected.append(flipped.mean() / magnitudes.sum().clamp_min(1e-300))
    expected_S = torch.stack(expected).clamp_max(1.0)
    left_S = 1 - expected_S
    return torch.where(left_S > 1e-9, (consistency_S - expected_S) / left_S.clamp_min(1e-9), 0.0).clamp(0.0, 1.0)


@cache
def _signs(tokens: int) -> Tensor:
    """Random signs, the same in every call. Callers pass powers of two, so that the cache stays small."""
    generator = torch.Generator().manual_seed(tokens)
    return torch.randint(0, 2, (FLIPS, tokens), generator=generator, dtype=torch.int8) * 2 - 1

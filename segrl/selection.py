"""Segment scores -> which segments to keep ([IG] Eq. 5-7); scores of tokens -> which tokens to keep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from segrl.types import Segments, SegmentScores, Selection

ROUNDING = 1e-12  # plain floats keep 22 of 30 equal segments where 21 reach 0.7
CONSISTENCIES = ("plain", "excess")
SHARES = ("tau", "beta", "match_tokens", "match_segments")


def select(
    scores: SegmentScores,
    tau: float = 0.7,  # the share of total strength that kept segments reach
    beta: float = 0.8,  # the highest consistency in sign of a kept segment
    force: Sequence[int] = (0, -1),  # thoughts that are kept whatever their scores: the first and the last
    beta_min_tokens: int = 1,  # shorter segments are not judged by consistency; 40 leaves out those where it is chance
    match_tokens: float | None = None,  # in place of tau: the share of thinking tokens to keep, alike for every measure
    match_segments: float | None = None,  # in place of tau: the share of thoughts to keep, short or long
    consistency: str = "plain",  # plain, or excess: the consistency beyond that of random signs
) -> Selection:
    """Keep the fewest strongest segments whose shares reach ``tau``, except those with a consistency above ``beta``.

    ``force`` names thoughts to keep whatever their scores, first and last like the paper; the ``answer`` segment is
    always kept. Segments under ``beta_min_tokens`` tokens are not judged by consistency, which is high by chance in
    short ones; ``consistency="excess"`` judges all by how far they lie above chance. Ties go to the earlier segment.

    ``match_tokens`` takes the place of ``tau``: it keeps as many of the strongest segments as bring the share of kept
    thinking tokens, forced ones included, nearest to it. Measures can then be compared at equal shares. Segments above
    ``beta`` come last, and are kept only where the others do not suffice. ``match_segments`` does the same with the
    share of thoughts.
    """
    shares = {"match_tokens": match_tokens, "match_segments": match_segments}
    check_shares({"tau": tau, "beta": beta, **shares})
    if match_tokens is not None and match_segments is not None:
        raise ValueError(f"match_tokens={match_tokens} and match_segments={match_segments} are two shares; give one")
    passes_S = _passing(scores, beta, beta_min_tokens, consistency)
    forced = _forced(scores, force)
    reason = ["dropped"] * len(scores)
    if match_tokens is not None:
        reached = _matching(scores, passes_S, forced, match_tokens, scores.tokens_S)
    elif match_segments is not None:
        reached = _matching(scores, passes_S, forced, match_segments, torch.ones_like(scores.tokens_S))
    else:
        reached = _strongest(scores, tau)
    by_tau = all(share is None for share in shares.values())
    for s in reached:
        reason[s] = "consistency" if by_tau and not passes_S[s] else "strength"
    for s in forced:
        if reason[s] != "strength":
            reason[s] = "forced"
    keep_S = torch.tensor([why in ("strength", "forced") for why in reason], dtype=torch.bool)
    return Selection(keep_S, tuple(reason))


def kept_tokens(selection: Selection, segments: Segments) -> Tensor:
    """The mask of Eq. 9: True for each token that is kept, with its segment or alone."""
    if len(selection) == len(segments):
        return selection.keep_S[segments.index_T]
    if len(selection) == segments.tokens:
        return selection.keep_S
    raise ValueError(
        f"a selection of {len(selection)} belongs neither to {len(segments)} segments nor to their "
        f"{segments.tokens} tokens"
    )


def _passing(scores: SegmentScores, beta: float, beta_min_tokens: int, consistency: str) -> Tensor:
    """Eq. 7: a mask of the segments that are not too consistent, or too short to judge."""
    if consistency not in CONSISTENCIES:
        raise ValueError(f"consistency={consistency!r}, expected one of {CONSISTENCIES}")
    consistency_S = scores.consistency_S if consistency == "plain" else scores.excess_S
    return (consistency_S.double() <= beta + ROUNDING) | (scores.tokens_S < beta_min_tokens)


def _strongest(scores: SegmentScores, tau: float) -> list[int]:
    """Eq. 5, 6: the fewest segments, strongest first, whose shares sum to ``tau``; none without any attribution."""
    order = _order(scores)
    reached = scores.share_S.double()[order].cumsum(0)
    if not len(reached) or float(reached[-1]) == 0:
        return []
    count = int((reached < tau - ROUNDING).sum()) + 1
    return [s for s in order[:count].tolist() if float(scores.share_S[s]) > 0]


def _matching(
    scores: SegmentScores, passes_S: Tensor, forced: Sequence[int], share: float, sizes_S: Tensor
) -> list[int]:
    """The strongest segments whose sizes, with the forced segments', come nearest to ``share`` of all thoughts'.

    Segments that pass Eq. 7 come before those that do not.
    """
    free_S = scores.thought_S.clone()
    free_S[forced] = False
    order = _order(scores)
    order = torch.cat([order[(free_S & passes_S)[order]], order[(free_S & ~passes_S)[order]]])
    sizes_S = torch.where(scores.thought_S, sizes_S, 0)
    reached = torch.cat([sizes_S[forced].sum()[None], sizes_S[order]]).cumsum(0)
    return order[: int((reached - share * sizes_S.sum()).abs().argmin())].tolist()


def _order(scores: SegmentScores) -> Tensor:
    """The order of Eq. 5: strongest first, ties by position. Strengths that differ by rounding alone are tied."""
    scale = scores.strength_S.abs().max() if len(scores) else 1.0
    steps_S = (scores.strength_S / scale / ROUNDING).round() if scale > 0 else scores.strength_S
    return torch.argsort(steps_S, descending=True, stable=True)


def _forced(scores: SegmentScores, force: Sequence[int]) -> list[int]:
    """The thoughts that ``force`` names, and the answer; of token scores, their tokens.

    ``force`` holds Python indices of thoughts; indices beyond the ends of a short trace are left out.
    """
    segment_S = torch.arange(len(scores)) if scores.segment_T is None else scores.segment_T
    thoughts = segment_S[scores.thought_S].unique().tolist()
    inside = torch.tensor([thoughts[i] for i in force if -len(thoughts) <= i < len(thoughts)], dtype=torch.long)
    return (torch.isin(segment_S, inside) | ~scores.thought_S).nonzero().flatten().tolist()


def check_shares(given: Mapping[str, Any], section: str = "") -> None:
    """Refuse a share outside 0 to 1 among the options of ``select``, by the name that it has in a config's section."""
    for name in SHARES:
        value = given.get(name)
        if value is not None and not 0 <= value <= 1:
            raise ValueError(f"{section}{name}={value}, expected a number from 0 to 1")

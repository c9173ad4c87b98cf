"""Segment scores -> which segments to keep ([IG] Eq. 5-7)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from segrl.types import SegmentScores, Selection

ROUNDING = 1e-12  # plain floats keep 22 of 30 equal segments where 21 reach 0.7


def select(
    scores: SegmentScores,
    tau: float = 0.7,
    beta: float = 0.8,
    force: Sequence[int] = (0, -1),
    beta_min_tokens: int = 1,
) -> Selection:
    """Keep the fewest strongest segments whose shares reach ``tau``, of those the ones with consistency <= ``beta``.

    ``force`` names thoughts to keep whatever their scores, first and last like the paper; the ``answer`` segment is
    always kept. Segments under ``beta_min_tokens`` tokens are not judged by consistency, which is high by chance in
    short ones. Ties go to the earlier segment.
    """
    _check_unit("tau", tau)
    _check_unit("beta", beta)
    reason = ["dropped"] * len(scores)
    for s in _strongest(scores, tau):
        judged = int(scores.tokens_S[s]) >= beta_min_tokens
        reason[s] = "consistency" if judged and float(scores.consistency_S[s]) > beta + ROUNDING else "strength"
    for s in _forced(scores, force):
        if reason[s] != "strength":
            reason[s] = "forced"
    keep_S = torch.tensor([one in ("strength", "forced") for one in reason], dtype=torch.bool)
    return Selection(keep_S, tuple(reason))


def _strongest(scores: SegmentScores, tau: float) -> list[int]:
    """Eq. 5, 6: the fewest segments, strongest first, whose shares sum to ``tau``; none without any attribution."""
    order = torch.argsort(scores.strength_S, descending=True, stable=True)
    reached = scores.share_S.double()[order].cumsum(0)
    if not len(reached) or float(reached[-1]) == 0:
        return []
    count = int((reached < tau - ROUNDING).sum()) + 1
    return [s for s in order[:count].tolist() if float(scores.share_S[s]) > 0]


def _forced(scores: SegmentScores, force: Sequence[int]) -> list[int]:
    """Indices of thoughts, counted like Python's; those beyond a short trace's ends are left out."""
    assert scores.thought_S is not None
    thoughts = scores.thought_S.nonzero().flatten().tolist()
    inside = [thoughts[index] for index in force if -len(thoughts) <= index < len(thoughts)]
    return inside + (~scores.thought_S).nonzero().flatten().tolist()


def _check_unit(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name}={value}, expected a number from 0 to 1")

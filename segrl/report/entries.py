"""The entry of one trace: its verdict, its attribution, and its segments as each measure scores them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from segrl.grading import Verdict
from segrl.importance.misleading import Suspect
from segrl.types import Attribution, Segments, SegmentScores, Selection, TokenisedTrace, Trace, given


class View(NamedTuple):
    """The segments, scores and selection of a trace under one measure; a token measure has each token as a segment."""

    segments: Segments
    scores: SegmentScores
    selection: Selection
    measure: str | None = None  # where it is not the view's name
    target: str | None = None  # the answer that the scores explain: gold, own or contrast


class RolloutView(NamedTuple):
    """What a step of GRPO made of one response. ``uniform`` says why all weights are 1, or is None."""

    step: int
    prompt: str
    reward: float
    advantage: float
    weights_T: Tensor
    advantages_T: Tensor
    uniform: str | None = None
    gap: float | None = None


class Entry(NamedTuple):
    """One trace and what is shown of it.

    ``segments`` cut the text for a reader where a view's segments are single tokens. A measure without scores of the
    trace, as where its attribution failed, is not among the ``views``. ``suspect`` says whether a thought of a wrong
    response is marked as the one that misled; None where that was not tested.
    """

    trace: Trace
    segments: Segments
    verdict: Verdict | None = None
    attribution: Attribution | None = None
    views: Mapping[str, View] = {}
    credit: RolloutView | None = None
    offsets_T: Tensor | None = None  # of a trace that came without its ids
    suspect: Suspect | None = None

    @property
    def misled(self) -> int | None:
        """The thought that is marked as the one that misled."""
        return self.suspect.thought if self.suspect and self.suspect.marked else None

    @property
    def ends_T(self) -> list[int]:
        """The character of the response at which each token ends."""
        offsets_T = self.trace.offsets_T if isinstance(self.trace, TokenisedTrace) else given(self.offsets_T)
        return offsets_T[:, 1].cummax(0).values.tolist()


def explained(attribution: Attribution, verdict: Verdict | None) -> str:
    """The answer that was explained: a right response has no other to contrast, so it is the gold one."""
    right = verdict is not None and verdict.correct
    return "gold" if attribution.target == "contrast" and right else attribution.target


def measures_of(entries: Sequence[Entry]) -> list[str]:
    """The measures of all traces, in the order they were given."""
    return list(dict.fromkeys(name for entry in entries for name in entry.views))


def is_contrast(name: str, view: View) -> bool:
    """Whether the scores speak for the response's own answer against the gold one."""
    return view.target == "contrast" or (view.measure or name) == "mistake"


def ranks_of(scores: SegmentScores) -> list[int | None]:
    """1 for the strongest thought, ties to the earlier one; None for the answer, which has no score."""
    places: list[int | None] = [None] * len(scores)
    order = torch.argsort(scores.strength_S, descending=True, stable=True).tolist()
    for place, s in enumerate((s for s in order if bool(scores.thought_S[s])), start=1):
        places[s] = place
    return places

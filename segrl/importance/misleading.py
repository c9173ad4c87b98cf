r"""Which thought misled a response to its wrong answer, and whether that is more than chance.

A contrast, the response's own answer against the gold one, is read in three ways: by the gradient to one gate
(``mistake``), by the gain of each prefix (``pmi``), and with each thought alone (``alone``). A thought's score is the
mean of its shares in the three readings. Chance is three readings that have nothing in common: the scores of each are
dealt out to the thoughts at random. The best thought is marked where its score is above the 95th percentile of the
best scores of such deals.

A thought that comes to the response's own answer is never marked. It speaks for that answer in every reading, whether
it went wrong itself or carried on a mistake from before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from segrl.attribution.target import own_answer
from segrl.importance import measures
from segrl.importance.aggregation import from_strength
from segrl.importance.concluding import concluding
from segrl.types import Evidence, Segments, SegmentScores, TokenisedTrace, given

# What `gather` is asked for, with target=contrast, and the measures that read it.
NEEDS = ("contrast", "prefix_logp_S", "alone_value_S")
READINGS = (measures.mistake, measures.pmi, measures.alone)
LEVEL, DEALS = 0.95, 2000


class Suspect(NamedTuple):
    """The thought with the best score, and what the best score of a deal reaches at the level."""

    thought: int
    score: float
    reached: float
    concludes: bool  # whether it comes to the response's own answer

    @property
    def beats_chance(self) -> bool:
        return self.score > self.reached

    @property
    def marked(self) -> bool:
        """Whether it may be called the thought that misled."""
        return self.beats_chance and not self.concludes


def misled(trace: TokenisedTrace, segments: Segments, readings_RS: Tensor) -> Suspect:
    """The suspect of a wrong response, of whose contrast these are the readings."""
    return suspect(readings_RS, list(concluding(trace, segments, given(own_answer(trace)))))


def readings(evidence: Evidence, segments: Segments) -> Tensor:
    """The scores of the thoughts in each reading: (readings, thoughts). ``evidence`` holds ``NEEDS``, gathered with
    ``target="contrast"``.
    """
    return torch.stack([read(evidence, segments).strength_S[segments.thought_S] for read in READINGS])


def in_common(readings_RS: Tensor, segments: Segments) -> SegmentScores:
    """Each thought by the mean of its shares in the readings."""
    scores_S = torch.zeros(len(segments), dtype=torch.float64)
    scores_S[segments.thought_S] = mean_share(readings_RS)
    return from_strength(scores_S, segments)


def suspect(readings_RS: Tensor, concludes_S: Sequence[bool], level: float = LEVEL, deals: int = DEALS) -> Suspect:
    """The thought with the best mean share; ``deals`` are drawn from a fixed seed."""
    scores_S = mean_share(readings_RS)
    best = int(scores_S.argmax())
    generator = torch.Generator().manual_seed(0)
    best_D = mean_share(dealt(readings_RS.expand(deals, -1, -1), generator)).amax(-1)
    reached = torch.quantile(best_D, level, interpolation="higher")
    # Rounded, since sums of the same shares in another order differ in their last digits.
    return Suspect(best, round(float(scores_S[best]), 9), round(float(reached), 9), bool(concludes_S[best]))


def dealt(readings_RS: Tensor, generator: torch.Generator) -> Tensor:
    """The readings with the scores of each dealt out to the thoughts at random; axes before theirs are deals."""
    return readings_RS.gather(-1, torch.rand(readings_RS.shape, generator=generator).argsort(-1))


def mean_share(readings_RS: Tensor) -> Tensor:
    """The mean over readings of each thought's share of what is above zero; a reading without such gives zeros."""
    positive_RS = readings_RS.double().clamp_min(0)
    total_R = positive_RS.sum(-1, keepdim=True)
    return torch.where(total_R > 0, positive_RS / total_R.clamp_min(1e-300), 0.0).mean(-2)

"""ACPO's two phases as parts of the advantage: entropy by segment, confidence, and nearness to the reference.

The gradient of a token's entropy is the expectation of the log-probability's gradient times (-log p - entropy), so a
bonus of entropy is one more advantage of the token that was sampled, and the loss stays verl's own. docs/acpo.md says
which parts are published and which are segrl's. Nothing here knows of verl, Ray or a model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import exp

import torch
from torch import Tensor

from segrl.types import Segments, SegmentScores
from segrl.weighting import standardised

RANGE = 100.0  # the steered weight stays within this factor of its start


@dataclass
class RegulationSettings:
    """What exploration and convergence add to the advantages: the section ``segrl.regulation`` of `segrl grpo`.

    The second phase begins where ``segrl.curriculum`` says.
    """

    entropy_weight: float = 0.0  # advantage a nat of entropy, for a thought of average score; 0: none
    # nats a token; while exploring, the weight is steered to hold this entropy; null: the weight stays
    entropy_target: float | None = None
    entropy_gain: float = 0.5  # the change of the weight's logarithm in a step that misses by the whole target
    # while converging: advantage lost a nat by which a token is likelier than under the reference
    reference_weight: float = 0.0
    confidence: bool = False  # while converging: a positive advantage is multiplied by the answer's probability

    def __post_init__(self) -> None:
        for name in ("entropy_weight", "entropy_gain", "reference_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"segrl.regulation.{name}={getattr(self, name)}, expected 0 or more")
        if self.entropy_target is not None and self.entropy_target <= 0:
            raise ValueError(
                f"segrl.regulation.entropy_target={self.entropy_target}, expected nats above 0, or null for a fixed "
                "weight"
            )

    @property
    def regulates(self) -> bool:
        return bool(self.entropy_weight or self.reference_weight or self.confidence)


@dataclass(frozen=True, eq=False)
class Likelihoods:
    """What verl has computed of a rollout's tokens."""

    logp_T: Tensor
    entropy_T: Tensor
    reference_T: Tensor | None = None  # log-probabilities by the reference


@dataclass(frozen=True, eq=False)
class Regulation:
    """What one step adds: its phase, its weight of entropy, and the likelihoods of its rollouts by key."""

    settings: RegulationSettings
    converging: bool
    entropy_weight: float
    likelihoods: Mapping[str, Likelihoods]

    def added(self, key: str, scores: SegmentScores, segments: Segments, trained_T: Tensor) -> Tensor:
        """What is added to the advantages of the rollout's tokens."""
        likelihoods = self.likelihoods[key]
        added_T = self.entropy_weight * entropy_bonus(scores, segments, likelihoods, self.converging, trained_T)
        if self.converging and likelihoods.reference_T is not None:
            added_T = added_T - self.settings.reference_weight * (likelihoods.logp_T - likelihoods.reference_T)
        return torch.where(trained_T, added_T, 0.0).float()

    def times(self, advantage: float, confidence: float | None) -> float:
        """The factor of a rollout's advantage."""
        weighs = self.settings.confidence and self.converging and advantage > 0
        return confidence if weighs and confidence is not None else 1.0


def entropy_bonus(
    scores: SegmentScores, segments: Segments, likelihoods: Likelihoods, converging: bool, trained_T: Tensor
) -> Tensor:
    """For each trained token of the thinking: its segment's direction times (-log p - entropy), less the mean of this
    product over the other such tokens. Elsewhere 0.

    The bonus sums to zero in each response, so it favours no response over another. The mean over the other tokens is a
    baseline: for a given length and given directions it does not change the expected gradient.
    """
    directions_S = directions(scores, converging)
    directions_T = directions_S if scores.segment_T is not None else directions_S[segments.index_T]
    weighted_T = trained_T & segments.thought_T
    surplus_T = -likelihoods.logp_T.double() - likelihoods.entropy_T.double()
    bonus_T, tokens = torch.where(weighted_T, directions_T * surplus_T, 0.0), int(weighted_T.sum())
    if tokens < 2:
        return torch.zeros_like(bonus_T)
    return torch.where(weighted_T, bonus_T - (bonus_T.sum() - bonus_T) / (tokens - 1), 0.0)


def directions(scores: SegmentScores, converging: bool) -> Tensor:
    """How much entropy each segment is to gain. While exploring it is up to 2 for what contributed least, and 1 for the
    average; while converging down to -2 for what contributed most, and -1 for the average."""
    z_S = standardised(scores.strength_S[scores.thought_S])
    directions_S = torch.zeros(len(scores), dtype=torch.float64)
    directions_S[scores.thought_S] = -2 * z_S.sigmoid() if converging else 2 * (-z_S).sigmoid()
    return directions_S


def steered(weight: float, entropy: float, settings: RegulationSettings) -> float:
    """The weight of entropy after a step of this entropy: larger below the target, smaller above it."""
    if settings.entropy_target is None:
        return weight
    moved = weight * exp(settings.entropy_gain * (settings.entropy_target - entropy) / settings.entropy_target)
    return min(max(moved, settings.entropy_weight / RANGE), settings.entropy_weight * RANGE)

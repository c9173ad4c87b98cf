"""Weights -> the advantages of a batch's tokens. Nothing here knows of verl, Ray or a model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from segrl.credit.regulating import Regulation
from segrl.credit.rollout import Rollout, Weighed
from segrl.credit.settings import CreditSettings


def spread(
    rollouts: Sequence[Rollout],
    weighed: Sequence[Weighed],
    settings: CreditSettings,
    regulation: Regulation | None = None,
) -> dict[str, Tensor]:
    """By key, the advantages of each rollout that has others than verl gave it."""
    advantages = {one.rollout.key: _weighed_advantages(one, settings.form, regulation) for one in weighed}
    return _centred(rollouts, advantages) if settings.centred and advantages else advantages


def _weighed_advantages(weighed: Weighed, form: str, regulation: Regulation | None) -> Tensor:
    one, weights_T = weighed.rollout, weighed.weights_T
    given_T = one.advantages_T * (regulation.times(one.advantage, weighed.confidence) if regulation else 1.0)
    spread_T = given_T * weights_T if form == "times" else given_T + (weights_T - 1) * one.weighted_T
    if regulation is None:
        return spread_T
    return spread_T + regulation.added(one.key, weighed.scores, one.segments, one.trace.trainable_T)


def _centred(rollouts: Sequence[Rollout], advantages: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The advantages of each group that has a weighed rollout, less their mean over the group's trained tokens."""
    groups = defaultdict(list)
    for rollout in rollouts:
        groups[rollout.group].append(rollout)
    centred: dict[str, Tensor] = {}
    for group in groups.values():
        if any(one.key in advantages for one in group):
            own = {one.key: advantages.get(one.key, one.advantages_T) for one in group}
            mean = torch.cat([own[one.key][one.trace.trainable_T] for one in group]).mean()
            centred |= {one.key: torch.where(one.trace.trainable_T, own[one.key] - mean, own[one.key]) for one in group}
    return centred

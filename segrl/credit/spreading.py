"""Weights -> the advantages of a batch's tokens. Nothing here knows of verl, Ray or a model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from segrl.credit.rollout import Rollout, Weighed
from segrl.credit.settings import CreditSettings


def spread(rollouts: Sequence[Rollout], weighed: Sequence[Weighed], settings: CreditSettings) -> dict[str, Tensor]:
    """By key, the advantages of each rollout that has others than verl gave it."""
    advantages = {one.rollout.key: _weighed_advantages(one, settings.form) for one in weighed}
    return _centred(rollouts, advantages) if settings.centred and advantages else advantages


def _weighed_advantages(weighed: Weighed, form: str) -> Tensor:
    given_T, weights_T = weighed.rollout.advantages_T, weighed.weights_T
    return given_T * weights_T if form == "times" else given_T + (weights_T - 1) * weighed.rollout.weighted_T


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

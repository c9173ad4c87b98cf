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
    """By key, the new advantages of each rollout whose advantages change."""
    advantages = {
        response.rollout.key: _weighed_advantages(response, settings.form, regulation) for response in weighed
    }
    return _centred(rollouts, advantages) if settings.centred and advantages else advantages


def _weighed_advantages(weighed: Weighed, form: str, regulation: Regulation | None) -> Tensor:
    rollout, weights_T = weighed.rollout, weighed.weights_T
    given_T = rollout.advantages_T * (regulation.times(rollout.advantage, weighed.confidence) if regulation else 1.0)
    spread_T = given_T * weights_T if form == "times" else given_T + (weights_T - 1) * rollout.weighted_T
    if regulation is None:
        return spread_T
    return spread_T + regulation.added(rollout.key, weighed.scores, rollout.segments, rollout.trace.trainable_T)


def _centred(rollouts: Sequence[Rollout], advantages: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The advantages of each group that has a weighed rollout, less their mean over the group's trained tokens."""
    groups = defaultdict(list)
    for rollout in rollouts:
        groups[rollout.group].append(rollout)
    centred: dict[str, Tensor] = {}
    for group in groups.values():
        if any(rollout.key in advantages for rollout in group):
            rows = [advantages.get(rollout.key, rollout.advantages_T) for rollout in group]
            trained = [rollout.trace.trainable_T for rollout in group]
            mean = torch.cat([row_T[trained_T] for row_T, trained_T in zip(rows, trained, strict=True)]).mean()
            for rollout, row_T, trained_T in zip(group, rows, trained, strict=True):
                centred[rollout.key] = torch.where(trained_T, row_T - mean, row_T)
    return centred

"""Gradients of a batch of rollouts, each as one vector, and the step of a fixed KL along one of them.

scripts/gradient_quality.py compares them. Left out: the optimiser, clipping, and models whose logits do not fit.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean

import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.nn.utils.rnn import pad_sequence

from segrl.credit.rollout import Rollout

KL = 1e-3  # nat a token, of the step whose reward is measured
KL_ROLLOUTS = 64  # on which it is measured
TOGETHER = 16  # rollouts in a forward
SKETCH = 16_384  # numbers that stand for a gradient where arms' variances are taken


def policy_gradient(model, rollouts: Sequence[Rollout], weights: Mapping[str, Tensor]) -> Tensor:
    """The gradient of GRPO's loss without its clipping, upwards: a mean over all tokens of the batch."""
    tokens = sum(rollout.trace.tokens for rollout in rollouts)
    coefficients = {
        rollout.key: rollout.advantages_T * weights.get(rollout.key, 1.0) for rollout in rollouts if rollout.advantage
    }
    return _gradient(model, rollouts, coefficients) / tokens


def reward_gradient(model, rollouts: Sequence[Rollout]) -> Tensor:
    """An estimate without bias of the expected reward's gradient: each reward less the mean of the group's others."""
    coefficients = {}
    for rollout, rewards in zip(rollouts, _rewards_of_groups(rollouts), strict=True):
        above = rollout.reward - (sum(rewards) - rollout.reward) / (len(rewards) - 1)
        if above:
            coefficients[rollout.key] = torch.full((rollout.trace.tokens,), above)
    return _gradient(model, rollouts, coefficients) / len(rollouts)


def _gradient(model, rollouts: Sequence[Rollout], coefficients: Mapping[str, Tensor]) -> Tensor:
    """Of the sum of coefficient x log-probability over the tokens of those that have coefficients, as one vector."""
    model.zero_grad()
    for part in batches([rollout for rollout in rollouts if rollout.key in coefficients], TOGETHER):
        pairs = zip(part, _logp(model, part), strict=True)
        torch.stack([(logp_T * coefficients[rollout.key]).sum() for rollout, logp_T in pairs]).sum().backward()
    return torch.cat([p.grad.flatten() if p.grad is not None else torch.zeros(p.numel()) for p in model.parameters()])


@torch.no_grad()
def all_logp(model, rollouts: Sequence[Rollout]) -> list[Tensor]:
    """The log-probability of each response's tokens."""
    return [logp_T for part in batches(rollouts, TOGETHER) for logp_T in _logp(model, part)]


def _logp(model, rollouts: Sequence[Rollout]) -> list[Tensor]:
    """The same, in one forward. Rows are padded on the right, where a causal model never looks."""
    rows = [torch.cat([rollout.trace.prompt_ids, rollout.trace.response_ids]) for rollout in rollouts]
    ids_BL = pad_sequence(rows, batch_first=True)
    logp_BLV = torch.log_softmax(model(input_ids=ids_BL, use_cache=False).logits[:, :-1].float(), -1)
    logp_BL = logp_BLV.gather(-1, ids_BL[:, 1:, None]).squeeze(-1)
    triples = zip(rollouts, rows, logp_BL, strict=True)
    return [logp_L[len(rollout.trace.prompt_ids) - 1 : len(ids) - 1] for rollout, ids, logp_L in triples]


@torch.no_grad()
def step_of_equal_kl(
    model, direction: Tensor, held: Sequence[Rollout], before: Sequence[Tensor]
) -> tuple[Tensor, float]:
    """The step along ``direction`` whose KL a token is ``KL`` on the first of the held rollouts, and by how much it
    moves the expected reward of all of them."""
    start = parameters_to_vector(model.parameters())
    unit, length, few = direction / direction.norm(), 0.05, held[:KL_ROLLOUTS]
    for _ in range(8):
        vector_to_parameters(start + length * unit, model.parameters())
        kl, _ = divergence(model, few, before[:KL_ROLLOUTS])
        if abs(kl / KL - 1) < 0.05:
            break
        length *= min(4.0, max(0.25, (KL / max(kl, 1e-12)) ** 0.5))  # it grows with the square of a small step
    vector_to_parameters(start + length * unit, model.parameters())
    _, ratios_B = divergence(model, held, before)
    vector_to_parameters(start, model.parameters())
    rewards_B = torch.tensor([rollout.reward for rollout in held])
    above_B = rewards_B - group_means(held)  # less noise, the same expectation
    return length * unit, float((ratios_B * above_B).sum() / ratios_B.sum())


def divergence(model, held: Sequence[Rollout], before: Sequence[Tensor]) -> tuple[float, Tensor]:
    """KL(old | new) a token, from samples of the old (k3), and each rollout's probability ratio."""
    changes = [now - old for now, old in zip(all_logp(model, held), before, strict=True)]
    all_T = torch.cat(changes)
    kl = float((all_T.exp() - 1 - all_T).mean())
    return kl, torch.stack([change.sum().clamp(-5, 5).exp() for change in changes])


def group_means(rollouts: Sequence[Rollout]) -> Tensor:
    """The mean reward of each rollout's group."""
    return torch.tensor([fmean(rewards) for rewards in _rewards_of_groups(rollouts)])


def _rewards_of_groups(rollouts: Sequence[Rollout]) -> list[list[float]]:
    """For each rollout, the rewards of its group."""
    rewards = defaultdict(list)
    for rollout in rollouts:
        rewards[rollout.group].append(rollout.reward)
    return [rewards[rollout.group] for rollout in rollouts]


def sketch(vector: Tensor) -> Tensor:
    """``SKETCH`` numbers with, in expectation, the vector's inner products: signed sums of its entries at random."""
    drawn = torch.Generator().manual_seed(0)
    places = torch.randint(SKETCH, vector.shape, generator=drawn)
    signs = torch.randint(2, vector.shape, generator=drawn) * 2.0 - 1
    return torch.zeros(SKETCH).index_add_(0, places, vector * signs)


def batches(rollouts: Sequence, size: int) -> Iterator[Sequence]:
    for start in range(0, len(rollouts), size):
        yield rollouts[start : start + size]

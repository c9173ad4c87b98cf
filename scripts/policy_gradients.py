"""Gradients of a batch of rollouts, each as one vector; the step of a fixed KL along such a gradient; and statistics of
the products of steps and gradients, with their errors.

scripts/gradient_quality.py compares them. Left out: the optimiser, clipping, and models whose logits do not fit.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import stdev

import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.nn.utils.rnn import pad_sequence

from segrl.credit.rollout import Rollout
from segrl.evaluation.results import markdown

KL = 1e-3  # nat a token, of the step whose reward is measured
KL_ROLLOUTS = 64  # rollouts on which the KL is measured
TOGETHER = 16  # rollouts in a forward
SKETCH = 16_384  # numbers that stand for a gradient where arms' variances are taken


def policy_gradient(model, rollouts: Sequence[Rollout], weights: Mapping[str, Tensor]) -> Tensor:
    """The direction of ascent of GRPO's objective without its clipping: a mean over all tokens of the batch."""
    tokens = sum(rollout.trace.tokens for rollout in rollouts)
    coefficients = {
        rollout.key: rollout.advantages_T * weights.get(rollout.key, 1.0) for rollout in rollouts if rollout.advantage
    }
    return _gradient(model, rollouts, coefficients) / tokens


def reward_gradient(model, rollouts: Sequence[Rollout]) -> Tensor:
    """An unbiased estimate of the expected reward's gradient, from each reward less the mean of the group's others."""
    coefficients = {
        rollout.key: above.expand(rollout.trace.tokens)
        for rollout, above in zip(rollouts, above_the_others(rollouts), strict=True)
        if above
    }
    return _gradient(model, rollouts, coefficients) / len(rollouts)


def _gradient(model, rollouts: Sequence[Rollout], coefficients: Mapping[str, Tensor]) -> Tensor:
    """The gradient, as one vector, of coefficient x log-probability, summed over the tokens of ``coefficients``."""
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
    """What ``all_logp`` returns, in one forward. Rows are padded on the right, where a causal model never looks."""
    rows = [torch.cat([rollout.trace.prompt_ids, rollout.trace.response_ids]) for rollout in rollouts]
    ids_BL = pad_sequence(rows, batch_first=True)
    logp_BLV = torch.log_softmax(model(input_ids=ids_BL, use_cache=False).logits[:, :-1].float(), -1)
    logp_BL = logp_BLV.gather(-1, ids_BL[:, 1:, None]).squeeze(-1)
    triples = zip(rollouts, rows, logp_BL, strict=True)
    return [logp_L[len(rollout.trace.prompt_ids) - 1 : len(ids) - 1] for rollout, ids, logp_L in triples]


@torch.no_grad()
def step_of_equal_kl(
    model, direction: Tensor, held: Sequence[Rollout], before: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """The step along ``direction`` whose KL a token is ``KL`` on the first held rollouts, and the ratio by which it
    changes the probability of each held rollout."""
    start = parameters_to_vector(model.parameters())
    unit, length, few = direction / direction.norm(), 0.05, held[:KL_ROLLOUTS]
    for _ in range(8):
        vector_to_parameters(start + length * unit, model.parameters())
        kl, _ = divergence(model, few, before[:KL_ROLLOUTS])
        if abs(kl / KL - 1) < 0.05:
            break
        length *= min(4.0, max(0.25, (KL / max(kl, 1e-12)) ** 0.5))  # the KL grows with the square of a small step
    vector_to_parameters(start + length * unit, model.parameters())
    _, ratios_B = divergence(model, held, before)
    vector_to_parameters(start, model.parameters())
    return length * unit, ratios_B


def divergence(model, held: Sequence[Rollout], before: Sequence[Tensor]) -> tuple[float, Tensor]:
    """KL(old | new) a token, from samples of the old (k3), and each rollout's probability ratio."""
    changes = [now - old for now, old in zip(all_logp(model, held), before, strict=True)]
    all_T = torch.cat(changes)
    kl = float((all_T.exp() - 1 - all_T).mean())
    return kl, torch.stack([change.sum().clamp(-5, 5).exp() for change in changes])


def above_the_others(rollouts: Sequence[Rollout]) -> Tensor:
    """Each reward less the mean of the group's others. As weights of a gradient these have less noise than the rewards
    and the same expectation; a mean that held the reward itself would shrink the expectation by one part in the group's
    size."""
    rewards = defaultdict(list)
    for rollout in rollouts:
        rewards[rollout.group].append(rollout.reward)
    groups = [rewards[rollout.group] for rollout in rollouts]
    return torch.tensor(
        [
            rollout.reward - (sum(group) - rollout.reward) / (len(group) - 1)
            for rollout, group in zip(rollouts, groups, strict=True)
        ]
    )


def sketch(vector: Tensor) -> Tensor:
    """``SKETCH`` numbers that keep the vector's inner products in expectation: random signed sums of its entries."""
    drawn = torch.Generator().manual_seed(0)
    places = torch.randint(SKETCH, vector.shape, generator=drawn)
    signs = torch.randint(2, vector.shape, generator=drawn) * 2.0 - 1
    return torch.zeros(SKETCH).index_add_(0, places, vector * signs)


def batches(rollouts: Sequence, size: int) -> Iterator[Sequence]:
    for start in range(0, len(rollouts), size):
        yield rollouts[start : start + size]


# --- what the products say --------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Measured:
    """What was measured of an arm on a half: a row for the step of each batch, a column for each batch it meets."""

    products_BC: Tensor  # of the step and the batch's gradient of the reward
    lengths_B: Tensor  # of the steps
    gains_BC: Tensor  # sums of ratio x reward above the others', over the batch's rollouts; zero where not held
    ratios_BC: Tensor  # sums of the ratios, likewise
    rewards_CC: Tensor  # products of the gradients of the reward with each other, the same for all arms
    sketches_BK: Tensor

    @property
    def batches(self) -> list[int]:
        return list(range(len(self.lengths_B)))


def gain(measured: Measured, kept: list[int]) -> float:
    """The mean product of a step and the other batches' mean gradient of the reward, among those that are kept."""
    return float((among(measured.products_BC, kept) * others(kept)).sum(1).mean())


def sampled_gain(measured: Measured, kept: list[int]) -> float:
    """The gain by importance sampling, over the steps with held rollouts among the kept batches."""
    gains_B, ratios_B = (among(sums_BC, kept).sum(1) for sums_BC in (measured.gains_BC, measured.ratios_BC))
    return float((gains_B / ratios_B)[ratios_B > 0].mean())


def cosine(measured: Measured, kept: list[int]) -> float:
    """The mean cosine of a batch's step and the others' mean gradient of the reward."""
    others_BC = others(kept)
    norms_B = (others_BC @ among(measured.rewards_CC, kept) * others_BC).sum(1).sqrt()
    products_B = (among(measured.products_BC, kept) * others_BC).sum(1)
    return float((products_B / norms_B / measured.lengths_B[kept]).mean())


def among(numbers_BC: Tensor, kept: list[int]) -> Tensor:
    """The rows and columns that are kept."""
    return numbers_BC[kept][:, kept]


def others(kept: list[int]) -> Tensor:
    """The matrix that averages, for each batch, over the other batches."""
    return (1 - torch.eye(len(kept), dtype=torch.float64)) / (len(kept) - 1)


def value_and_error(
    statistic: Callable[[Measured, list[int]], float], measured: Measured, reference: Measured | None = None
) -> tuple[float, float]:
    """The statistic of all batches, less that of the reference, and its error by the jackknife over batches."""

    def of(kept: list[int]) -> float:
        return statistic(measured, kept) - (statistic(reference, kept) if reference else 0.0)

    everything = measured.batches
    without = [of([b for b in everything if b != left_out]) for left_out in everything]
    return of(everything), (len(without) - 1) / len(without) ** 0.5 * stdev(without)


def variance(all_BK: Tensor) -> float | None:
    """The variance between batches, as a share of the mean's squared norm without the mean's own noise; None where no
    mean is left."""
    mean_K = all_BK.mean(0)
    spread = (all_BK - mean_K).square().sum(1).sum() / (len(all_BK) - 1)
    mean = mean_K.square().sum() - spread / len(all_BK)
    return float(spread / mean) if mean > 0 else None


def table(of_arms: Mapping[str, Measured], references: Sequence[str]) -> str:
    """Each arm's numbers with their errors, and differences to the references on the same batches."""
    lines = {}
    for arm, measured in of_arms.items():
        line = {"reward": printed(*value_and_error(gain, measured))}
        for name in references:
            difference = value_and_error(gain, measured, of_arms[name])
            line[f"minus {name}"] = "" if arm == name else printed(*difference)
        line["reward, sampled"] = printed(*value_and_error(sampled_gain, measured))
        line["cosine"] = printed(*value_and_error(cosine, measured))
        spread = variance(measured.sketches_BK)
        line["variance"] = "no mean seen" if spread is None else f"{spread:.1f}"
        lines[arm] = line
    return markdown("arm", list(next(iter(lines.values()))), lines)


def printed(value: float, error: float) -> str:
    return f"{value:.5f} ± {error:.5f}"

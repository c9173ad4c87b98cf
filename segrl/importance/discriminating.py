"""DelTA (arXiv 2605.21467): which tokens tell responses of positive advantage from those of negative advantage.

A token's vector is (1 - p) h, where p is its probability and h what the output layer reads at the position before it.
It is the gradient of the token's log-probability to the token's own row of that layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from segrl.attribution.evaluator import computing_device, left_padded, padded_inputs, unwrapped
from segrl.attribution.path import evaluating
from segrl.types import TokenisedTrace

ACROSS_RESPONSES = ("coefficient_T",)  # the needs that compare responses by their advantages
LEAST_SPREAD = 1e-9  # of the centroids' squares: margins that differ by less differ by rounding


def coefficients(
    vectors: Sequence[Tensor],
    advantages: Sequence[Tensor],
    summed: Callable[[Tensor], Tensor] = lambda values: values,
) -> list[Tensor]:
    """For each response, a coefficient from 0 to 1 a token: how clearly its vector belongs to the token's own side.

    A side is all tokens of positive, or of negative, advantage A. Its centroid mu is the mean of their vectors v with
    weights \\|A\\|. A token's margin is m = \\|\\|v - mu_other\\|\\|^2 - \\|\\|v - mu_own\\|\\|^2, gamma the standard
    deviation of a side's margins, and q = sigmoid(m / gamma). The centroids are then refined once, with the weights
    q \\|A\\|. The coefficient is sigmoid(m / gamma), by the margins to the refined centroids and the first gamma.

    ``vectors`` are (T, D), ``advantages`` (T,). A token of advantage zero has no side and gets 0.5; so do all tokens
    where one side is empty. ``summed`` adds a tensor over the processes that share the batch.
    """
    advantages = [advantages_T.double() for advantages_T in advantages]
    count_2 = summed(_sides(torch.cat(advantages)).sum(-1))
    if not bool(count_2.all()):
        return [torch.full_like(advantages_T, 0.5) for advantages_T in advantages]
    centroids_2D = _centroids(vectors, advantages, summed)
    margins = _margins(vectors, advantages, centroids_2D)
    least = LEAST_SPREAD * float(centroids_2D.square().sum()) + 1e-300
    spread_2 = _spreads(margins, advantages, count_2, summed).clamp_min(least)
    shares = _assigned(margins, advantages, spread_2)
    weights = [advantages_T * share_T for advantages_T, share_T in zip(advantages, shares, strict=True)]
    refined_2D = _centroids(vectors, weights, summed)
    return _assigned(_margins(vectors, advantages, refined_2D), advantages, spread_2)


def _sides(advantages_N: Tensor) -> Tensor:
    """(2, N): 1 for the tokens of positive and of negative advantage."""
    return torch.stack([advantages_N > 0, advantages_N < 0]).double()


def _centroids(vectors: Sequence[Tensor], weights: Sequence[Tensor], summed: Callable[[Tensor], Tensor]) -> Tensor:
    """The mean of the vectors of positive and of negative weight, weighted by its size: (2, D)."""
    total_2D, weight_2 = torch.zeros(2, vectors[0].shape[1], dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    for vectors_TD, weights_T in zip(vectors, weights, strict=True):
        weights_2T = torch.stack([weights_T, -weights_T]).clamp_min(0)
        total_2D += weights_2T @ vectors_TD.double()
        weight_2 += weights_2T.sum(-1)
    return summed(total_2D) / summed(weight_2)[:, None]


def _margins(vectors: Sequence[Tensor], advantages: Sequence[Tensor], centroids_2D: Tensor) -> list[Tensor]:
    """Each token's squared distance to the other side's centroid, less that to its own; 0 for a token of no side."""
    apart_D, middle_D = centroids_2D[0] - centroids_2D[1], centroids_2D.mean(0)
    return [
        advantages_T.sign() * 2 * (vectors_TD.double() @ apart_D - middle_D @ apart_D)
        for vectors_TD, advantages_T in zip(vectors, advantages, strict=True)
    ]


def _spreads(
    margins: list[Tensor], advantages: list[Tensor], count_2: Tensor, summed: Callable[[Tensor], Tensor]
) -> Tensor:
    """The standard deviation of the margins of each side (2,), each token counting as one."""
    margins_N, sides_2N = torch.cat(margins), _sides(torch.cat(advantages))
    mean_2 = summed(sides_2N @ margins_N) / count_2
    squares_2N = (margins_N - mean_2[:, None]).square() * sides_2N
    return (summed(squares_2N.sum(-1)) / count_2).sqrt()


def _assigned(margins: Sequence[Tensor], advantages: Sequence[Tensor], spread_2: Tensor) -> list[Tensor]:
    """sigmoid(m / gamma) of each token, by the gamma of its side."""
    return [
        torch.sigmoid(margins_T / spread_2[(advantages_T < 0).long()])
        for margins_T, advantages_T in zip(margins, advantages, strict=True)
    ]


# --- the vectors -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def vectors_of(model, traces: Sequence[TokenisedTrace], logps: Sequence[Tensor]) -> list[Tensor]:
    """The vectors of each response's tokens (T, D), from one forward: on the CPU, in the model's dtype.

    ``logps`` hold the log-probability of each token. The last position alone goes on to the output layer.
    """
    ids = [torch.cat([trace.prompt_ids, trace.response_ids]) for trace in traces]
    padded = left_padded(ids, 0, computing_device(model))
    with evaluating(model), hidden_states(model) as hidden:
        model(**padded_inputs(model, *padded, keep=1))
    vectors = []
    for trace, logp_T, hidden_LD in zip(traces, logps, hidden[0], strict=True):
        predicting_TD = hidden_LD[-1 - trace.tokens : -1].cpu()
        vectors.append((-torch.expm1(logp_T.float().cpu())[:, None] * predicting_TD).to(predicting_TD.dtype))
    return vectors


@contextmanager
def hidden_states(model) -> Iterator[list[Tensor]]:
    """A list to which each forward adds what the output layer reads at every position: (B, L, D)."""
    states: list[Tensor] = []
    decoder = unwrapped(model).base_model
    handle = decoder.register_forward_hook(lambda module, args, output: states.append(output[0]))
    try:
        yield states
    finally:
        handle.remove()

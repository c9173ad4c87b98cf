"""Calibration: a few nodes, fitted to a model, that stand in for many evenly spaced nodes.

On a handful of traces the masses of every token are computed at each node of a fine midpoint grid; their mean is the
reference. A few of these nodes are chosen, with weights, so that their weighted masses come closest to the reference:
nodes where the answer's value changes along the path. A single node is read for its ranks, so it is chosen by the
direction of its masses and not by their size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from segrl.attribution.evaluator import Batching, Row, evaluator
from segrl.attribution.quadrature import midpoint
from segrl.types import TokenisedTrace

COUNTS = (1, 2, 3, 4, 6, 8, 12)
EXCHANGES = 10  # rounds at most; two or three mostly suffice
RIDGE = 1e-9  # of the mean square mass: neighbouring nodes can be nearly equal


def calibrate(
    model, traces: Sequence[TokenisedTrace], tokenizer=None, *, grid: int = 48, counts=COUNTS, **options
) -> dict[str, Any]:
    """The rules fitted to the model, as `segrl attribute calibrate` writes them:
    ``{"grid", "traces", "change", "rules": {count: {"alphas", "weights"}}}``."""
    return calibration_of(masses_on_grid(model, traces, tokenizer, midpoint(grid)[0].tolist(), **options), counts)


def calibration_of(masses: Sequence[Tensor], counts=COUNTS) -> dict[str, Any]:
    """What :func:`calibrate` returns, from masses on a midpoint grid, ``(nodes, tokens)`` a trace."""
    grid = len(masses[0])
    normal = [masses_JL / masses_JL.mean(0).abs().sum().clamp_min(1e-12) for masses_JL in masses]
    masses_JX = torch.cat(normal, dim=1)  # X: every token of every trace, each trace of total mass one
    change_J = torch.stack([masses_JL.sum(1) for masses_JL in normal]).mean(0)
    alphas_J = midpoint(grid)[0]
    rules = {}
    for count in (count for count in counts if count <= grid):
        chosen, weights = nearest_node(masses) if count == 1 else fit_nodes(masses_JX, count)
        rules[str(count)] = {"alphas": alphas_J[chosen].tolist(), "weights": weights.tolist()}
    return {"grid": grid, "traces": len(masses), "change": change_J.tolist(), "rules": rules}


def masses_on_grid(
    model,
    traces: Sequence[TokenisedTrace],
    tokenizer=None,
    alphas: Sequence[float] = (),
    batch_tokens: int | None = None,
    parts: Sequence[Sequence[int]] | None = None,
    checkpointing: bool | None = None,
    **about,
) -> list[Tensor]:
    """The masses of every token at every node, ``(nodes, tokens)`` a trace: what a quadrature rule would sum.

    ``parts``: indices of the traces that share each forward; a part takes one forward a node, a number that a process
    group knows beforehand. Without parts a forward holds ``batch_tokens``. ``about`` says what is explained, as
    :func:`attribute` takes it: target, template, context, interpolate, ...
    """
    masses = [torch.zeros(0)] * len(traces)
    for part in [range(len(traces))] if parts is None else parts:
        evaluate = evaluator(model, [traces[i] for i in part], tokenizer, **about)
        for i, explained in zip(part, evaluate.explained, strict=True):
            masses[i] = torch.zeros(len(alphas), len(explained), dtype=torch.float64)
        batching = Batching(batch_tokens, None if parts is None else len(part), checkpointing)
        for rows in _rows_of(len(part), alphas, one_node_a_forward=parts is not None):
            for row, _, masses_L in batching.run(evaluate, rows):
                masses[part[row.index]][alphas.index(row.alpha)] = masses_L
    return masses


def _rows_of(traces: int, alphas: Sequence[float], one_node_a_forward: bool) -> list[list[Row]]:
    if one_node_a_forward:
        return [[Row(index, alpha, 1.0) for index in range(traces)] for alpha in alphas]
    return [[Row(index, alpha, 1.0) for index in range(traces) for alpha in alphas]]


def nearest_node(masses: Sequence[Tensor]) -> tuple[list[int], Tensor]:
    """The node whose masses have the largest cosine with those of the whole path, on average over traces."""
    whole = [masses_JL.mean(0, keepdim=True) for masses_JL in masses]
    cosines = [torch.cosine_similarity(masses_JL, mean, dim=1) for masses_JL, mean in zip(masses, whole, strict=True)]
    return [int(torch.stack(cosines).mean(0).argmax())], torch.ones(1, dtype=torch.float64)


def fit_nodes(masses_JX: Tensor, count: int) -> tuple[list[int], Tensor]:
    """``count`` rows, and the weights with which their sum is closest to the mean of all rows, by least squares. The
    weights need not sum to one: between steep nodes the path is flat, and nodes there add nothing.

    The search starts from each row in turn. It adds the row that improves the fit most until there are ``count``, then
    exchanges each row for a better one while there is one.
    """
    gram = masses_JX @ masses_JX.T
    fits = [_from_start(gram, start, count) for start in range(len(gram))]
    chosen = min(fits, key=lambda rows: float(_solve(gram, torch.tensor([rows]))[1]))
    return chosen, _solve(gram, torch.tensor([chosen]))[0][0]


def _from_start(gram: Tensor, start: int, count: int) -> list[int]:
    chosen = [start]
    while len(chosen) < count:
        chosen = _with_best(gram, chosen)
    for _ in range(EXCHANGES):
        before = sorted(chosen)
        for _ in range(count):
            chosen = _with_best(gram, chosen[1:])
        if sorted(chosen) == before:
            break
    return sorted(chosen)


def _with_best(gram: Tensor, chosen: list[int]) -> list[int]:
    """``chosen``, and the row that improves the fit most."""
    candidates = torch.tensor([[*chosen, j] for j in range(len(gram)) if j not in chosen])
    return candidates[int(_solve(gram, candidates)[1].argmin())].tolist()


def _solve(gram: Tensor, rows_KN: Tensor) -> tuple[Tensor, Tensor]:
    """For K choices of N rows: the best weights, and the squared misfit up to a constant."""
    inner = gram[rows_KN[:, :, None], rows_KN[:, None, :]]
    wanted = gram.mean(1)[rows_KN]
    ridge = RIDGE * gram.diagonal().mean() * torch.eye(rows_KN.shape[1], dtype=gram.dtype)
    weights = torch.linalg.solve(inner + ridge, wanted[:, :, None])[:, :, 0]
    misfit = torch.einsum("kn,knm,km->k", weights, inner, weights) - 2 * (weights * wanted).sum(1)
    return weights, misfit

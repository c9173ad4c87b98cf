"""Quadrature rules as data: a rule gives the nodes on the path from baseline to input, and their weights."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

Nodes = tuple[Tensor, Tensor]  # alphas_J, weights_J


def midpoint(nodes: int) -> Nodes:
    return (_steps(nodes) + 0.5) / nodes, _even(nodes)


def left(nodes: int) -> Nodes:
    return _steps(nodes) / nodes, _even(nodes)


def right(nodes: int) -> Nodes:
    """The rule of [IG] Eq. 2."""
    return (_steps(nodes) + 1) / nodes, _even(nodes)


def trapezoid(nodes: int) -> Nodes:
    if nodes < 2:
        raise ValueError(f"the trapezoid rule needs both ends of the path: nodes={nodes}, expected 2 or more")
    weights_J = torch.full((nodes,), 1 / (nodes - 1), dtype=torch.float64)
    weights_J[[0, -1]] /= 2
    return torch.linspace(0, 1, nodes, dtype=torch.float64), weights_J


def gauss_legendre(nodes: int) -> Nodes:
    points, weights = np.polynomial.legendre.leggauss(nodes)
    return torch.from_numpy((points + 1) / 2), torch.from_numpy(weights / 2)


def authors(nodes: int) -> Nodes:
    """What the paper's code does: ``linspace(0, 1, J)``, each node weighing 1/J, so both ends count whole."""
    return torch.linspace(0, 1, nodes, dtype=torch.float64), _even(nodes)


RULES: dict[str, Callable[[int], Nodes]] = {
    "midpoint": midpoint,
    "left": left,
    "right": right,
    "trapezoid": trapezoid,
    "gauss_legendre": gauss_legendre,
    "authors": authors,
}


def _steps(nodes: int) -> Tensor:
    if nodes < 1:
        raise ValueError(f"a quadrature rule needs at least one node, got nodes={nodes}")
    return torch.arange(nodes, dtype=torch.float64)


def _even(nodes: int) -> Tensor:
    return torch.full((nodes,), 1 / nodes, dtype=torch.float64)

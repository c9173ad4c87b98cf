"""Quadrature rules as data: a rule gives the nodes on the path from baseline to input, and their weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segrl.resolving import resolve

Nodes = tuple[Tensor, Tensor]  # alphas_J, weights_J
CALIBRATED = "calibrated"  # the rule of the calibration that a run keeps


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
    """The rule of the paper's code: ``linspace(0, 1, J)``, every node with the weight 1/J, both ends included."""
    return torch.linspace(0, 1, nodes, dtype=torch.float64), _even(nodes)


RULES: dict[str, Callable[[int], Nodes]] = {
    "midpoint": midpoint,
    "left": left,
    "right": right,
    "trapezoid": trapezoid,
    "gauss_legendre": gauss_legendre,
    "authors": authors,
}


def nodes_of(quadrature: str | Nodes, nodes: int, calibration: Mapping[str, Any] | None = None) -> Nodes:
    """The alphas and weights that ``quadrature`` names; a pair of alphas and weights is returned as it is.

    A name is one of ``RULES``, a ``package.module:function``, the path of a calibration (.json), or ``calibrated``
    where a run keeps a ``calibration``. Until that has a rule of ``nodes`` nodes, midpoint nodes serve.
    """
    if not isinstance(quadrature, str):
        return quadrature
    if quadrature.endswith(".json"):
        return _nodes_in_file(quadrature, nodes)
    if quadrature == CALIBRATED and calibration is not None:
        rules = calibration.get("rules", {})
        return _as_tensors(rules[str(nodes)]) if str(nodes) in rules else midpoint(nodes)
    if quadrature not in RULES and ":" not in quadrature:
        known = ", ".join(RULES)
        raise ValueError(f"quadrature={quadrature!r}, expected one of {known}, or the path of a calibration (.json)")
    return resolve(quadrature, RULES, "quadrature rule")(nodes)


def _nodes_in_file(path: str, nodes: int) -> Nodes:
    """The calibrated rule of ``nodes`` nodes in the file at ``path``."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} does not exist; `segrl attribute calibrate out={path}` writes it")
    rules = json.loads(Path(path).read_text())["rules"]
    if str(nodes) not in rules:
        raise ValueError(f"{path} has calibrated rules of {', '.join(rules)} nodes, not of {nodes}")
    return _as_tensors(rules[str(nodes)])


def _as_tensors(rule: Mapping[str, Any]) -> Nodes:
    return torch.tensor(rule["alphas"], dtype=torch.float64), torch.tensor(rule["weights"], dtype=torch.float64)


def _steps(nodes: int) -> Tensor:
    if nodes < 1:
        raise ValueError(f"a quadrature rule needs at least one node, got nodes={nodes}")
    return torch.arange(nodes, dtype=torch.float64)


def _even(nodes: int) -> Tensor:
    return torch.full((nodes,), 1 / nodes, dtype=torch.float64)


# --- where a midpoint grid is too coarse, by the masses of its nodes -------------------------------------------------
#
# The answer's log-probability climbs the path in steps, a step for each token of the answer that becomes certain.
# Between steps few nodes suffice. On a step the masses of neighbouring nodes differ, and only there are nodes added.


def unevenness(masses_JL: Tensor, widths_J: Tensor) -> Tensor:
    """The share of all mass that each cell may misplace; their sum estimates the error of the whole grid.

    A cell takes the masses of its midpoint for its whole width. Halfway to the next midpoint they have changed by half
    the difference between the two, so on average by a quarter. Of its two neighbours, the more different one counts.
    """
    if len(masses_JL) < 2:
        return torch.ones(len(masses_JL), dtype=widths_J.dtype)  # a single node has no neighbour: nothing is known
    step = masses_JL.diff(dim=0).abs().sum(1)
    larger_J = torch.maximum(torch.cat([step[:1], step]), torch.cat([step, step[-1:]]))
    return widths_J * larger_J / 4 / (widths_J @ masses_JL).abs().sum().clamp_min(1e-12)


def worst(unevenness_J: Tensor, room: int) -> list[int]:
    """The fewest cells that hold half of all unevenness, ``room`` at most."""
    order = unevenness_J.argsort(descending=True, stable=True)
    before = unevenness_J[order].cumsum(0) < unevenness_J.sum() / 2
    return order[: min(int(before.sum()) + 1, room)].tolist()


def thirds(midpoint: float, width: float) -> tuple[float, float]:
    """The midpoints of a cell's outer thirds; the cell's midpoint stays that of the middle third."""
    return midpoint - width / 3, midpoint + width / 3

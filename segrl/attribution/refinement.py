"""Where on the path a midpoint grid is too coarse, as its own nodes tell, and finer nodes for those cells alone.

The answer's log-probability climbs the path in steps, one for each token of the answer that becomes certain. Between
steps few nodes do; on a step neighbouring nodes hardly resemble each other, and only there are more of them spent.
"""

from __future__ import annotations

import torch
from torch import Tensor


def unevenness(masses_JL: Tensor, widths_J: Tensor) -> Tensor:
    """How much of all mass each cell may misplace, as a share; the sum estimates the error of the whole grid.

    A cell takes the masses of its midpoint for its whole width. Halfway to the next midpoint they have changed by half
    the difference between the two, so on average by a quarter; of both neighbours the one that differs more counts.
    """
    if len(masses_JL) < 2:
        return torch.ones(len(masses_JL), dtype=widths_J.dtype)  # one node has nobody to differ from: nothing is known
    step = masses_JL.diff(dim=0).abs().sum(1)
    larger_J = torch.maximum(torch.cat([step[:1], step]), torch.cat([step, step[-1:]]))
    return widths_J * larger_J / 4 / (widths_J @ masses_JL).abs().sum().clamp_min(1e-12)


def worst(unevenness_J: Tensor, room: int) -> list[int]:
    """The fewest cells that hold half of all unevenness, ``room`` at most."""
    order = unevenness_J.argsort(descending=True, stable=True)
    before = unevenness_J[order].cumsum(0) < unevenness_J.sum() / 2
    return order[: min(int(before.sum()) + 1, room)].tolist()


def thirds(midpoint: float, width: float) -> tuple[float, float]:
    """The midpoints of a cell's outer thirds; its own stays that of the third between them."""
    return midpoint - width / 3, midpoint + width / 3

"""Seconds and hours, by flops over a peak, and what attribution adds to a training step.

The unit is ``update_actor``, the policy's update on the same rollouts. An evaluation is a forward, and a backward to
the input embeddings alone. It costs about half of the update on its tokens, or three quarters where activations are
checkpointed.
"""

from __future__ import annotations

from dataclasses import dataclass

from segrl.cost.hardware import GIB
from segrl.cost.memory import attribution
from segrl.cost.shape import Shape

EVALUATION = {False: 0.5, True: 0.75}  # of update_actor, by checkpointing
FORWARDS_OF_UPDATE = {False: 3, True: 4}  # flops of update_actor in forwards, by checkpointing
UTILISATION = 0.35  # share of the peak that a training reaches


@dataclass(frozen=True)
class Cost:
    """The cost of a step: seconds on all GPUs together, and the most memory that attribution holds on a GPU."""

    tokens: int
    update_seconds: float
    attribution_seconds: float
    units: float
    memory_gib: float


def units(nodes: int, share: float, checkpointing: bool, certificate_every: int = 0) -> float:
    """What attribution costs, in units of update_actor. A certificate takes two forwards at every n-th step."""
    certificate = 2 / FORWARDS_OF_UPDATE[checkpointing] / certificate_every if certificate_every else 0.0
    return share * (nodes * EVALUATION[checkpointing] + certificate)


def estimate(
    shape: Shape,
    length: int,
    rollouts: int,
    gpus: int,
    *,
    nodes: int = 1,
    share: float = 1.0,
    checkpointing: bool = True,
    certificate_every: int = 0,
    path: str = "embeddings",
    tokens_per_forward: int = 16_384,
    tflops: float = 989.0,
    utilisation: float = UTILISATION,
) -> Cost:
    """The cost of attributing ``rollouts`` sequences of ``length`` tokens in one step."""
    for name, value in (("length", length), ("rollouts", rollouts), ("gpus", gpus), ("nodes", nodes)):
        if value < 1:
            raise ValueError(f"{name}={value}, expected 1 or more")
    if path not in ("embeddings", "values"):
        raise ValueError(f"path={path!r}, expected embeddings or values")
    if not 0 <= share <= 1:
        raise ValueError(f"share={share}, expected a part of one, like 0.25")
    if not 0 < utilisation <= 1:
        raise ValueError(f"utilisation={utilisation}, expected a share of the peak, over 0 and up to 1")
    tokens = length * rollouts
    update = 3600 * hours(training_flops(shape, tokens, length, checkpointing), gpus, tflops, utilisation)
    added = units(nodes, share, checkpointing, certificate_every)
    held = max(tokens_per_forward, length)
    return Cost(tokens, update, update * added, added, attribution(shape, held, checkpointing, path=path) / GIB)


def hours(flops: float, gpus: int, tflops: float, utilisation: float = UTILISATION) -> float:
    """Hours that the flops take on these GPUs."""
    return flops / (gpus * tflops * 1e12 * utilisation) / 3600


def training_flops(shape: Shape, tokens: int, length: int, checkpointing: bool) -> float:
    """Flops of the forwards and backwards of ``tokens`` tokens, in sequences of ``length``."""
    return tokens * shape.forward_flops(length) * FORWARDS_OF_UPDATE[checkpointing]


def attribution_flops(shape: Shape, tokens: int, length: int, evaluations: int, checkpointing: bool) -> float:
    """Flops of ``evaluations`` evaluations of each of ``tokens`` tokens."""
    return training_flops(shape, tokens, length, checkpointing) * evaluations * EVALUATION[checkpointing]

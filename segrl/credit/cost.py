"""What attribution adds to a training step, from a model's config.json alone: seconds and memory.

The unit is ``update_actor``, the policy's update on the same rollouts: an evaluation, a forward and a backward to
the input embeddings alone, is about half of its part of it, or three quarters where activations are checkpointed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

EVALUATION = {False: 0.5, True: 0.75}  # of update_actor, by checkpointing
FORWARDS_OF_UPDATE = {False: 3, True: 4}  # flops of update_actor in forwards, by checkpointing
TFLOPS = {"h200": 989.0, "h100": 989.0, "a100": 312.0, "l40s": 362.0, "a10": 125.0, "4090": 165.0, "cpu": 0.1}
GIB = 2**30


@dataclass(frozen=True)
class Shape:
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    feed_forward: int  # width that one token passes through: of the experts that it is routed to
    vocabulary: int

    @property
    def weights(self) -> int:
        """Weights that one token passes through, the output layer's among them."""
        attention = 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.feed_forward) + self.vocabulary * self.hidden

    def forward_flops(self, length: int) -> float:
        """Flops of a token in a sequence of ``length``; on average it attends to half of it."""
        return 2 * self.weights + 2 * self.layers * self.heads * self.head_dim * length

    def layer_activations(self) -> int:
        """Numbers that a layer keeps of a token for its backward, with attention that keeps no scores."""
        return 6 * self.hidden + 2 * self.head_dim * (self.heads + self.kv_heads) + 4 * self.feed_forward


@dataclass(frozen=True)
class Cost:
    """The cost of a step: seconds on all GPUs together, and the most memory that attribution holds on a GPU."""

    tokens: int
    update_seconds: float
    attribution_seconds: float
    units: float
    memory_gib: float


def shape_of(config: Mapping[str, Any]) -> Shape:
    """The shape in a config.json; a model of images and text says it in ``text_config``."""
    config = config.get("text_config") or config
    missing = [
        key for key in ("num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size") if key not in config
    ]
    if missing:
        raise ValueError(
            f"config.json has no {', '.join(missing)}; segrl cost knows decoders as transformers names them"
        )
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    experts = config.get("num_experts_per_tok") or 0
    width = config.get("intermediate_size") or 4 * hidden
    return Shape(
        layers=config["num_hidden_layers"],
        hidden=hidden,
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or hidden // heads,
        feed_forward=experts * config.get("moe_intermediate_size", width) if experts else width,
        vocabulary=config["vocab_size"],
    )


def units(nodes: int, share: float, checkpointing: bool, certificate_every: int = 0) -> float:
    """What attribution costs, in units of update_actor. The certificate is two forwards on every so-many-th step."""
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
    tokens_per_forward: int = 16_384,
    tflops: float = 989.0,
    utilisation: float = 0.35,
) -> Cost:
    for name, value in (("length", length), ("rollouts", rollouts), ("gpus", gpus), ("nodes", nodes)):
        if value < 1:
            raise ValueError(f"{name}={value}, expected 1 or more")
    if not 0 < utilisation <= 1:
        raise ValueError(f"utilisation={utilisation}, expected a share of the peak, over 0 and up to 1")
    tokens = length * rollouts
    flops = tokens * shape.forward_flops(length) * FORWARDS_OF_UPDATE[checkpointing]
    update = flops / (gpus * tflops * 1e12 * utilisation)
    added = units(nodes, share, checkpointing, certificate_every)
    held = max(tokens_per_forward, length)
    return Cost(tokens, update, update * added, added, memory(shape, held, checkpointing) / GIB)


def memory(shape: Shape, tokens: int, checkpointing: bool, bytes_each: int = 2) -> int:
    """Bytes of activations of one forward and backward of ``tokens``, beyond the weights, which are there anyway.

    The path adds its reach (float32), its point and the gradient; logits are of the answer's tokens alone.
    """
    layer = shape.layer_activations()
    kept = shape.layers * shape.hidden + layer if checkpointing else shape.layers * layer
    return tokens * (kept * bytes_each + shape.hidden * (4 + 2 * bytes_each))

"""The shape of a model, as far as its cost follows from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Shape:
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    feed_forward: int  # width that one token passes through: of the experts that it is routed to
    vocabulary: int
    experts_width: int = 0  # of all experts together; 0: there are none
    tied: bool = True  # is the output layer the input embedding?

    @property
    def weights(self) -> int:
        """Weights that one token passes through, the output layer's among them."""
        return self.layers * (self._attention + 3 * self.hidden * self.feed_forward) + self.embedding

    @property
    def parameters(self) -> int:
        """Weights that are held; norms and biases, a thousandth, are not counted."""
        return self.layers * self.layer + self.embedding * (1 if self.tied else 2)

    @property
    def layer(self) -> int:
        """Weights of one layer that are held."""
        return self._attention + 3 * self.hidden * (self.experts_width or self.feed_forward)

    @property
    def embedding(self) -> int:
        """Weights of the input embedding, and of the output layer."""
        return self.vocabulary * self.hidden

    @property
    def _attention(self) -> int:
        return 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)

    def forward_flops(self, length: int) -> float:
        """Flops of a token in a sequence of ``length``; on average it attends to half of it."""
        return 2 * self.weights + 2 * self.layers * self.heads * self.head_dim * length

    def layer_activations(self) -> int:
        """Numbers that a layer keeps of a token for its backward, with attention that keeps no scores."""
        return 6 * self.hidden + 2 * self.head_dim * (self.heads + self.kv_heads) + 4 * self.feed_forward

    def cached(self) -> int:
        """Numbers that the KV cache holds of a token."""
        return 2 * self.layers * self.kv_heads * self.head_dim

    def adapter(self, rank: int) -> int:
        """Weights of LoRA adapters of ``rank`` on every linear layer of the decoder."""
        wide, narrow = self.heads * self.head_dim, self.kv_heads * self.head_dim
        sides = 2 * (self.hidden + wide) + 2 * (self.hidden + narrow) + 3 * (self.hidden + self.feed_forward)
        return rank * self.layers * sides


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
    width = config.get("intermediate_size") or 4 * hidden
    routed = config.get("num_experts_per_tok") or 0
    expert = config.get("moe_intermediate_size") or width
    experts = config.get("num_experts") or config.get("num_local_experts") or config.get("n_routed_experts") or routed
    return Shape(
        layers=config["num_hidden_layers"],
        hidden=hidden,
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or hidden // heads,
        feed_forward=routed * expert if routed else width,
        vocabulary=config["vocab_size"],
        experts_width=experts * expert if routed else 0,
        tied=bool(config.get("tie_word_embeddings", True)),
    )

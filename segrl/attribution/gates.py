"""The value path: every layer's value vectors at the positions that move are scaled by a gate from zero to one.

At gates of one the model is unchanged; at gates of zero no position reads the values of those that move, though their
keys still take attention. A position's mass is the gradient to its gate; integrated over the path it is the
Aumann-Shapley value of the gate. These are integrated gradients over gates: complete, like those over embeddings, but
not Eq. 1 of the paper.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

Gating = Callable[[Tensor, Tensor], Tensor]  # a projection's output, gate_BL -> the output with its values scaled


class ValuePath:
    """A gate for each position of each row: ``alpha`` where the position moves, 0 where it is hidden, 1 elsewhere."""

    def __init__(self, model, alpha_B: Tensor, moves_BL: Tensor, hidden_BL: Tensor) -> None:
        self.projections = value_projections(model)
        self.moves_BL = moves_BL
        self.gate_BL = torch.where(moves_BL, alpha_B[:, None], 1.0).masked_fill(hidden_BL, 0.0)

    @contextmanager
    def hooked(self, wants_gradient: bool) -> Iterator[None]:
        """A context in which every layer's value vectors are scaled by the gates."""
        self.gate_BL.requires_grad_(wants_gradient)
        with ExitStack() as hooks:
            for projection, gating in self.projections:
                handle = projection.register_forward_hook(self._scaling(gating))
                hooks.callback(handle.remove)
            yield

    def _scaling(self, gating: Gating) -> Callable[..., Tensor]:
        return lambda module, args, output: gating(output, self.gate_BL.to(output.dtype))

    def masses(self, value_B: Tensor) -> Tensor:
        """The gradient to the gate of each moving position."""
        (gradient,) = torch.autograd.grad(value_B.sum(), self.gate_BL)
        return (gradient * self.moves_BL).detach()


# --- where the value vectors are -------------------------------------------------------------------------------------


def value_projections(model) -> list[tuple[Any, Gating]]:
    """The module that makes each layer's value vectors, and how its output is gated."""
    return [_projection(layer, number) for number, layer in enumerate(decoder_layers(model))]


def decoder_layers(model) -> list[Any]:
    """The model's longest list of modules."""
    stacks = [list(module) for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
    return max(stacks, key=len, default=[])


def _projection(layer, number: int) -> tuple[Any, Gating]:
    attentions = [(module, name) for module in layer.modules() for name in GATINGS if _child(module, name) is not None]
    if len(attentions) == 1:
        [(attention, name)] = attentions
        if (gating := GATINGS[name](attention)) is not None and not _values_change_later(attention):
            return _child(attention, name), gating
    raise ValueError(
        f"path=values gates value vectors, and layer {number}, a {type(layer).__name__}, has none that segrl knows: "
        f"expected attention with one of {', '.join(GATINGS)}, laid out as Llama's, Phi-3's or GPT-NeoX's; take "
        "path=embeddings"
    )


def _child(module, name: str):
    return dict(module.named_children()).get(name)


def _values_change_later(attention) -> bool:
    """Whether values are normed after their projection, which undoes a gate, or taken from another layer."""
    return hasattr(attention, "v_norm") or bool(getattr(attention, "is_kv_shared_layer", False))


def _whole(attention) -> Gating:
    return lambda output, gate_BL: output * gate_BL[..., None]


def _last_part(attention) -> Gating | None:
    """Phi-3: queries, keys and values of all heads, one after the other."""
    if not hasattr(attention, "num_key_value_heads"):
        return None
    width = attention.num_key_value_heads * attention.head_dim

    def gated(output: Tensor, gate_BL: Tensor) -> Tensor:
        before, values = output[..., :-width], output[..., -width:]
        return torch.cat([before, values * gate_BL[..., None]], -1)

    return gated


def _last_of_each_head(attention) -> Gating | None:
    """GPT-NeoX: query, key and value of a head, then those of the next."""
    if "GPTNeoX" not in type(attention).__name__:
        return None  # Falcon and Bloom use the same name for other layouts

    def gated(output: Tensor, gate_BL: Tensor) -> Tensor:
        heads = output.view(*output.shape[:-1], -1, 3, attention.head_size)
        ones_BL = torch.ones_like(gate_BL)
        scale = torch.stack([ones_BL, ones_BL, gate_BL], -1)[..., None, :, None]
        return (heads * scale).view_as(output)

    return gated


GATINGS: dict[str, Callable[[Any], Gating | None]] = {
    "v_proj": _whole,
    "qkv_proj": _last_part,
    "query_key_value": _last_of_each_head,
}

"""The straight path of a model's input embeddings, and the state a model must be in while gradients follow it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor


class Path:
    """Position by position ``baseline + alpha * (input - baseline)``, put in the place of the embedding's output."""

    def __init__(self, embedding, baseline_id: int, alpha_B: Tensor, moves_BL: Tensor, hidden_BL: Tensor) -> None:
        self.embedding = embedding
        self.baseline_id = baseline_id
        # How far each position stays away from its input: 0 at rest, 1 - alpha when moving, 1 when hidden.
        self.away_BL = torch.where(moves_BL, 1 - alpha_B[:, None], 0.0) + hidden_BL.float()
        self.moves_BL = moves_BL
        self.point: Tensor | None = None
        self.reach: Tensor | None = None

    @contextmanager
    def hooked(self, wants_gradient: bool) -> Iterator[None]:
        def replace(module, args, output: Tensor) -> Tensor:
            with torch.no_grad():
                # The class's own forward: it scales as the model does, and runs no hook, this one included.
                baseline = type(module).forward(module, torch.full_like(args[0][:1, :1], self.baseline_id))
                reach = output.float() - baseline.float()
                point = (output.float() - self.away_BL[..., None] * reach).to(output.dtype)
            self.reach, self.point = reach, point.requires_grad_(wants_gradient)
            return self.point

        handle = self.embedding.register_forward_hook(replace)
        try:
            yield
        finally:
            handle.remove()

    def masses(self, logp_B: Tensor) -> Tensor:
        """``(input - baseline) . gradient`` for each moving position."""
        assert self.point is not None
        assert self.reach is not None
        (gradient,) = torch.autograd.grad(logp_B.sum(), self.point)
        return ((gradient.float() * self.reach).sum(-1) * self.moves_BL).detach()


@contextmanager
def evaluating(model, checkpointing: bool = False) -> Iterator[None]:
    """Eval mode, no parameter that asks for a gradient, and if asked activation checkpointing; put back as it was."""
    training = [module for module in model.modules() if module.training]
    # FSDP2 shards know their own requires_grad; leave those alone, autograd.grad touches no parameter either way.
    trained = [p for p in model.parameters() if p.requires_grad and not hasattr(p, "device_mesh")]
    model.eval()
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        with checkpointed(model) if checkpointing else ExitStack():
            yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
        for module in training:
            module.training = True


@contextmanager
def checkpointed(model) -> Iterator[None]:
    """Activation checkpointing under eval. transformers checkpoints a layer only while ``layer.training``: so that flag
    is set on the checkpointing layers themselves, not on their children, whose dropout stays off.
    """
    layers = [module for module in model.modules() if hasattr(type(module), "gradient_checkpointing")]
    layers = [layer for layer in layers if not hasattr(layer, "supports_gradient_checkpointing")]
    before = [(layer.training, dict(layer.__dict__)) for layer in layers]
    for layer in layers:
        layer.training = layer.gradient_checkpointing = True
        layer._gradient_checkpointing_func = _checkpoint
    try:
        yield
    finally:
        for layer, (training, attributes) in zip(layers, before, strict=True):
            layer.training = training
            for name in ("gradient_checkpointing", "_gradient_checkpointing_func"):
                if name in attributes:
                    setattr(layer, name, attributes[name])
                else:
                    delattr(layer, name)


def _checkpoint(function, *args):
    return torch.utils.checkpoint.checkpoint(function, *args, use_reentrant=False)

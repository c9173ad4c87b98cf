"""The straight path from a baseline to a model's input embeddings, and the state a model is evaluated in."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor
from torch.nn.functional import pad

from segrl.attribution.gates import decoder_layers

CHUNK = 8192  # rows of the vocabulary embedded at once
NAMES = ("pad", "mean", "zero")


class EmbeddingPath:
    """The point ``baseline + alpha * (input - baseline)`` of each row, put in the place of the embedding's output."""

    def __init__(self, embedding, baseline: Baseline, alpha_B: Tensor, moves_BL: Tensor, hidden_BL: Tensor) -> None:
        self.embedding = embedding
        self.baseline = baseline
        # How far each position stays away from its input: 0 at rest, 1 - alpha when moving, 1 when hidden.
        self.away_BL = torch.where(moves_BL, 1 - alpha_B[:, None], 0.0) + hidden_BL.float()
        self.moves_BL = moves_BL
        self.point: Tensor | None = None
        self.reach: Tensor | None = None

    @contextmanager
    def hooked(self, wants_gradient: bool) -> Iterator[None]:
        """A context in which the embedding returns the point on the path."""

        def replace(module, args, output: Tensor) -> Tensor:
            with torch.no_grad():
                reach = output.float() - self.baseline(module, args[0]).float()
                point = (output.float() - self.away_BL[..., None] * reach).to(output.dtype)
            self.reach, self.point = reach, point.requires_grad_(wants_gradient)
            return self.point

        # Before any other hook: FSDP2's hook shards the embedding again, after which its rows cannot be read.
        handle = self.embedding.register_forward_hook(replace, prepend=True)
        try:
            yield
        finally:
            handle.remove()

    def masses(self, value_B: Tensor) -> Tensor:
        """``(input - baseline) . gradient`` for each moving position."""
        assert self.point is not None
        assert self.reach is not None
        (gradient,) = torch.autograd.grad(value_B.sum(), self.point)
        return ((gradient.float() * self.reach).sum(-1) * self.moves_BL).detach()


@contextmanager
def feeding_forward_last(model, tail: int) -> Iterator[None]:
    """A context in which the last layer's feed-forward block runs on the last ``tail`` positions only.

    Its output at other positions is not read. The block works on each position by itself and is called ``mlp`` in every
    decoder of transformers. A mixture of experts returns more than a tensor and is left alone, as are other models.
    """
    layers = decoder_layers(model)
    block = getattr(layers[-1], "mlp", None) if layers else None
    if block is None or (not hasattr(block, "act_fn") and not hasattr(block, "act")):
        yield
        return
    width = 0

    def narrow(module, args):
        nonlocal width
        width = args[0].shape[1]
        return (args[0][:, -tail:], *args[1:])

    def widen(module, args, output):
        return pad(output, (0, 0, width - output.shape[1], 0))

    handles = [block.register_forward_pre_hook(narrow), block.register_forward_hook(widen)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def evaluating(model, checkpointing: bool = False) -> Iterator[None]:
    """A context in which the model is in eval mode and no parameter requires a gradient; restored at its end.

    ``checkpointing`` turns on activation checkpointing as well.
    """
    training = [module for module in model.modules() if module.training]
    # requires_grad of FSDP2's shards stays: FSDP2 reads it, and autograd.grad touches no parameter either way.
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
    """A context of activation checkpointing in eval mode.

    transformers checkpoints a layer only while ``layer.training``. That flag is set on the checkpointing layers
    themselves and not on their children, whose dropout stays off.
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


# --- the baseline ----------------------------------------------------------------------------------------------------


def resolve_baseline(baseline: str | int, tokenizer) -> str | int:
    """The baseline as a token id, ``mean`` or ``zero``: ``pad`` is the pad token, or else the end-of-text token."""
    if isinstance(baseline, int) or baseline in ("mean", "zero"):
        return baseline
    if baseline != "pad":
        raise ValueError(f"baseline={baseline!r}, expected one of {NAMES} or a token id")
    for id in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if id is not None:
            return id
    raise ValueError("the tokenizer has neither a pad nor an end-of-text token; pass baseline=<token id>, or mean")


@torch.no_grad()
def warn_of_baseline(embedding, baseline: str | int) -> None:
    """Warn of a baseline whose attributions mislead."""
    weight = embedding.weight
    if hasattr(weight, "device_mesh"):
        return  # a shard holds only some of the rows
    if baseline == "zero" or (isinstance(baseline, int) and not bool(weight[baseline].any())):
        warnings.warn(
            "the baseline is all zero: under RMSNorm its path is singular, and masses will not be complete; take "
            "baseline=mean or a trained token",
            stacklevel=3,
        )
    elif isinstance(baseline, int) and _looks_untrained(weight.float().norm(dim=1), baseline):
        warnings.warn(
            f"the embedding of token {baseline} looks untrained: its norm lies outside that of 99% of all tokens. From "
            "such a baseline attributions point at the wrong segments; take baseline=mean or a trained token",
            stacklevel=3,
        )


def _looks_untrained(norms_V: Tensor, id: int) -> bool:
    """Whether the token's norm lies a tenth or more outside the middle 99% of all norms."""
    sample = norms_V[:: max(1, len(norms_V) // 100_000)]
    low, high = sample.quantile(torch.tensor([0.005, 0.995], device=sample.device)).tolist()
    return not 0.9 * low <= float(norms_V[id]) <= 1.1 * high


class Baseline:
    """The baseline as one position of the embedding's output, made in the forward, where FSDP gathers the weights."""

    def __init__(self, baseline: str | int) -> None:
        self.token = baseline
        self._mean: Tensor | None = None

    def __call__(self, module, ids_BL: Tensor) -> Tensor:
        if isinstance(self.token, int):
            return _embed(module, torch.full_like(ids_BL[:1, :1], self.token))
        if self._mean is None:
            ids = torch.arange(module.num_embeddings, device=ids_BL.device)
            sums = torch.stack([_embed(module, chunk).float().sum(0) for chunk in ids.split(CHUNK)])
            self._mean = sums.sum(0)[None, None] / len(ids)
        return self._mean if self.token == "mean" else torch.zeros_like(self._mean)


def _embed(module, ids: Tensor) -> Tensor:
    """The embeddings of ``ids`` by the forward of the module's class: scaled as the model does, without any hook."""
    return type(module).forward(module, ids)

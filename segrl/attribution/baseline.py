"""The uninformative end of the path: a token's embedding, the mean of all, or zero."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

CHUNK = 8192  # rows of the vocabulary embedded at once
NAMES = ("pad", "mean", "zero")


def resolve_baseline(baseline: str | int, tokenizer) -> str | int:
    """``pad`` becomes the pad token's id, or the end of text's where there is none."""
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
    """Say when the baseline is one whose attributions mislead."""
    weight = embedding.weight
    if hasattr(weight, "device_mesh"):
        return  # a shard shows a part of the rows only
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
    """Outside the middle 99% of all rows by a tenth or more."""
    sample = norms_V[:: max(1, len(norms_V) // 100_000)]
    low, high = sample.quantile(torch.tensor([0.005, 0.995], device=sample.device)).tolist()
    return not 0.9 * low <= float(norms_V[id]) <= 1.1 * high


class Baseline:
    """The baseline as one position of the embedding's output. Made inside the forward, where shards are whole."""

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
    """By the class's own forward: it scales as the model does, and runs no hook, the path's own included."""
    return type(module).forward(module, ids)

"""The answer's value at the input itself, without a path, and its gradient there."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from segrl.attribution.evaluator import Evaluator, Row, left_padded, tail_of, unwrapped
from segrl.attribution.path import evaluating, feeding_forward_last
from segrl.attribution.target import Explained
from segrl.importance.reading import read_on


class Reader(Evaluator):
    """Evaluates rows at the input itself.

    A row gives the answer's value and, if it has a weight, two numbers a position: gradient . embedding, and the norm
    of their elementwise product. ``shared_ids`` stand before every row and are read once.
    """

    def __init__(
        self, model, explained: list[Explained], output: str = "logp", shared_ids: Tensor | None = None
    ) -> None:
        super().__init__(model, explained, baseline="mean", output=output)  # no baseline is used: nothing moves
        self.shared = 0 if shared_ids is None else len(shared_ids)
        with torch.no_grad():
            self.cache = None if shared_ids is None else read_on(unwrapped(model), shared_ids)

    def __call__(self, rows: Sequence[Row], checkpointing: bool = False) -> tuple[list[float], list[Tensor]]:
        sequences = [self.explained[row.index] for row in rows]
        ids_BL, attended_BL = left_padded([sequence.input_ids for sequence in sequences], 0, self.device)
        wants_gradient = rows[0].weight is not None
        with ExitStack() as state:
            state.enter_context(evaluating(self.model, checkpointing))
            if self.keeps_logits:
                state.enter_context(feeding_forward_last(self.model, tail_of(sequences)))
            state.enter_context(torch.set_grad_enabled(wants_gradient))
            embedded = state.enter_context(leaves(self.embedding)) if wants_gradient else []
            value_B = self.answer_value(ids_BL, attended_BL, sequences)
            products = _products(value_B, embedded[0]) if wants_gradient else torch.zeros(*ids_BL.shape, 2)
        products_B = zip(products.cpu(), sequences, strict=True)
        return value_B.tolist(), [products_L2[-len(sequence) :] for products_L2, sequence in products_B]

    def inputs(self, ids_BL: Tensor, attended_BL: Tensor) -> dict[str, Any]:
        """The rows, behind a copy of the keys and values of what they share."""
        if self.cache is None:
            return super().inputs(ids_BL, attended_BL)
        cache = copy.deepcopy(self.cache)
        cache.batch_repeat_interleave(len(ids_BL))
        inputs: dict[str, Any] = {"input_ids": ids_BL, "past_key_values": cache, "use_cache": True}
        if not bool(attended_BL.all()):
            attended_BL = torch.cat([attended_BL.new_ones(len(ids_BL), self.shared), attended_BL], -1)
            inputs["attention_mask"] = attended_BL.long()
            inputs["position_ids"] = (attended_BL.long().cumsum(-1) - 1)[:, self.shared :]
        return inputs


@contextmanager
def leaves(embedding) -> Iterator[list[Tensor]]:
    """A list to which each forward adds the embedding's output, as a leaf tensor that requires a gradient."""
    outputs: list[Tensor] = []

    def keep(module, args, output: Tensor) -> Tensor:
        outputs.append(output.detach().requires_grad_())
        return outputs[-1]

    handle = embedding.register_forward_hook(keep, prepend=True)  # before FSDP2's hook, as in path.py
    try:
        yield outputs
    finally:
        handle.remove()


def _products(value_B: Tensor, embedded: Tensor) -> Tensor:
    """The sum and the norm of gradient x embedding at each position."""
    (gradient,) = torch.autograd.grad(value_B.sum(), embedded)
    product = gradient.float() * embedded.detach().float()
    return torch.stack([product.sum(-1), product.norm(dim=-1)], -1)

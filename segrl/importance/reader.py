"""The answer's value at the input itself, without a path, and its gradient there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

from segrl.attribution.evaluator import Evaluator, Row, left_padded, tail_of
from segrl.attribution.path import evaluating, feeding_forward_last
from segrl.attribution.target import Explained


class Reader(Evaluator):
    """Evaluates rows at the input itself.

    A row gives the answer's value and, if it has a weight, two numbers a position: gradient . embedding, and the norm
    of their elementwise product.
    """

    def __init__(self, model, explained: list[Explained], output: str = "logp") -> None:
        super().__init__(model, explained, baseline="mean", output=output)  # no baseline is used: nothing moves

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

"""Integrated gradients by captum, behind the same call: slower, independent, and the oracle of the tests."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from segrl.attribution.path import evaluating

# Not its trapezoid, whose weights sum to 1 - 1/n.
METHODS = {
    "midpoint": "riemann_middle",
    "left": "riemann_left",
    "right": "riemann_right",
    "gauss_legendre": "gausslegendre",
}


def captum_masses(evaluate, index: int, quadrature, nodes: int) -> Tensor:
    """The masses of one trace's tokens by ``LayerIntegratedGradients`` on the embedding, one node at a time."""
    from captum.attr import LayerIntegratedGradients

    if quadrature not in METHODS:
        raise ValueError(f"engine=captum has no quadrature {quadrature!r}, expected one of {', '.join(METHODS)}")
    explained = evaluate.explained[index]
    if evaluate.path != "embeddings" or evaluate.begin:
        raise ValueError(
            "engine=captum follows embeddings, from the baseline on; take path=embeddings and begin=0 with it, as "
            "attribution=paper does"
        )
    if evaluate.interpolate != "all" or evaluate.hide_answer:
        raise ValueError("engine=captum moves every position alike; use interpolate=all and hide_answer=false with it")
    if not isinstance(evaluate.baseline.token, int):
        raise ValueError(f"engine=captum takes a token as baseline, not {evaluate.baseline.token!r}")
    device = next(evaluate.model.parameters()).device
    ids_BL = explained.input_ids[None].to(device)

    def logp(ids: Tensor) -> Tensor:
        return evaluate.answer_value(ids, torch.ones_like(ids, dtype=torch.bool), [explained] * len(ids))

    explainer = LayerIntegratedGradients(logp, evaluate.embedding)
    with evaluating(evaluate.model), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # captum warns that a layer it was given is used
        options = {"n_steps": nodes, "method": METHODS[quadrature], "internal_batch_size": 1}
        baseline = torch.full_like(ids_BL, evaluate.baseline.token)
        return explainer.attribute(ids_BL, baseline, **options).sum(-1)[0].double().cpu().detach()

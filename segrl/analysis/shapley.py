"""A model's own dependence on each segment: exact Shapley values over all subsets of the segments.

``v(K)`` is the answer's log-probability, or what ``output`` names, when only the segments K stand in the thinking. A
segment's value is what it adds to the segments before it, averaged over all orders of the segments.
"""

from __future__ import annotations

from math import comb
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from segrl.importance.keeping import kept_answer_value, of_thoughts
from segrl.importance.reading import Reading
from segrl.types import Segments, TokenisedTrace

MOST = 10  # segments: 1,024 subsets


def subsets(n: int) -> Tensor:
    """All subsets of n segments, (2**n, n): row k holds segment i where bit i of k is set."""
    if not 1 <= n <= 16:
        raise ValueError(f"exact Shapley values of {n} segments take 2**{n} evaluations; expected 1 to 16 segments")
    return (torch.arange(2**n)[:, None] >> torch.arange(n)) & 1 == 1


def shapley(values_K: ArrayLike) -> NDArray:
    """phi_i = sum over K without i of |K|! (n - |K| - 1)! / n! * (v(K + i) - v(K)); ``values_K`` as in ``subsets``."""
    values_K = np.asarray(values_K, dtype=float)
    n = len(values_K).bit_length() - 1
    assert len(values_K) == 2**n
    every = np.arange(2**n)
    sizes = np.array([int(k).bit_count() for k in every])
    weights = np.array([1 / (n * comb(n - 1, size)) for size in range(n)])
    phi = np.empty(n)
    for i in range(n):
        without = every[every >> i & 1 == 0]
        phi[i] = weights[sizes[without]] @ (values_K[without | 1 << i] - values_K[without])
    return phi


def dependence(model, tokenizer, trace: TokenisedTrace, segments: Segments, reading: Reading) -> dict[str, Any]:
    """The Shapley value of each thought, ``v`` of no and of all thoughts, and the evaluations that these took."""
    [explained] = reading.explained(model, [trace], tokenizer)
    thoughts = int(segments.thought_S.sum())
    kept_KT = of_thoughts(explained, segments, subsets(thoughts))
    [(values_K, cost)] = kept_answer_value(model, [explained], [kept_KT], reading.batching, reading.output)
    return {
        "shapley": shapley(values_K.numpy()).tolist(),
        "without": float(values_K[0]),
        "with": float(values_K[-1]),
        "evaluations": cost,
    }

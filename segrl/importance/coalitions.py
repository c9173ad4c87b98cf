"""The game of the thoughts: v of each thought alone, of all but one, and Shapley values from sampled coalitions.

``v(K)`` is the answer's value when only the thoughts K stand in the thinking: its log-odds, or what ``subset_output``
names; of a contrast, its margin. In masks over thoughts, S counts the thoughts and not the answer segment.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import comb, inf
from typing import Any, NamedTuple

import torch
from torch import Tensor

from segrl.importance.keeping import Values, kept_answer_value, of_thoughts
from segrl.importance.reading import Reading, seed_of
from segrl.types import Segments, TokenisedTrace

Fields = dict[str, Any]
Pair = tuple[bool, ...]  # a coalition without the last thought; it stands for its complement too


# --- gatherers -------------------------------------------------------------------------------------------------------


def alone(model, traces, tokenizer, segments: Sequence[Segments], reading: Reading) -> list[Fields]:
    """v of each thought alone, and of none."""
    kept = [_with_none(trace_segments) for trace_segments in segments]
    return [
        {"alone_value_S": _spread(v_K, cut), "empty_value": float(v_K[0]), "cost": {"alone_value_S": cost}}
        for cut, (v_K, cost) in zip(segments, _game(model, traces, tokenizer, segments, kept, reading), strict=True)
    ]


def without_value(model, traces, tokenizer, segments: Sequence[Segments], reading: Reading) -> list[Fields]:
    """v of all thoughts but one, for each of them, and of all."""
    kept = [~_with_none(trace_segments) for trace_segments in segments]
    return [
        {"without_value_S": _spread(v_K, cut), "whole_value": float(v_K[0]), "cost": {"without_value_S": cost}}
        for cut, (v_K, cost) in zip(segments, _game(model, traces, tokenizer, segments, kept, reading), strict=True)
    ]


def shapley(model, traces, tokenizer, segments: Sequence[Segments], reading: Reading) -> list[Fields]:
    """The Shapley value of each thought and its standard error, from ``forwards`` coalitions."""
    drawn = [
        coalitions(
            int(cut.thought_S.sum()), reading.forwards, torch.Generator().manual_seed(seed_of(reading.seed, trace.id))
        )
        for trace, cut in zip(traces, segments, strict=True)
    ]
    values = _game(model, traces, tokenizer, segments, [game.kept_KS for game in drawn], reading)
    fields = []
    for cut, game, (v_K, cost) in zip(segments, drawn, values, strict=True):
        shapley_S, error_S = kernel_shapley(game, v_K)
        ends = {"empty_value": float(v_K[0]), "whole_value": float(v_K[1])}
        zero = torch.zeros(1, dtype=torch.float64)  # of the answer segment
        spread = (_spread(torch.cat([zero, values_S]), cut) for values_S in (shapley_S, error_S))
        fields.append(
            dict(zip(("shapley_S", "shapley_error_S"), spread, strict=True), **ends, cost={"shapley_S": cost})
        )
    return fields


def _game(
    model, traces: Sequence[TokenisedTrace], tokenizer, segments, kept: Sequence[Tensor], reading: Reading
) -> list[Values]:
    """v of each trace's coalitions, and what they cost."""
    explained = reading.explained(model, traces, tokenizer)
    masks = [of_thoughts(*columns) for columns in zip(explained, segments, kept, strict=True)]
    return kept_answer_value(model, explained, masks, reading.batching, reading.subset_output)


def _with_none(segments: Segments) -> Tensor:
    """Masks of no thought, and of each thought alone."""
    thoughts = int(segments.thought_S.sum())
    return torch.cat([torch.zeros(1, thoughts), torch.eye(thoughts)]).bool()


def _spread(values_K: Tensor, segments: Segments) -> Tensor:
    """The values of the thoughts, which follow the first value, by segment; the answer segment has the first value."""
    values_S = values_K[:1].repeat(len(segments))
    values_S[segments.thought_S] = values_K[1:]
    return values_S


# --- Shapley values by regression ------------------------------------------------------------------------------------


class Coalitions(NamedTuple):
    """Masks of the coalitions to read, and for each pair of them its weight and the chance that it is drawn.

    The first two masks are no thought and all thoughts; then come pairs, a coalition and its complement.
    """

    kept_KS: Tensor
    weight_P: Tensor
    chance_P: Tensor


def coalitions(thoughts: int, forwards: int, generator: torch.Generator) -> Coalitions:
    """The coalitions to read in ``forwards`` forwards: all where they suffice, else as many pairs as they allow.

    A size k is drawn by Shapley's kernel, 1 / (k (S - k)) (Lundberg and Lee 2017), then a coalition of this size at
    random, and its complement with it (Covert and Lee 2021). The weight of a pair is its kernel over the chance that it
    is drawn, so sums over pairs are right on average. With all pairs they are exact.
    """
    if 2**thoughts <= forwards:
        pairs, draws = list(_all_pairs(thoughts)), inf
    elif forwards >= 2 * thoughts + 2:
        pairs, draws = _drawn_pairs(thoughts, (forwards - 2) // 2, generator)
    else:
        raise ValueError(
            f"Shapley values of {thoughts} thoughts take {2 * thoughts + 2} forwards or more, got forwards={forwards}; "
            "give more, or cut fewer segments"
        )
    kernel_K = _kernel(thoughts)
    kernel = [2 * float(kernel_K[sum(pair) - 1]) / comb(thoughts, sum(pair)) for pair in pairs]
    kernel_P = torch.tensor(kernel, dtype=torch.float64)
    chance_P = 1 - (1 - kernel_P) ** draws
    kept_PS = torch.tensor(pairs, dtype=torch.bool).reshape(len(pairs), thoughts)
    ends = torch.tensor([[False] * thoughts, [True] * thoughts])
    both = torch.stack([kept_PS, ~kept_PS], 1).reshape(2 * len(pairs), thoughts)
    return Coalitions(torch.cat([ends, both]), kernel_P / chance_P, chance_P)


def kernel_shapley(game: Coalitions, values_K: Tensor) -> tuple[Tensor, Tensor]:
    """The Shapley value of each thought and its standard error, from the values of coalitions.

    Shapley values are the additive game that is closest to v by the kernel, among those with the sum v(all) - v(none).
    They depend on a pair through (v(K) - v(complement)) / 2 alone. The error is the jackknife's over pairs, in which a
    pair counts by the chance that it was not drawn: with all pairs it is zero.
    """
    values_K = values_K.double()
    empty, whole, (values_P, others_P) = values_K[0], values_K[1], values_K[2:].reshape(-1, 2).T
    side_PS = game.kept_KS[2::2].double() - 0.5
    equal = (whole - empty) / side_PS.shape[1]  # of each thought, if all added the same
    rest_P = (values_P - others_P) / 2 - side_PS.sum(1) * equal
    centred_PS = side_PS - side_PS.mean(1, keepdim=True)  # the deviations from equal shares sum to zero
    square_SS = centred_PS.T @ (game.weight_P[:, None] * centred_PS)
    inverse_SS = torch.linalg.pinv(square_SS, rtol=1e-9, hermitian=True)  # along equal shares there is only rounding
    slopes_SP = inverse_SS @ centred_PS.T * game.weight_P
    added_S = slopes_SP @ rest_P
    leverage_P = (centred_PS.T * slopes_SP).sum(0)
    missed_P = (rest_P - centred_PS @ added_S) / (1 - leverage_P).clamp_min(1e-9)  # by a fit without the pair
    return equal + added_S, (slopes_SP**2 @ (missed_P**2 * (1 - game.chance_P))).sqrt()


def _kernel(thoughts: int) -> Tensor:
    """The chance of each size from 1 to S - 1."""
    kernel_K = torch.tensor([1 / (k * (thoughts - k)) for k in range(1, thoughts)], dtype=torch.float64)
    return kernel_K / kernel_K.sum()


def _all_pairs(thoughts: int) -> Iterator[Pair]:
    return (tuple(bool(k >> i & 1) for i in range(thoughts)) for k in range(1, 2 ** max(thoughts - 1, 0)))


def _drawn_pairs(thoughts: int, count: int, generator: torch.Generator) -> tuple[list[Pair], int]:
    """``count`` different pairs, and the number of draws that it took."""
    kernel_K, drawn, draws = _kernel(thoughts), dict[Pair, None](), 0
    while len(drawn) < count:
        size = 1 + int(torch.multinomial(kernel_K, 1, generator=generator))
        kept_S = torch.zeros(thoughts, dtype=torch.bool)
        kept_S[torch.randperm(thoughts, generator=generator)[:size]] = True
        drawn[tuple((kept_S ^ kept_S[-1]).tolist())] = None
        draws += 1
    return list(drawn), draws

"""Traces and selections -> how much each response token counts as a label ([IG] Eq. 8, 9), the whole trace as context.

No trainer is known here: verl's dataset and `segrl export` read the same rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from segrl.resolving import near
from segrl.text.boxed import boxed_spans
from segrl.text.prompting import THINK_END
from segrl.types import Segments, TokenisedTrace

MODES = ("full", "selective", "pruned", "soft")
COUNTS = ("always", "segment", "never")
THINK_STARTS = ("closed", "always", "never")
TOO_LONG = ("error", "drop", "truncate")
NORMALISATIONS = ("batch", "trace")


@dataclass(frozen=True)
class Rules:
    """What counts as a label: the section ``masking`` of `segrl export`, and a part of ``segrl`` in `segrl sft`."""

    # full, selective, pruned or soft. full: loss on the whole response; selective: on kept segments; pruned: the
    # response is cut down to them; soft: every token counts by its segment's weight
    mode: str = "selective"
    end: str = "always"  # is the end of text a label: always, never or segment; segment: as the last token is
    # write <think> where there is none: closed, always or never. closed: where </think> follows; always: for a model
    # that is to learn to think. Nowhere is it written where the prompt has it
    think_start: str = "closed"
    think_end: str = "always"  # is </think> a label: always, never or segment; segment: as its segment is
    boxed: str = "always"  # is the last \boxed{...} a label: always, never or segment
    too_long: str = "error"  # a trace that is too long: error, drop, or truncate at a segment boundary
    # the mean of the loss: trace or batch. trace: over each trace's own kept tokens, then over traces (Eq. 9); batch:
    # over all kept tokens of a global batch (verl's)
    normalise: str = "batch"
    rule: str = "linear"  # of mode=soft: a rule of segrl.weigh, or package.module:function
    rule_options: dict[str, Any] = field(default_factory=dict)  # of that rule

    def __post_init__(self) -> None:
        _check("mode", self.mode, MODES)
        _check("think_start", self.think_start, THINK_STARTS)
        _check("too_long", self.too_long, TOO_LONG)
        _check("normalise", self.normalise, NORMALISATIONS)
        for name in ("end", "think_end", "boxed"):
            _check(name, getattr(self, name), COUNTS)


@dataclass(frozen=True, eq=False)
class Choice:
    """The weight of each token of a trace, and the segment that it lies in."""

    weights_T: Tensor
    segment_T: Tensor


@dataclass(frozen=True, eq=False)
class Masked:
    """A response with the weight of each token, perhaps cut short. ``ends`` is False where its end is cut off."""

    trace: TokenisedTrace
    weights_T: Tensor
    segment_T: Tensor
    end_weight: float = 1.0
    ends: bool = True


@dataclass(frozen=True, eq=False)
class Example:
    """One sequence, prompt and response and end, and how much each of its tokens counts as a label."""

    ids_L: Tensor
    mask_L: Tensor
    prompt_tokens: int = 0


# --- one tokenisation onto another -----------------------------------------------------------------------------------


def project(segments: Segments, offsets_T: Tensor, onto_T: Tensor, shift: int = 0) -> Tensor:
    """The segment of each token of another tokenisation: the one in which the token's first character lies.

    ``offsets_T`` are the characters of the tokens that ``segments`` counts, ``onto_T`` those of the others, whose text
    begins ``shift`` characters earlier. A character that several tokens share belongs to the first of them.
    """
    starts_S = offsets_T[torch.tensor(segments.boundaries[:-1]), 0].contiguous()
    first_T = (onto_T[:, 0] - shift).contiguous()
    return (torch.searchsorted(starts_S, first_T, right=True) - 1).clamp_min(0)


# --- one response ----------------------------------------------------------------------------------------------------


def mask(trace: TokenisedTrace, choice: Choice, rules: Rules) -> Masked | None:
    """The response with its weights; None where the selection keeps no token, or the rules leave none that counts."""
    weights_T = choice.weights_T
    if not bool(((weights_T > 0) & trace.trainable_T).any()):
        return None
    weights_T = torch.where(trace.trainable_T, _count_marks(trace, weights_T, rules), 0.0)
    last = float(weights_T[-1])
    end_weight = {"always": 1.0, "segment": last, "never": 0.0}[rules.end]
    # A response that its generator cut off has no end to learn.
    ends = trace.finish != "length"
    if not bool((weights_T > 0).any()) and not (ends and end_weight):
        return None
    return Masked(trace, weights_T, choice.segment_T, end_weight, ends)


def _count_marks(trace: TokenisedTrace, weights_T: Tensor, rules: Rules) -> Tensor:
    """The weights, with those of ``</think>`` and of the boxed answer set as the rules say."""
    for rule, span in ((rules.think_end, _think_end(trace.response)), (rules.boxed, _boxed(trace.response))):
        if rule != "segment" and span is not None:
            weights_T = torch.where(tokens_in(trace, span), float(rule == "always"), weights_T)
    return weights_T


def tokens_in(trace: TokenisedTrace, span: tuple[int, int]) -> Tensor:
    """True for the tokens that hold a character of the span."""
    return (trace.offsets_T[:, 0] < span[1]) & (trace.offsets_T[:, 1] > span[0])


def _think_end(text: str) -> tuple[int, int] | None:
    start = text.find(THINK_END)
    return None if start < 0 else (start, start + len(THINK_END))


def _boxed(text: str) -> tuple[int, int] | None:
    """The last box, its command and braces included."""
    spans = boxed_spans(text)
    return (text.rfind("\\", 0, spans[-1][0]), spans[-1][1] + 1) if spans else None


def truncate(masked: Masked, room: int) -> Masked | None:
    """The whole segments that fit into ``room`` tokens, without an end; None where not one of them counts."""
    starts = (masked.segment_T.diff().nonzero().flatten() + 1).tolist()
    tokens = max((at for at in starts if at <= room), default=0)
    if not bool((masked.weights_T[:tokens] > 0).any()):
        return None
    trace = masked.trace
    short = replace(
        trace,
        response=trace.response[: int(trace.offsets_T[tokens - 1, 1])],
        response_ids=trace.response_ids[:tokens],
        offsets_T=trace.offsets_T[:tokens],
        trainable_T=trace.trainable_T[:tokens],
    )
    return replace(
        masked, trace=short, weights_T=masked.weights_T[:tokens], segment_T=masked.segment_T[:tokens], ends=False
    )


# --- one sequence ----------------------------------------------------------------------------------------------------


def example(masked: Masked, eos_id: int, normalise: str = "batch") -> Example:
    """Prompt, response and end of text, with the weight of each as a label.

    verl rolls the flattened mask by one over all rows, so that the prediction of a token meets its mask. A row's first
    entry lands on the row before and must be zero, as the entry of a prompt token is. verl's loss divides by the mask's
    sum over the global batch: where every row's mask sums to one, the loss is Eq. 9's mean over traces of the mean over
    kept tokens.
    """
    trace = masked.trace
    if not len(trace.prompt_ids):
        raise ValueError(f"trace {trace.id!r} renders to an empty prompt, so nothing predicts its first token")
    ids_T, weights_T = trace.response_ids, masked.weights_T
    if masked.ends:
        if len(ids_T) and int(ids_T[-1]) == eos_id:
            ids_T, weights_T = ids_T[:-1], weights_T[:-1]
        ids_T = torch.cat([ids_T, torch.tensor([eos_id])])
        weights_T = torch.cat([weights_T, torch.tensor([masked.end_weight])])
    mask_L = torch.cat([torch.zeros(len(trace.prompt_ids)), weights_T.float()])
    if normalise == "trace":
        mask_L = mask_L / mask_L.sum()
    return Example(torch.cat([trace.prompt_ids, ids_T]), mask_L, len(trace.prompt_ids))


def _check(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name}={value!r}{near(value, known)}")

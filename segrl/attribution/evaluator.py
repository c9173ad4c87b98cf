"""Evaluations of one model along the paths of many traces: rows put together into forwards, forwards into masses."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor

from segrl.attribution.path import Baseline, Path, evaluating, feeding_forward_last, resolve_baseline, warn_of_baseline
from segrl.attribution.target import TEMPLATE, Explained, explain
from segrl.loading import tokenizer_of
from segrl.types import TokenisedTrace

INTERPOLATE = ("all", "response")
TOKENS, CPU_TOKENS = 16_384, 2_048  # held by one forward unless told otherwise


@dataclass(frozen=True)
class Row:
    """One evaluation: a trace at one point of its path. ``weight`` None asks for the value alone, no gradient."""

    index: int
    alpha: float
    weight: float | None


class Evaluator:
    """Evaluates batches of rows on one model: F at each row's point of the path, and its gradient's masses."""

    def __init__(
        self,
        model,
        explained: list[Explained],
        baseline: str | int,
        interpolate: str = "all",
        hide_answer: bool = False,
    ) -> None:
        self.model = model
        self.embedding = model.get_input_embeddings()
        self.explained = explained
        self.baseline = Baseline(baseline)
        self.interpolate = interpolate
        self.hide_answer = hide_answer
        self.keeps_logits = "logits_to_keep" in inspect.signature(unwrapped(model).forward).parameters
        self.fused = hasattr(unwrapped(model), "_verl_fused_kernels_backend")  # answers log-probs, and no logits
        self.device = self.embedding.weight.device
        warn_of_baseline(self.embedding, baseline)

    def __call__(self, rows: Sequence[Row], checkpointing: bool = False) -> tuple[list[float], list[Tensor]]:
        traces = [self.explained[row.index] for row in rows]
        device = self.device
        ids_BL, attended_BL = left_padded([one.input_ids for one in traces], 0, device)
        moves_BL, _ = left_padded([self._moves(one) for one in traces], False, device)
        hidden_BL, _ = left_padded([one.restates & self.hide_answer for one in traces], False, device)
        alpha_B = torch.tensor([row.alpha for row in rows], device=device)
        path = Path(self.embedding, self.baseline, alpha_B, moves_BL, hidden_BL)
        wants_gradient = rows[0].weight is not None
        with ExitStack() as state:
            state.enter_context(evaluating(self.model, checkpointing))
            state.enter_context(path.hooked(wants_gradient))
            if self.keeps_logits:
                state.enter_context(feeding_forward_last(self.model, tail_of(traces)))
            state.enter_context(torch.set_grad_enabled(wants_gradient))
            logp_B = self.answer_logp(ids_BL, attended_BL, traces)
            masses = path.masses(logp_B) if wants_gradient else torch.zeros(ids_BL.shape)
        return logp_B.tolist(), [row_L[-len(one) :] for row_L, one in zip(masses.float().cpu(), traces, strict=True)]

    def _moves(self, one: Explained) -> Tensor:
        moves_L = torch.full((len(one),), self.interpolate == "all")
        moves_L[one.thinking] = True
        return moves_L & ~(one.restates & self.hide_answer)

    def answer_logp(self, ids_BL: Tensor, attended_BL: Tensor, traces: list[Explained]) -> Tensor:
        """The summed log-probability of each row's answer tokens; rows are padded on the left, so ends are aligned."""
        tail = tail_of(traces)
        inputs = {"input_ids": ids_BL, "use_cache": False}
        if not bool(attended_BL.all()):  # without padding there is no mask, and attention takes its fast causal path
            inputs["attention_mask"] = attended_BL.long()
            inputs["position_ids"] = (attended_BL.long().cumsum(-1) - 1).clamp_min(0)
        if self.keeps_logits:
            inputs["logits_to_keep"] = tail
        if self.fused:
            logp_BA = self.model(**inputs, return_dict=True).log_probs[:, -tail:-1]
        else:
            logp = torch.log_softmax(self.model(**inputs).logits[:, -tail:].float(), -1)
            logp_BA = logp[:, :-1].gather(-1, ids_BL[:, 1 - tail :, None]).squeeze(-1)
        asked_BA, _ = left_padded([_answer_positions(one, tail - 1) for one in traces], False, logp_BA.device)
        return (logp_BA * asked_BA).sum(-1)


def evaluator(
    model,
    traces: Sequence[TokenisedTrace],
    tokenizer=None,
    *,
    target: str = "gold",
    template: str = TEMPLATE,
    context: str = "think",
    interpolate: str = "all",
    hide_answer: bool = False,
    baseline: str | int = "pad",
) -> Evaluator:
    """What is explained of each trace, on which path, checked before the first forward."""
    if interpolate not in INTERPOLATE:
        raise ValueError(f"interpolate={interpolate!r}, expected one of {INTERPOLATE}")
    tokenizer = tokenizer or tokenizer_of(model)
    explained = [explain(trace, tokenizer, target, template, context) for trace in traces]
    limit = getattr(unwrapped(model).config, "max_position_embeddings", None)
    for one in explained:
        if limit is not None and len(one) > limit:
            raise ValueError(
                f"trace {one.trace.id!r} has {len(one)} tokens with prompt and answer, the model takes {limit}; "
                "leave it out or cut it at a segment boundary"
            )
    return Evaluator(model, explained, resolve_baseline(baseline, tokenizer), interpolate, hide_answer)


def unwrapped(model):
    """The transformers model inside a PEFT one."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@dataclass(frozen=True)
class Batching:
    """How rows are put together into forwards."""

    tokens: int | None = None
    rows: int | None = None
    checkpointing: bool | None = None

    def run(self, evaluate: Evaluator, rows: Sequence[Row]) -> Iterator[tuple[Row, float, Tensor]]:
        """Evaluate all rows, longest first so that neighbours pad each other little."""
        together = self.tokens or (CPU_TOKENS if evaluate.device.type == "cpu" else TOKENS)
        lengths = [len(one) for one in evaluate.explained]
        for valued in (True, False):  # values alone and gradients never share a forward
            alike = [row for row in rows if (row.weight is None) == valued]
            alike.sort(key=lambda row: (-lengths[row.index], row.index))
            largest = len(alike)
            while alike:
                longest = lengths[alike[0].index]
                batch = alike[: self.rows or min(largest, max(1, together // longest))]
                checkpointing = longest > (self.tokens or TOKENS) if self.checkpointing is None else self.checkpointing
                try:
                    logp_B, masses = evaluate(batch, checkpointing and not valued)
                except torch.OutOfMemoryError:
                    largest = _smaller(len(batch), longest, fixed=self.rows is not None)
                    continue
                yield from zip(batch, logp_B, masses, strict=True)
                del alike[: len(batch)]


def _smaller(rows: int, tokens: int, fixed: bool) -> int:
    """Half the rows of a batch that did not fit. In a process group the number of forwards is fixed: no retry there."""
    group = torch.distributed.is_available() and torch.distributed.is_initialized()
    if rows == 1 or fixed or (group and torch.distributed.get_world_size() > 1):
        raise ValueError(
            f"out of memory at {rows} rows of {tokens} tokens; give fewer batch_tokens (traces longer than that are "
            "checkpointed), or leave out the longest traces"
        )
    torch.cuda.empty_cache()
    return rows // 2


def tail_of(traces: Sequence[Explained]) -> int:
    """How many positions at the end of a batch hold an answer, and one more, which predicts the first."""
    return max(len(one) - one.answer_span[0] for one in traces) + 1


def _answer_positions(one: Explained, tail: int) -> Tensor:
    asked = torch.zeros(len(one), dtype=torch.bool)
    asked[slice(*one.answer_span)] = True
    return asked[-tail:]


def left_padded(rows: list[Tensor], value, device) -> tuple[Tensor, Tensor]:
    """The rows aligned at their ends, and where they are not padding."""
    width = max(len(row) for row in rows)
    padded = torch.full((len(rows), width), value, dtype=rows[0].dtype)
    filled = torch.zeros((len(rows), width), dtype=torch.bool)
    for i, row in enumerate(rows):
        padded[i, width - len(row) :] = row
        filled[i, width - len(row) :] = True
    return padded.to(device), filled.to(device)

"""Evaluations of one model along the paths of many traces: rows are batched into forwards, which give masses."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from segrl.attribution.gates import ValuePath
from segrl.attribution.path import (
    Baseline,
    EmbeddingPath,
    evaluating,
    feeding_forward_last,
    resolve_baseline,
    warn_of_baseline,
)
from segrl.attribution.target import TEMPLATE, Explained, explain
from segrl.loading import position_limit, tokenizer_of
from segrl.types import TokenisedTrace

PATHS = ("embeddings", "values")
OUTPUTS = ("logp", "log_odds")
INTERPOLATE = ("all", "response")
# Tokens of one forward, by default. For 8,192 tokens a 7B model keeps 45 GiB for the backward without checkpointing.
TOKENS, CPU_TOKENS = 8_192, 2_048


@dataclass(frozen=True)
class Row:
    """One evaluation: a trace at one point of its path. With ``weight`` None it gets a value and no gradient."""

    index: int
    alpha: float  # from the path's beginning at 0 to the input at 1
    weight: float | None


class Evaluator:
    """Evaluates batches of rows on one model: the output at each row's point of the path, and its gradient's masses."""

    def __init__(
        self,
        model,
        explained: list[Explained],
        baseline: str | int,
        *,
        path: str = "embeddings",
        begin: float = 0.0,
        output: str = "logp",
        interpolate: str | None = None,
        hide_answer: bool = False,
    ) -> None:
        self.model = model
        self.embedding = model.get_input_embeddings()
        self.explained = explained
        self.baseline = Baseline(baseline)
        self.path, self.begin, self.output = path, begin, output
        self.interpolate = interpolate or ("all" if path == "embeddings" else "response")
        self.hide_answer = hide_answer
        self.keeps_logits = keeps_logits(model)
        self.fused = hasattr(unwrapped(model), "_verl_fused_kernels_backend")  # returns log-probs and no logits
        self.device = computing_device(model)
        if path == "embeddings":
            warn_of_baseline(self.embedding, baseline)
        if self.fused and (output != "logp" or any(sequence.rival is not None for sequence in explained)):
            raise ValueError(
                "verl's fused kernels give log-probabilities and no logits, which output=log_odds and target=contrast "
                "read; set actor_rollout_ref.model.use_fused_kernels=false, or take output=logp and another target"
            )

    def __call__(self, rows: Sequence[Row], checkpointing: bool = False) -> tuple[list[float], list[Tensor]]:
        """The output of each row, and the masses of each row's tokens (zeros without a weight)."""
        sequences = [self.explained[row.index] for row in rows]
        device = self.device
        ids_BL, attended_BL = left_padded([sequence.input_ids for sequence in sequences], 0, device)
        wants_gradient = rows[0].weight is not None
        with ExitStack() as state:
            state.enter_context(evaluating(self.model, checkpointing))
            path = self._path(rows, sequences)
            state.enter_context(path.hooked(wants_gradient))
            if self.keeps_logits:
                state.enter_context(feeding_forward_last(self.model, tail_of(sequences)))
            state.enter_context(torch.set_grad_enabled(wants_gradient))
            value_B = self.answer_value(ids_BL, attended_BL, sequences)
            masses = path.masses(value_B) * (1 - self.begin) if wants_gradient else torch.zeros(ids_BL.shape)
        masses_B = zip(masses.float().cpu(), sequences, strict=True)
        return value_B.tolist(), [masses_L[-len(sequence) :] for masses_L, sequence in masses_B]

    def _path(self, rows: Sequence[Row], sequences: list[Explained]) -> EmbeddingPath | ValuePath:
        """The rows' points of the path."""
        moves_BL, _ = left_padded([self._moves(sequence) for sequence in sequences], False, self.device)
        hidden_BL, _ = left_padded([sequence.restates & self.hide_answer for sequence in sequences], False, self.device)
        alpha_B = torch.tensor([self.begin + (1 - self.begin) * row.alpha for row in rows], device=self.device)
        if self.path == "values":
            return ValuePath(self.model, alpha_B, moves_BL, hidden_BL)
        return EmbeddingPath(self.embedding, self.baseline, alpha_B, moves_BL, hidden_BL)

    def _moves(self, sequence: Explained) -> Tensor:
        """The positions that move along the path: all or the thinking's, without those of a hidden answer."""
        moves_L = torch.full((len(sequence),), self.interpolate == "all")
        moves_L[sequence.thinking] = True
        return moves_L & ~(sequence.restates & self.hide_answer)

    def answer_value(self, ids_BL: Tensor, attended_BL: Tensor, sequences: list[Explained]) -> Tensor:
        """The output of each row, summed over its answer tokens; rows are padded on the left, so ends are aligned."""
        tail = tail_of(sequences)
        inputs = padded_inputs(self.model, ids_BL, attended_BL, keep=tail)
        if self.fused:
            value_BA = self.model(**inputs, return_dict=True).log_probs[:, -tail:-1]
        else:
            logits = self.model(**inputs).logits[:, -tail:-1].float()
            value_BA = token_values(logits, ids_BL[:, 1 - tail :], self.output, [s.rival for s in sequences])
        answers = [_answer_positions(sequence, tail - 1) for sequence in sequences]
        is_answer_BA, _ = left_padded(answers, False, value_BA.device)
        return (value_BA * is_answer_BA).sum(-1)


def padded_inputs(model, ids_BL: Tensor, attended_BL: Tensor, keep: int) -> dict[str, Any]:
    """The model's inputs for rows padded on the left. A model that can makes the last ``keep`` logits only."""
    inputs: dict[str, Any] = {"input_ids": ids_BL, "use_cache": False}
    if not bool(attended_BL.all()):  # without padding there is no mask, and attention takes its fast causal path
        inputs["attention_mask"] = attended_BL.long()
        inputs["position_ids"] = (attended_BL.long().cumsum(-1) - 1).clamp_min(0)
    if keeps_logits(model):
        inputs["logits_to_keep"] = keep
    return inputs


def keeps_logits(model) -> bool:
    """Whether the model can be told which logits to make."""
    return "logits_to_keep" in inspect.signature(unwrapped(model).forward).parameters


def token_values(logits_BAV: Tensor, ids_BA: Tensor, output: str, rivals: list[int | None]) -> Tensor:
    """The value of each token: its log-probability or log-odds, as ``output`` says, or its logit less its rival's."""
    ids_BA1 = ids_BA[..., None]
    if output == "logp":
        value_BA = torch.log_softmax(logits_BAV, -1).gather(-1, ids_BA1).squeeze(-1)
    else:
        others = logits_BAV.scatter(-1, ids_BA1, float("-inf")).logsumexp(-1)
        value_BA = logits_BAV.gather(-1, ids_BA1).squeeze(-1) - others
    if all(rival is None for rival in rivals):
        return value_BA
    rival_B11 = torch.tensor([[[-1 if rival is None else rival]] for rival in rivals], device=ids_BA.device)
    margin_BA = logits_BAV.gather(-1, ids_BA1) - logits_BAV.gather(-1, rival_B11.clamp_min(0).expand_as(ids_BA1))
    return torch.where(rival_B11[..., 0] < 0, value_BA, margin_BA.squeeze(-1))


def evaluator(
    model,
    traces: Sequence[TokenisedTrace],
    tokenizer=None,
    *,
    target: str = "gold",
    template: str = TEMPLATE,
    context: str = "think",
    baseline: str | int = "pad",
    **path,
) -> Evaluator:
    """The evaluator of these traces along their paths; options and lengths are checked before the first forward.

    ``path`` are the other options of :class:`Evaluator`.
    """
    for name, known in (("path", PATHS), ("output", OUTPUTS), ("interpolate", (*INTERPOLATE, None))):
        if path.get(name, known[0]) not in known:
            raise ValueError(f"{name}={path[name]!r}, expected one of {known}")
    if not 0 <= path.get("begin", 0) < 1:
        raise ValueError(f"begin={path['begin']}, expected a point of the path from 0 to below 1")
    tokenizer = tokenizer or tokenizer_of(model)
    explained = [explain(trace, tokenizer, target, template, context) for trace in traces]
    for sequence in explained:
        check_length(model, sequence.trace.id, len(sequence))
    # The value path has no baseline.
    start = "zero" if path.get("path") == "values" else resolve_baseline(baseline, tokenizer)
    return Evaluator(model, explained, start, **path)


def check_length(model, trace_id: str, tokens: int) -> None:
    """Raise where a trace has more tokens than the model has positions, behind which its numbers mean nothing."""
    limit = position_limit(unwrapped(model).config)
    if limit is not None and tokens > limit:
        raise ValueError(
            f"trace {trace_id!r} has {tokens} tokens with prompt and answer, the model takes {limit}; "
            "leave it out or cut it at a segment boundary"
        )


def unwrapped(model):
    """The transformers model inside a PEFT model; any other model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def computing_device(model) -> torch.device:
    """The device of the model's forwards. FSDP2 may keep shards on the CPU and gather them on its mesh's device."""
    weight = model.get_input_embeddings().weight
    kind = weight.device_mesh.device_type if hasattr(weight, "device_mesh") else weight.device.type
    return weight.device if kind == weight.device.type else torch.empty(0, device=kind).device


@dataclass(frozen=True)
class Batching:
    """How many rows go into one forward, by tokens or by number, and whether it is checkpointed."""

    tokens: int | None = None
    rows: int | None = None
    checkpointing: bool | None = None

    def held(self, device: torch.device) -> int:
        """The number of tokens in one forward: ``tokens`` if set, else the device's default."""
        return self.tokens or (CPU_TOKENS if device.type == "cpu" else TOKENS)

    def checkpoints(self, longest: int) -> bool:
        """Whether a batch is checkpointed: as set, else where its longest row exceeds the tokens of one forward."""
        return longest > (self.tokens or TOKENS) if self.checkpointing is None else self.checkpointing

    def run(self, evaluate: Evaluator, rows: Sequence[Row]) -> Iterator[tuple[Row, float, Tensor]]:
        """Each row with the answer's value and its masses, longest rows first, so that batches need little padding."""
        budget = self.held(evaluate.device)
        lengths = [len(sequence) for sequence in evaluate.explained]
        for value_only in (True, False):  # rows with a gradient and rows without never share a forward
            alike = [row for row in rows if (row.weight is None) == value_only]
            alike.sort(key=lambda row: (-lengths[row.index], row.index))
            largest = len(alike)
            while alike:
                longest = lengths[alike[0].index]
                batch = alike[: self.rows or min(largest, max(1, budget // longest))]
                try:
                    logp_B, masses = evaluate(batch, self.checkpoints(longest) and not value_only)
                except torch.OutOfMemoryError:
                    largest = _smaller(len(batch), longest, fixed=self.rows is not None)
                    continue
                yield from zip(batch, logp_B, masses, strict=True)
                del alike[: len(batch)]


def _smaller(rows: int, tokens: int, fixed: bool) -> int:
    """Half the rows of a batch that did not fit. Raises for one row, and in a process group: its forwards are fixed."""
    group = torch.distributed.is_available() and torch.distributed.is_initialized()
    if rows == 1 or fixed or (group and torch.distributed.get_world_size() > 1):
        raise MemoryError(
            f"out of memory at {rows} rows of {tokens} tokens; give fewer batch_tokens (traces longer than that are "
            "checkpointed), or leave out the longest traces"
        )
    torch.cuda.empty_cache()
    return rows // 2


def tail_of(sequences: Sequence[Explained]) -> int:
    """The number of last positions that hold every answer of a batch, plus one, which predicts the first token."""
    return max(len(sequence) - sequence.answer_span[0] for sequence in sequences) + 1


def _answer_positions(sequence: Explained, tail: int) -> Tensor:
    """Whether each of the last ``tail`` positions holds a token of the answer."""
    is_answer_L = torch.zeros(len(sequence), dtype=torch.bool)
    is_answer_L[slice(*sequence.answer_span)] = True
    return is_answer_L[-tail:]


def left_padded(rows: list[Tensor], value, device) -> tuple[Tensor, Tensor]:
    """The rows as one tensor, aligned at their ends, and a mask that is False at the padding."""
    width = max(len(row) for row in rows)
    padded = torch.full((len(rows), width), value, dtype=rows[0].dtype)
    filled = torch.zeros((len(rows), width), dtype=torch.bool)
    for i, row in enumerate(rows):
        padded[i, width - len(row) :] = row
        filled[i, width - len(row) :] = True
    return padded.to(device), filled.to(device)

"""Integrated gradients of the answer's log-probability along the embeddings of a causal language model ([IG] Eq. 1, 2).

The output of the input embedding is replaced by a hook, so any Hugging Face causal LM works as it is. Rows of a batch
are (trace, node) pairs; only the answer's rows get logits; no parameter gradient is computed or left behind.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor

from segrl.attribution.baseline import Baseline, resolve_baseline, warn_of_baseline
from segrl.attribution.calibration import load_nodes
from segrl.attribution.path import Path, evaluating, feeding_forward_last
from segrl.attribution.quadrature import RULES, Nodes, tripled
from segrl.attribution.target import TEMPLATE, Explained, explain
from segrl.types import Attribution, Trace

FLAT = 0.1  # nat: below this change from baseline to input there is little to attribute
TOKENS, CPU_TOKENS = 16_384, 2_048  # held by one forward unless told otherwise
INTERPOLATE = ("all", "response")
ENGINES = ("segrl", "captum")


@dataclass(frozen=True)
class Row:
    """One evaluation: a trace at one point of its path. ``weight`` None asks for the value alone, no gradient."""

    index: int
    alpha: float
    weight: float | None


@dataclass
class _Sums:
    """What has been evaluated of one trace so far."""

    masses_L: Tensor
    logp_input: float = float("nan")
    logp_baseline: float = float("nan")
    evaluations: int = 0
    grid: int = 0  # nodes of its midpoint grid; 0 while another rule was used

    def add(self, row: Row, logp: float, masses_L: Tensor) -> None:
        self.evaluations += 1
        if row.weight is not None:
            self.masses_L += row.weight * masses_L
        elif row.alpha == 1.0:
            self.logp_input = logp
        else:
            self.logp_baseline = logp

    @property
    def change(self) -> float:
        return self.logp_input - self.logp_baseline

    @property
    def gap(self) -> float:
        return abs(float(self.masses_L.sum()) - self.change) / max(abs(self.change), 1e-12)


def attribute(
    model,
    traces: Sequence[Trace],
    tokenizer=None,
    *,
    rule: str | Nodes = "midpoint",
    nodes: int = 12,
    tolerance: float | None = 0.2,
    max_nodes: int = 108,
    target: str = "gold",
    template: str = TEMPLATE,
    context: str = "think",
    interpolate: str = "all",
    hide_answer: bool = False,
    baseline: str | int = "pad",
    batch_tokens: int | None = None,
    batch_rows: int | None = None,
    checkpointing: bool | None = None,
    engine: str = "segrl",
    progress: Callable[[int, int], None] | None = None,
) -> list[Attribution]:
    """Attribute each trace's answer to its response tokens.

    ``rule`` is a name of ``RULES``, the path of a calibration, or ``(alphas, weights)``. A trace whose masses miss
    ``F(input) - F(baseline)`` by more than ``tolerance`` gets a midpoint grid three times as fine, up to ``max_nodes``;
    what still misses is flagged ``coarse``. ``tolerance=None`` fixes the number of evaluations beforehand, as a process
    group needs it, and ``batch_rows`` how many go into one forward, whatever their lengths. ``batch_tokens`` is how
    many tokens one forward holds (by itself 16,384, and 2,048 on a CPU, where more only leaves the cache); traces
    longer than that, by itself longer than 16,384, are checkpointed, or as ``checkpointing`` says.
    """
    tokenizer = tokenizer or tokenizer_of(model)
    explained = [explain(trace, tokenizer, target, template, context) for trace in traces]
    _check(explained, model, interpolate, engine)
    alphas_J, weights_J = nodes_of(rule, nodes)
    grid = nodes if rule == "midpoint" else 0
    sums = [_Sums(torch.zeros(len(one), dtype=torch.float64), grid=grid) for one in explained]
    rows = [row for index in range(len(explained)) for row in _first_rows(index, alphas_J, weights_J)]
    evaluate = Evaluator(model, explained, resolve_baseline(baseline, tokenizer), interpolate, hide_answer)
    batching = Batching(batch_tokens, batch_rows, checkpointing)
    if engine == "captum":
        from segrl.attribution.captum import captum_masses

        for index, one in enumerate(sums):
            one.masses_L = captum_masses(evaluate, index, rule, nodes)
            one.evaluations = nodes
        rows, tolerance = [row for row in rows if row.weight is None], None
    while rows:
        for done, (row, logp, masses_L) in enumerate(batching.run(evaluate, rows), 1):
            sums[row.index].add(row, logp, masses_L)
            if progress:
                progress(done, len(rows))
        rows = _refinement(sums, len(alphas_J), tolerance, max_nodes)
    return [_finish(one, done, target, tolerance) for one, done in zip(explained, sums, strict=True)]


def masses_on_grid(
    model,
    traces: Sequence[Trace],
    tokenizer=None,
    alphas: Sequence[float] = (),
    *,
    target: str = "gold",
    template: str = TEMPLATE,
    context: str = "think",
    interpolate: str = "all",
    hide_answer: bool = False,
    baseline: str | int = "pad",
    batch_tokens: int | None = None,
) -> list[Tensor]:
    """The masses of every token at every node, ``(nodes, tokens)`` a trace: what a quadrature rule would sum."""
    tokenizer = tokenizer or tokenizer_of(model)
    explained = [explain(trace, tokenizer, target, template, context) for trace in traces]
    _check(explained, model, interpolate, "segrl")
    evaluate = Evaluator(model, explained, resolve_baseline(baseline, tokenizer), interpolate, hide_answer)
    found = [torch.zeros(len(alphas), len(one), dtype=torch.float64) for one in explained]
    node_of = {alpha: j for j, alpha in enumerate(alphas)}
    rows = [Row(index, alpha, 1.0) for index in range(len(explained)) for alpha in alphas]
    for row, _, masses_L in Batching(batch_tokens).run(evaluate, rows):
        found[row.index][node_of[row.alpha]] = masses_L
    return found


def nodes_of(rule: str | Nodes, nodes: int) -> Nodes:
    """The alphas and weights that ``rule`` names, or is."""
    if not isinstance(rule, str):
        return rule
    if rule.endswith(".json"):
        return load_nodes(rule, nodes)
    if rule not in RULES:
        raise ValueError(f"rule={rule!r}, expected one of {', '.join(RULES)}, or the path of a calibration (.json)")
    return RULES[rule](nodes)


def _first_rows(index: int, alphas_J: Tensor, weights_J: Tensor) -> list[Row]:
    nodes = [Row(index, alpha, weight) for alpha, weight in zip(alphas_J.tolist(), weights_J.tolist(), strict=True)]
    return [Row(index, 1.0, None), Row(index, 0.0, None), *nodes]


def _refinement(sums: list[_Sums], nodes: int, tolerance: float | None, max_nodes: int) -> list[Row]:
    """Finer grids for the traces that miss the tolerance. Old midpoints stay, at a third of their weight; a trace that
    another rule missed starts a midpoint grid of its own.
    """
    rows: list[Row] = []
    for index, one in enumerate(sums):
        finer = 3 * (one.grid or nodes)
        if tolerance is None or one.gap <= tolerance or abs(one.change) < FLAT or finer > max_nodes:
            continue
        alphas_J, weights_J = tripled(one.grid) if one.grid else RULES["midpoint"](finer)
        one.masses_L *= 1 / 3 if one.grid else 0
        one.grid = finer
        rows += [Row(index, a, w) for a, w in zip(alphas_J.tolist(), weights_J.tolist(), strict=True)]
    return rows


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


def _finish(one: Explained, done: _Sums, target: str, tolerance: float | None) -> Attribution:
    inside = done.masses_L[one.thinking]
    scores_T = torch.zeros(one.trace.tokens, dtype=torch.float64)
    scores_T[: len(inside)] = inside
    total = float(inside.abs().sum())
    copied = float(done.masses_L[one.restates].abs().sum())
    flags = ["flat"] if abs(done.change) < FLAT else []
    if tolerance is not None and done.gap > tolerance and not flags:
        flags.append("coarse")
    return Attribution(
        trace_id=one.trace.id,
        scores_T=scores_T.float(),
        target=target,
        input_ids=one.input_ids,
        answer_span=one.answer_span,
        logp_input=done.logp_input,
        logp_baseline=done.logp_baseline,
        mass_prompt=float(done.masses_L[: one.thinking.start].sum()),
        mass_suffix=float(done.masses_L[one.thinking.stop :].sum()),
        gap=done.gap,
        copy_share=copied / total if total else 0.0,
        evaluations=done.evaluations,
        flags=tuple(flags),
    )


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
        self.device = self.embedding.weight.device
        warn_of_baseline(self.embedding, baseline)

    def __call__(self, rows: Sequence[Row], checkpointing: bool = False) -> tuple[list[float], list[Tensor]]:
        traces = [self.explained[row.index] for row in rows]
        device = self.device
        ids_BL, attended_BL = _left_padded([one.input_ids for one in traces], 0, device)
        moves_BL, _ = _left_padded([self._moves(one) for one in traces], False, device)
        hidden_BL, _ = _left_padded([one.restates & self.hide_answer for one in traces], False, device)
        alpha_B = torch.tensor([row.alpha for row in rows], device=device)
        path = Path(self.embedding, self.baseline, alpha_B, moves_BL, hidden_BL)
        wants_gradient = rows[0].weight is not None
        with ExitStack() as state:
            state.enter_context(evaluating(self.model, checkpointing))
            state.enter_context(path.hooked(wants_gradient))
            if self.keeps_logits:
                state.enter_context(feeding_forward_last(self.model, _tail(traces)))
            state.enter_context(torch.set_grad_enabled(wants_gradient))
            logp_B = self.answer_logp(ids_BL, attended_BL, traces)
            masses = path.masses(logp_B) if wants_gradient else torch.zeros(ids_BL.shape)
        return logp_B.tolist(), [row_L[-len(one) :] for row_L, one in zip(masses.double().cpu(), traces, strict=True)]

    def _moves(self, one: Explained) -> Tensor:
        moves_L = torch.full((len(one),), self.interpolate == "all")
        moves_L[one.thinking] = True
        return moves_L & ~(one.restates & self.hide_answer)

    def answer_logp(self, ids_BL: Tensor, attended_BL: Tensor, traces: list[Explained]) -> Tensor:
        """The summed log-probability of each row's answer tokens; rows are padded on the left, so ends are aligned."""
        tail = _tail(traces)
        inputs = {"input_ids": ids_BL, "use_cache": False}
        if not bool(attended_BL.all()):  # without padding there is no mask, and attention takes its fast causal path
            inputs["attention_mask"] = attended_BL.long()
            inputs["position_ids"] = (attended_BL.long().cumsum(-1) - 1).clamp_min(0)
        if self.keeps_logits:
            inputs["logits_to_keep"] = tail
        logits = self.model(**inputs).logits
        logp = torch.log_softmax(logits[:, -tail:].float(), -1)
        logp_BA = logp[:, :-1].gather(-1, ids_BL[:, 1 - tail :, None]).squeeze(-1)
        asked_BA, _ = _left_padded([_answer_positions(one, tail - 1) for one in traces], False, logp.device)
        return (logp_BA * asked_BA).sum(-1)


def tokenizer_of(model):
    """The tokenizer that lies beside the model it was loaded from."""
    from transformers import AutoTokenizer

    name = getattr(model.config, "_name_or_path", "")
    if not name:
        raise ValueError("the model does not say where it was loaded from; pass tokenizer=...")
    return AutoTokenizer.from_pretrained(name)


def unwrapped(model):
    """The transformers model inside a PEFT one."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _check(explained: list[Explained], model, interpolate: str, engine: str) -> None:
    for name, value, known in (("interpolate", interpolate, INTERPOLATE), ("engine", engine, ENGINES)):
        if value not in known:
            raise ValueError(f"{name}={value!r}, expected one of {known}")
    limit = getattr(unwrapped(model).config, "max_position_embeddings", None)
    for one in explained:
        if limit is not None and len(one) > limit:
            raise ValueError(
                f"trace {one.trace.id!r} has {len(one)} tokens with prompt and answer, the model takes {limit}; "
                "leave it out or cut it at a segment boundary"
            )


def _tail(traces: Sequence[Explained]) -> int:
    """How many positions at the end of a batch hold an answer, and one more, which predicts the first."""
    return max(len(one) - one.answer_span[0] for one in traces) + 1


def _answer_positions(one: Explained, tail: int) -> Tensor:
    asked = torch.zeros(len(one), dtype=torch.bool)
    asked[slice(*one.answer_span)] = True
    return asked[-tail:]


def _left_padded(rows: list[Tensor], value, device) -> tuple[Tensor, Tensor]:
    """The rows aligned at their ends, and where they are not padding."""
    width = max(len(row) for row in rows)
    padded = torch.full((len(rows), width), value, dtype=rows[0].dtype)
    filled = torch.zeros((len(rows), width), dtype=torch.bool)
    for i, row in enumerate(rows):
        padded[i, width - len(row) :] = row
        filled[i, width - len(row) :] = True
    return padded.to(device), filled.to(device)

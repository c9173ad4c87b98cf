"""Integrated gradients of the answer's log-probability along the embeddings of a causal language model ([IG] Eq. 1, 2).

The output of the input embedding is replaced by a hook, so any Hugging Face causal LM works as it is. Rows of a batch
are (trace, node) pairs; only the answer's rows get logits; no parameter gradient is computed or left behind.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from segrl.attribution.quadrature import RULES, tripled
from segrl.attribution.target import TEMPLATE, Explained, explain
from segrl.types import Attribution, Trace

FLAT = 0.1  # nat: below this change from baseline to input there is little to attribute
INTERPOLATE = ("all", "response")


@dataclass
class _Sums:
    """What has been evaluated of one trace so far."""

    masses_L: Tensor
    logp_input: float = float("nan")
    logp_baseline: float = float("nan")
    evaluations: int = 0
    nodes: int = 0

    @property
    def change(self) -> float:
        return self.logp_input - self.logp_baseline

    @property
    def gap(self) -> float:
        return abs(float(self.masses_L.sum()) - self.change) / max(abs(self.change), 1e-12)


@dataclass(frozen=True)
class _Row:
    """One evaluation: a trace at one point of its path. ``weight`` None asks for the value alone."""

    index: int
    alpha: float
    weight: float | None


def attribute(
    model,
    traces: Sequence[Trace],
    tokenizer=None,
    *,
    rule: str = "midpoint",
    nodes: int = 12,
    tolerance: float | None = 0.2,
    max_nodes: int = 108,
    target: str = "gold",
    template: str = TEMPLATE,
    context: str = "think",
    interpolate: str = "all",
    hide_answer: bool = False,
    baseline: str | int = "pad",
    batch_tokens: int = 16_384,
    batch_rows: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Attribution]:
    """Attribute each trace's answer to its response tokens.

    A trace whose masses miss ``F(input) - F(baseline)`` by more than ``tolerance`` gets its midpoint grid tripled, up
    to ``max_nodes``; what still misses is flagged ``coarse``. ``tolerance=None`` fixes the number of evaluations
    beforehand, as a process group needs it; ``batch_rows`` fixes how many go into one forward, whatever their lengths.
    """
    tokenizer = tokenizer or tokenizer_of(model)
    explained = [explain(trace, tokenizer, target, template, context) for trace in traces]
    _check_lengths(explained, model)
    evaluate = _Evaluator(model, explained, baseline_id(baseline, tokenizer), interpolate, hide_answer)
    sums = [_Sums(torch.zeros(len(one), dtype=torch.float64)) for one in explained]
    todo = [row for i in range(len(explained)) for row in _first_rows(i, *_rule(rule)(nodes))]
    while todo:
        _run(evaluate, todo, sums, explained, batch_tokens, batch_rows, progress)
        todo = _refinement(sums, rule, nodes, tolerance, max_nodes)
    return [_finish(one, done, target, tolerance) for one, done in zip(explained, sums, strict=True)]


def _first_rows(index: int, alphas_J: Tensor, weights_J: Tensor) -> list[_Row]:
    nodes = [_Row(index, alpha, weight) for alpha, weight in zip(alphas_J.tolist(), weights_J.tolist(), strict=True)]
    return [_Row(index, 1.0, None), _Row(index, 0.0, None), *nodes]


def _refinement(sums: list[_Sums], rule: str, nodes: int, tolerance: float | None, max_nodes: int) -> list[_Row]:
    """Tripled grids for the traces that miss the tolerance; the old nodes stay, at a third of their weight."""
    rows: list[_Row] = []
    for index, one in enumerate(sums):
        one.nodes = one.nodes or nodes
        if tolerance is None or rule != "midpoint" or one.gap <= tolerance or abs(one.change) < FLAT:
            continue
        if one.nodes * 3 <= max_nodes:
            one.masses_L /= 3
            rows += [_Row(index, a, w) for a, w in zip(*(part.tolist() for part in tripled(one.nodes)), strict=True)]
            one.nodes *= 3
    return rows


def _run(evaluate, rows, sums, explained, batch_tokens, batch_rows, progress) -> None:
    done = 0
    for batch in _batches(rows, [len(one) for one in explained], batch_tokens, batch_rows):
        logp_B, masses = evaluate(batch)
        for row, logp, masses_L in zip(batch, logp_B, masses, strict=True):
            one = sums[row.index]
            one.evaluations += 1
            if row.weight is not None:
                one.masses_L += row.weight * masses_L
            elif row.alpha == 1.0:
                one.logp_input = logp
            else:
                one.logp_baseline = logp
        done += len(batch)
        if progress:
            progress(done, len(rows))


def _batches(rows: list[_Row], lengths: list[int], batch_tokens: int, batch_rows: int | None) -> Iterator[list[_Row]]:
    """Longest first, so that neighbours pad each other little. Values and gradients never share a batch."""
    for valued in (True, False):
        alike = [row for row in rows if (row.weight is None) == valued]
        alike.sort(key=lambda row: (-lengths[row.index], row.index))
        while alike:
            size = batch_rows or max(1, batch_tokens // lengths[alike[0].index])
            yield alike[:size]
            del alike[:size]


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


class _Evaluator:
    """Evaluates batches of rows on one model: F at each row's point of the path, and its gradient's masses."""

    def __init__(
        self, model, explained: list[Explained], baseline_id: int, interpolate: str, hide_answer: bool
    ) -> None:
        if interpolate not in INTERPOLATE:
            raise ValueError(f"interpolate={interpolate!r}, expected one of {INTERPOLATE}")
        self.model = model
        self.embedding = model.get_input_embeddings()
        self.explained = explained
        self.baseline_id = baseline_id
        self.interpolate = interpolate
        self.hide_answer = hide_answer
        self.keeps_logits = "logits_to_keep" in inspect.signature(unwrapped(model).forward).parameters

    def __call__(self, rows: list[_Row]) -> tuple[list[float], list[Tensor]]:
        traces = [self.explained[row.index] for row in rows]
        device = next(self.model.parameters()).device
        ids_BL, attended_BL = _left_padded([one.input_ids for one in traces], self.baseline_id)
        moves_BL, _ = _left_padded([self._moves(one) for one in traces], False)
        hidden_BL, _ = _left_padded([one.restates & self.hide_answer for one in traces], False)
        alpha_B = torch.tensor([row.alpha for row in rows], dtype=torch.float32)
        path = _Path(self.embedding, self.baseline_id, alpha_B.to(device), moves_BL.to(device), hidden_BL.to(device))
        wants_gradient = rows[0].weight is not None
        with evaluating(self.model), path.hooked(wants_gradient), torch.set_grad_enabled(wants_gradient):
            logp_B = self._answer_logp(ids_BL.to(device), attended_BL.to(device), traces)
            masses = path.masses(logp_B) if wants_gradient else torch.zeros(ids_BL.shape)
        return logp_B.tolist(), [row_L[-len(one) :] for row_L, one in zip(masses.double().cpu(), traces, strict=True)]

    def _moves(self, one: Explained) -> Tensor:
        moves_L = torch.full((len(one),), self.interpolate == "all")
        moves_L[one.thinking] = True
        return moves_L & ~(one.restates & self.hide_answer)

    def _answer_logp(self, ids_BL: Tensor, attended_BL: Tensor, traces: list[Explained]) -> Tensor:
        """The summed log-probability of each row's answer tokens; rows are padded on the left, so ends are aligned."""
        tail = max(len(one) - one.answer_span[0] for one in traces) + 1
        inputs = {"input_ids": ids_BL, "use_cache": False}
        if not bool(attended_BL.all()):
            inputs["attention_mask"] = attended_BL.long()
        inputs["position_ids"] = (attended_BL.long().cumsum(-1) - 1).clamp_min(0)
        logits = self.model(**inputs, **({"logits_to_keep": tail} if self.keeps_logits else {})).logits
        logp = torch.log_softmax(logits[:, -tail:].float(), -1)
        logp_BA = logp[:, :-1].gather(-1, ids_BL[:, 1 - tail :, None]).squeeze(-1)
        asked_BA, _ = _left_padded([_answer_positions(one, tail - 1) for one in traces], False)
        return (logp_BA * asked_BA.to(logp_BA.device)).sum(-1)


class _Path:
    """The straight path of the embeddings: position by position, ``baseline + alpha * (input - baseline)``."""

    def __init__(self, embedding, baseline_id: int, alpha_B: Tensor, moves_BL: Tensor, hidden_BL: Tensor) -> None:
        self.embedding = embedding
        self.baseline_id = baseline_id
        # How far each position stays away from its input: 0 at rest, 1 - alpha when moving, 1 when hidden.
        self.away_BL = torch.where(moves_BL, 1 - alpha_B[:, None], 0.0) + hidden_BL.float()
        self.moves_BL = moves_BL
        self.point: Tensor | None = None
        self.reach: Tensor | None = None

    @contextmanager
    def hooked(self, wants_gradient: bool) -> Iterator[None]:
        def replace(module, args, output: Tensor) -> Tensor:
            with torch.no_grad():
                baseline = type(module).forward(module, torch.full_like(args[0][:1, :1], self.baseline_id))
                reach = output.float() - baseline.float()
                point = (output.float() - self.away_BL[..., None] * reach).to(output.dtype)
            self.reach, self.point = reach, point.requires_grad_(wants_gradient)
            return self.point

        handle = self.embedding.register_forward_hook(replace)
        try:
            yield
        finally:
            handle.remove()

    def masses(self, logp_B: Tensor) -> Tensor:
        """``(input - baseline) . gradient`` for each moving position."""
        assert self.point is not None
        assert self.reach is not None
        (gradient,) = torch.autograd.grad(logp_B.sum(), self.point)
        return ((gradient.float() * self.reach).sum(-1) * self.moves_BL).detach()


@contextmanager
def evaluating(model) -> Iterator[None]:
    """Eval mode with parameters that ask for no gradient, both put back as they were."""
    training = [module for module in model.modules() if module.training]
    # FSDP2 shards know their own requires_grad; leave those alone, autograd.grad touches no parameter either way.
    trained = [p for p in model.parameters() if p.requires_grad and not hasattr(p, "device_mesh")]
    model.eval()
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
        for module in training:
            module.training = True


def baseline_id(baseline: str | int, tokenizer) -> int:
    """The token whose embedding is the uninformative end of the path."""
    if isinstance(baseline, int):
        return baseline
    if baseline != "pad":
        raise ValueError(f"baseline={baseline!r}, expected 'pad' or a token id")
    for id in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if id is not None:
            return id
    raise ValueError("the tokenizer has neither a pad nor an end-of-text token; pass baseline=<token id>")


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


def _rule(rule: str) -> Callable:
    if rule not in RULES:
        raise ValueError(f"rule={rule!r}, expected one of {', '.join(RULES)}")
    return RULES[rule]


def _check_lengths(explained: list[Explained], model) -> None:
    limit = getattr(unwrapped(model).config, "max_position_embeddings", None)
    for one in explained:
        if limit is not None and len(one) > limit:
            raise ValueError(
                f"trace {one.trace.id!r} has {len(one)} tokens with prompt and answer, the model takes {limit}; "
                "leave it out or cut it at a segment boundary"
            )


def _answer_positions(one: Explained, tail: int) -> Tensor:
    asked = torch.zeros(len(one), dtype=torch.bool)
    asked[slice(*one.answer_span)] = True
    return asked[-tail:]


def _left_padded(rows: list[Tensor], value) -> tuple[Tensor, Tensor]:
    """The rows aligned at their ends, and where they are not padding."""
    width = max(len(row) for row in rows)
    padded = torch.full((len(rows), width), value, dtype=rows[0].dtype)
    filled = torch.zeros((len(rows), width), dtype=torch.bool)
    for i, row in enumerate(rows):
        padded[i, width - len(row) :] = row
        filled[i, width - len(row) :] = True
    return padded, filled

"""Integrated gradients of the answer's log-probability along the embeddings of a causal language model ([IG] Eq. 1, 2).

The output of the input embedding is replaced by a hook, so any Hugging Face causal LM works as it is. Rows of a batch
are (trace, node) pairs; only the answer's rows get logits; no parameter gradient is computed or left behind. How that
is done stands in evaluator.py; here is what is evaluated and what becomes of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from segrl.attribution.baseline import resolve_baseline
from segrl.attribution.calibration import load_nodes
from segrl.attribution.evaluator import Batching, Evaluator, Row, unwrapped
from segrl.attribution.quadrature import RULES, Nodes, tripled
from segrl.attribution.target import TEMPLATE, Explained, explain
from segrl.types import Attribution, Trace

FLAT = 0.1  # nat: below this change from baseline to input there is little to attribute
INTERPOLATE = ("all", "response")
ENGINES = ("segrl", "captum")


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
    compat: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Attribution]:
    """Attribute each trace's answer to its response tokens.

    ``rule`` is a name of ``RULES``, the path of a calibration, or ``(alphas, weights)``. A trace whose masses miss
    ``F(input) - F(baseline)`` by more than ``tolerance`` gets a midpoint grid three times as fine, up to ``max_nodes``;
    what still misses is flagged ``coarse``. ``tolerance=None`` fixes the number of evaluations beforehand, as a process
    group needs it, and ``batch_rows`` how many go into one forward, whatever their lengths. ``batch_tokens`` is how
    many tokens one forward holds (by itself 16,384, and 2,048 on a CPU, where more only leaves the cache); traces
    longer than that, by itself longer than 16,384, are checkpointed, or as ``checkpointing`` says.
    ``compat="authors"`` gives the numbers of the paper's code.
    """
    tokenizer = tokenizer or tokenizer_of(model)
    explained = [explain(trace, tokenizer, target, template, context) for trace in traces]
    _check(explained, model, interpolate, engine)
    if compat is not None:
        rule, nodes, tolerance = _compatible(compat)
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
    unit = compat == "authors"
    return [_finish(one, done, target, tolerance, unit) for one, done in zip(explained, sums, strict=True)]


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


def _compatible(compat: str) -> tuple[str, int, None]:
    """The paper's code: 50 nodes at linspace(0, 1, 50), no refinement; its scores have length one over the sequence."""
    if compat != "authors":
        raise ValueError(f"compat={compat!r}, expected authors, or null for segrl's own way")
    return "authors", 50, None


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


def _finish(one: Explained, done: _Sums, target: str, tolerance: float | None, unit: bool) -> Attribution:
    inside = done.masses_L[one.thinking] / (done.masses_L.norm() if unit else 1)
    scores_T = torch.zeros(one.trace.tokens, dtype=torch.float64)
    scores_T[: len(inside)] = inside
    total = float(done.masses_L[one.thinking].abs().sum())
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


def tokenizer_of(model):
    """The tokenizer that lies beside the model it was loaded from."""
    from transformers import AutoTokenizer

    name = getattr(model.config, "_name_or_path", "")
    if not name:
        raise ValueError("the model does not say where it was loaded from; pass tokenizer=...")
    return AutoTokenizer.from_pretrained(name)


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

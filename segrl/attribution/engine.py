"""Integrated gradients of the answer's log-probability along the embeddings of a causal language model ([IG] Eq. 1, 2).

The output of the input embedding is replaced by a hook, so any Hugging Face causal LM works as it is. Rows of a batch
are (trace, node) pairs; only the answer's rows get logits; no parameter gradient is computed or left behind. How that
is done stands in evaluator.py; here is what is evaluated and what becomes of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from segrl.attribution.calibration import load_nodes
from segrl.attribution.evaluator import Batching, Evaluator, Row, evaluator
from segrl.attribution.quadrature import RULES, Nodes, thirds, unevenness, worst
from segrl.attribution.target import TEMPLATE, Explained
from segrl.types import Attribution, TokenisedTrace

FLAT = 0.1  # nat: below this change from baseline to input there is little to attribute
ENGINES = ("segrl", "captum")
# The settings that say what of a trace is explained, and what moves along the path.
EXPLAINED = ("target", "template", "context", "interpolate", "hide_answer", "baseline")


@dataclass(frozen=True)
class AttributionSettings:
    """The options of :func:`attribute`, and the section ``attribution`` of a command's config."""

    # or right (the paper's Eq. 2), left, trapezoid, gauss_legendre, authors, a calibration's path
    rule: str = "midpoint"
    nodes: int = 12
    # completeness gap or unevenness above which a trace gets nodes where its path is steep; null: never
    tolerance: float | None = 0.2
    max_nodes: int = 108
    target: str = "gold"  # or own: the answer that the response itself boxes
    template: str = TEMPLATE
    context: str = "think"  # or full: explain after the whole response, visible answer included
    interpolate: str = "all"  # or response: the prompt and the appended answer stay at their input
    hide_answer: bool = False  # hold tokens that restate the answer at the baseline
    baseline: Any = "pad"  # or a token id
    batch_tokens: int | None = None  # held by one forward; null: 16384, and 2048 on a CPU
    # activation checkpointing; null: for traces longer than batch_tokens, or than 16384
    checkpointing: bool | None = None
    engine: str = "segrl"  # or captum
    compat: str | None = None  # or authors: the numbers of the paper's code, whatever rule, nodes and tolerance say


class _Found:
    """What has been evaluated of one trace so far: its nodes along the path, and the values at both ends."""

    def __init__(self, tokens: int, midpoints: bool) -> None:
        self.masses_L = torch.zeros(tokens, dtype=torch.float64)
        self.midpoints = midpoints  # does every node stand in the middle of a cell as wide as its weight?
        self.nodes: dict[float, tuple[float, Tensor]] = {}  # alpha -> weight, masses_L
        self.logp_input: float | None = None
        self.logp_baseline: float | None = None
        self.unevenness = float("nan")
        self.evaluations = 0

    def add(self, row: Row, logp: float, masses_L: Tensor) -> None:
        self.evaluations += 1
        if row.weight is not None:
            twice, _ = self.nodes.get(row.alpha, (0.0, None))  # a rule of a user's own may name a node twice
            self.nodes[row.alpha] = (twice + row.weight, masses_L)
        elif row.alpha == 1.0:
            self.logp_input = logp
        else:
            self.logp_baseline = logp

    def integrate(self) -> Tensor:
        """Sum the nodes; returns the unevenness of each, in the order of ``sorted(self.nodes)``."""
        weights, masses = zip(*(self.nodes[alpha] for alpha in sorted(self.nodes)), strict=True)
        weights_J, masses_JL = torch.tensor(weights, dtype=torch.float64), torch.stack(masses).double()
        self.masses_L = weights_J @ masses_JL
        uneven_J = unevenness(masses_JL, weights_J) if self.midpoints else torch.zeros(0)
        self.unevenness = float(uneven_J.sum()) if self.midpoints else float("nan")
        return uneven_J

    @property
    def change(self) -> float | None:
        """How far the answer's log-probability moves along the path; None without a certificate."""
        if self.logp_input is None or self.logp_baseline is None:
            return None
        return self.logp_input - self.logp_baseline

    @property
    def gap(self) -> float | None:
        if self.change is None:
            return None
        return abs(float(self.masses_L.sum()) - self.change) / max(abs(self.change), 1e-12)

    @property
    def flat(self) -> bool:
        return self.change is not None and abs(self.change) < FLAT

    def misses(self, tolerance: float | None) -> bool:
        """Whether the grid is too coarse, by the completeness gap or by its own unevenness."""
        if tolerance is None or self.gap is None or self.flat:
            return False
        return max(self.gap, self.unevenness if self.midpoints else 0.0) > tolerance

    def finer(self, uneven_J: Tensor, nodes: int, max_nodes: int) -> dict[float, float]:
        """New nodes and their weights: the worst cells in three, or a midpoint grid where another rule has missed."""
        if not self.midpoints and 3 * nodes <= max_nodes:
            self.nodes, self.midpoints = {}, True
            return dict(zip(*(column.tolist() for column in RULES["midpoint"](3 * nodes)), strict=True))
        room = (max_nodes - len(self.nodes)) // 2 if self.midpoints else 0
        alphas, new = sorted(self.nodes), {}
        for alpha in (alphas[j] for j in worst(uneven_J, room)):
            width, masses_L = self.nodes[alpha]
            self.nodes[alpha] = (width / 3, masses_L)
            new.update(dict.fromkeys(thirds(alpha, width), width / 3))
        return new


def attribute(
    model,
    traces: Sequence[TokenisedTrace],
    tokenizer=None,
    *,
    batch_rows: int | None = None,
    certificate: bool = True,
    finite: bool = True,
    progress: Callable[[int, int], None] | None = None,
    **options,
) -> list[Attribution]:
    """Attribute each trace's answer to its response tokens. ``options`` are those of :class:`AttributionSettings`.

    ``rule`` is a name of ``RULES``, the path of a calibration, or ``(alphas, weights)``. Where the masses of a trace
    miss ``F(input) - F(baseline)`` by more than ``tolerance``, or its midpoint grid is more uneven than that, the cells
    at fault are cut in three, up to ``max_nodes``; what still misses is flagged ``coarse``.

    ``tolerance=None`` fixes the number of evaluations beforehand, as a process group needs it, and ``batch_rows`` how
    many go into one forward, whatever their lengths. ``batch_tokens`` is how many tokens one forward holds (by itself
    16,384, and 2,048 on a CPU, where more only leaves the cache); traces longer than that, by itself longer than
    16,384, are checkpointed, or as ``checkpointing`` says. ``compat="authors"`` gives the numbers of the paper's code.
    ``certificate=False`` leaves out the two values at the ends of the path, and with them the gap: for few nodes and
    no tolerance. A trace whose scores are not finite is an error; with ``finite=False`` it gets zeros and the flag
    ``not_finite``, and the other traces their scores.
    """
    settings = AttributionSettings(**options)
    if settings.engine not in ENGINES:
        raise ValueError(f"engine={settings.engine!r}, expected one of {ENGINES}")
    evaluate = evaluator(model, traces, tokenizer, **{name: getattr(settings, name) for name in EXPLAINED})
    rule, nodes, tolerance = settings.rule, settings.nodes, settings.tolerance
    if settings.compat is not None:
        rule, nodes, tolerance = _compatible(settings.compat)
    alphas_J, weights_J = nodes_of(rule, nodes)
    if tolerance is not None and not certificate:
        raise ValueError(f"tolerance={tolerance} is held against the certificate; give tolerance=None without one")
    sums = [_Found(len(one), midpoints=rule == "midpoint") for one in evaluate.explained]
    rows = [row for index in range(len(sums)) for row in _first_rows(index, alphas_J, weights_J, certificate)]
    if settings.engine == "captum":
        _ask_captum(evaluate, sums, rule, nodes)
        rows, tolerance = [row for row in rows if row.weight is None], None
    batching = Batching(settings.batch_tokens, batch_rows, settings.checkpointing)
    while rows:
        for done, (row, logp, masses_L) in enumerate(batching.run(evaluate, rows), 1):
            sums[row.index].add(row, logp, masses_L)
            if progress:
                progress(done, len(rows))
        touched = dict.fromkeys(row.index for row in rows)
        rows = [new for i in touched for new in _refinement(i, sums[i], len(alphas_J), tolerance, settings.max_nodes)]
    unit = settings.compat == "authors"
    return [
        _finish(one, done, target=settings.target, tolerance=tolerance, unit=unit, finite=finite)
        for one, done in zip(evaluate.explained, sums, strict=True)
    ]


def _ask_captum(evaluate: Evaluator, sums: Sequence[_Found], rule: str | Nodes, nodes: int) -> None:
    """All nodes of each trace at once; what is left to evaluate are the ends of the path."""
    from segrl.attribution.captum import captum_masses

    for index, one in enumerate(sums):
        one.nodes[1.0] = (1.0, captum_masses(evaluate, index, rule, nodes))
        one.evaluations, one.midpoints = nodes, False


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


def _first_rows(index: int, alphas_J: Tensor, weights_J: Tensor, certificate: bool) -> list[Row]:
    ends = [Row(index, 1.0, None), Row(index, 0.0, None)] if certificate else []
    nodes = [Row(index, alpha, weight) for alpha, weight in zip(alphas_J.tolist(), weights_J.tolist(), strict=True)]
    return ends + nodes


def _refinement(index: int, one: _Found, nodes: int, tolerance: float | None, max_nodes: int) -> list[Row]:
    """More nodes for a trace that misses the tolerance, where on the path its grid is uneven."""
    uneven_J = one.integrate()
    more = one.finer(uneven_J, nodes, max_nodes) if one.misses(tolerance) else {}
    return [Row(index, alpha, weight) for alpha, weight in more.items()]


def _finish(
    one: Explained, done: _Found, *, target: str, tolerance: float | None, unit: bool, finite: bool
) -> Attribution:
    inside = done.masses_L[one.thinking] / (done.masses_L.norm() if unit else 1)
    scores_T = torch.zeros(one.trace.tokens, dtype=torch.float64)
    scores_T[: len(inside)] = inside
    total = float(done.masses_L[one.thinking].abs().sum())
    copied = float(done.masses_L[one.restates].abs().sum())
    flags = ["flat"] if done.flat else []
    if done.misses(tolerance):
        flags.append("coarse")
    if not finite and not bool(torch.isfinite(scores_T).all()):
        flags.append("not_finite")
        scores_T = torch.zeros_like(scores_T)
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
        unevenness=done.unevenness,
    )

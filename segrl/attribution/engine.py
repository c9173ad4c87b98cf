"""Integrated gradients of the answer along a path through a causal language model.

``path=embeddings`` goes from a baseline to the input's embeddings ([IG] Eq. 1, 2), ``path=values`` opens gates on the
value vectors of every layer. Both are hooks, so a Hugging Face causal LM works as it is. Rows of a batch are (trace,
node) pairs; only the answer's rows get logits; no parameter gradient is computed or left behind.

This module says which nodes are evaluated, where the path gets more of them, and what becomes of their masses;
evaluator.py runs the forwards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from segrl.attribution.evaluator import Batching, Evaluator, Row, evaluator
from segrl.attribution.quadrature import RULES, Nodes, nodes_of, thirds, unevenness, worst
from segrl.attribution.target import TEMPLATE, Explained
from segrl.types import Attribution, TokenisedTrace

FLAT = 0.1  # nat: below this change from baseline to input there is little to attribute
ENGINES = ("segrl", "captum")
# The settings that say what of a trace is explained, and what moves along the path.
EXPLAINED = ("target", "template", "context", "path", "output", "begin", "interpolate", "hide_answer", "baseline")
# The paper's path, refined until it is complete: attribution=paper in a command.
PAPER: dict[str, Any] = {"path": "embeddings", "output": "logp", "nodes": 12, "tolerance": 0.2}


@dataclass(frozen=True)
class AttributionSettings:
    """How an answer is attributed to tokens: the section ``attribution``, the options of :func:`attribute`."""

    # where the nodes lie: midpoint, right (the paper's Eq. 2), left, trapezoid, gauss_legendre, authors, a file of
    # `segrl calibrate`
    quadrature: str = "midpoint"
    nodes: int = 1  # points of the path; one gate at 0.5 ranks thoughts no worse than many do (docs/truth.md)
    # the gap or unevenness above which a trace gets more nodes where its path is steep, such as 0.2; null: never, since
    # one gate is read for its ranks and signs
    tolerance: float | None = None
    max_nodes: int = 108  # nodes of a trace at most, where there is a tolerance
    # the answer to explain: gold, own (the response's), or contrast (own against gold, where the two part)
    target: str = "gold"
    template: str = TEMPLATE  # the text behind the thinking, with the answer
    context: str = "think"  # explain after the thinking (think), or after the whole response (full)
    # values: gates on the value vectors of every layer; embeddings: the paper's. Gates need no baseline: one evaluation
    # is enough, on pretrained models too
    path: str = "values"
    # what is read of the answer: log_odds, which also move where the model is sure, or logp, the paper's;
    # target=contrast reads its own
    output: str = "log_odds"
    begin: float = 0.0  # where on the path to begin, 1 being the input
    # the positions that move: all or response; null: all with path=embeddings, as in the paper, else the response
    interpolate: str | None = None
    hide_answer: bool = False  # hold tokens that restate the answer at the baseline, or their gates at zero
    baseline: Any = "pad"  # the uninformative end of path=embeddings: pad or a token id
    batch_tokens: int | None = None  # tokens in one forward; null: 8192, and 2048 on a CPU
    # activation checkpointing; null: for traces longer than batch_tokens, or than 8192
    checkpointing: bool | None = None
    engine: str = "segrl"  # what integrates: segrl or captum
    # authors: the numbers of the paper's code; quadrature, nodes and tolerance then have no effect
    compat: str | None = None


class _PathSums:
    """The evaluations of one trace so far: its nodes along the path and their sum, and the values at both ends."""

    def __init__(self, tokens: int, midpoints: bool) -> None:
        self.masses_L = torch.zeros(tokens, dtype=torch.float64)
        self.midpoints = midpoints  # does every node stand in the middle of a cell as wide as its weight?
        self.nodes: dict[float, tuple[float, Tensor]] = {}  # alpha -> weight, masses_L
        self.logp_input: float | None = None
        self.logp_baseline: float | None = None
        self.unevenness = float("nan")
        self.evaluations = 0

    def add(self, row: Row, logp: float, masses_L: Tensor) -> None:
        """Add an evaluation: a node with its weight, or the value at an end of the path."""
        self.evaluations += 1
        if row.weight is not None:
            weight, _ = self.nodes.get(row.alpha, (0.0, None))  # a user's function may name a node twice
            self.nodes[row.alpha] = (weight + row.weight, masses_L)
        elif row.alpha == 1.0:
            self.logp_input = logp
        else:
            self.logp_baseline = logp

    def integrate(self) -> Tensor:
        """The unevenness of each node, in the order of ``sorted(self.nodes)``; sets ``masses_L`` to the nodes' sum."""
        weights, masses = zip(*(self.nodes[alpha] for alpha in sorted(self.nodes)), strict=True)
        weights_J, masses_JL = torch.tensor(weights, dtype=torch.float64), torch.stack(masses).double()
        self.masses_L = weights_J @ masses_JL
        uneven_J = unevenness(masses_JL, weights_J) if self.midpoints else torch.zeros(0)
        self.unevenness = float(uneven_J.sum()) if self.midpoints else float("nan")
        return uneven_J

    @property
    def change(self) -> float | None:
        """The change of the answer's value from baseline to input; None without a certificate."""
        if self.logp_input is None or self.logp_baseline is None:
            return None
        return self.logp_input - self.logp_baseline

    @property
    def gap(self) -> float | None:
        """The share of the change that the masses miss; None without a certificate."""
        if self.change is None:
            return None
        return abs(float(self.masses_L.sum()) - self.change) / max(abs(self.change), 1e-12)

    @property
    def flat(self) -> bool:
        """Whether the change is too small to attribute."""
        return self.change is not None and abs(self.change) < FLAT

    def misses(self, tolerance: float | None) -> bool:
        """Whether the completeness gap or the unevenness of the grid is above ``tolerance``."""
        if tolerance is None or self.gap is None or self.flat:
            return False
        return max(self.gap, self.unevenness if self.midpoints else 0.0) > tolerance

    def finer(self, uneven_J: Tensor, nodes: int, max_nodes: int) -> dict[float, float]:
        """The weight of each new node, by its alpha.

        The worst cells of a midpoint grid are cut in three. A midpoint grid replaces the nodes of another quadrature.
        """
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
    certificate: bool | None = None,
    finite: bool = True,
    progress: Callable[[int, int], None] | None = None,
    **options,
) -> list[Attribution]:
    """One attribution a trace: what each response token contributes to the answer.

    ``options`` are those of :class:`AttributionSettings`.

    By default a trace takes one evaluation, the gradient to a gate at 0.5 on the value path; ``**PAPER`` gives the
    paper's path, refined until it is complete.

    ``quadrature`` is a name of ``RULES``, the path of a calibration, or ``(alphas, weights)``. With a ``tolerance`` a
    trace is refined while its gap (the share of ``F(input) - F(baseline)`` that its masses miss) or the unevenness of
    its midpoint grid is larger: the worst cells are cut in three, up to ``max_nodes`` nodes. A trace that still misses
    the tolerance gets the flag ``coarse``. Without a tolerance the number of evaluations is fixed beforehand, as a
    process group needs it.

    ``batch_tokens`` is the number of tokens in one forward (default 8,192; 2,048 on a CPU, whose cache holds no more).
    ``batch_rows`` is the number of rows in one forward, whatever their lengths. Traces longer than ``batch_tokens``
    (default 8,192) are checkpointed; ``checkpointing`` True or False decides for all.

    ``compat="authors"`` with ``**PAPER`` gives the numbers of the paper's code. ``certificate=False`` leaves out the
    values at the two ends of the path, and with them the gap; so does None, with a single node and no tolerance. A
    trace whose scores are not finite is an error; with ``finite=False`` it gets zeros and the flag ``not_finite``, and
    the other traces keep their scores.
    """
    if "rule" in options:
        raise TypeError("attribute() has no option rule; quadrature= says how nodes are chosen")
    settings = AttributionSettings(**options)
    plan = _planned(settings, certificate)
    evaluate = evaluator(model, traces, tokenizer, **{name: getattr(settings, name) for name in EXPLAINED})
    sums = [_PathSums(len(sequence), midpoints=plan.quadrature == "midpoint") for sequence in evaluate.explained]
    rows = [row for index in range(len(sums)) for row in _first_rows(index, plan)]
    if settings.engine == "captum":
        _add_captum(evaluate, sums, plan)
        rows, plan = [row for row in rows if row.weight is None], plan._replace(tolerance=None)
    batching = Batching(settings.batch_tokens, batch_rows, settings.checkpointing)
    while rows:
        for count, (row, logp, masses_L) in enumerate(batching.run(evaluate, rows), 1):
            sums[row.index].add(row, logp, masses_L)
            if progress:
                progress(count, len(rows))
        evaluated = dict.fromkeys(row.index for row in rows)
        rows = [row for i in evaluated for row in _refinement(i, sums[i], plan, settings.max_nodes)]
    return [
        _attribution(sequence, path_sums, settings, plan.tolerance, finite)
        for sequence, path_sums in zip(evaluate.explained, sums, strict=True)
    ]


# --- which nodes are evaluated ---------------------------------------------------------------------------------------


class _Plan(NamedTuple):
    """The nodes at which each trace is evaluated first, whether the ends of its path are evaluated too, and the gap
    above which it gets more nodes."""

    quadrature: str | Nodes
    nodes: int
    alphas_J: Tensor
    weights_J: Tensor
    certificate: bool
    tolerance: float | None


def _planned(settings: AttributionSettings, certificate: bool | None) -> _Plan:
    """The plan that follows from the settings; without a word on it, many nodes or a tolerance bring a certificate."""
    if settings.engine not in ENGINES:
        raise ValueError(f"engine={settings.engine!r}, expected one of {ENGINES}")
    quadrature, nodes, tolerance = settings.quadrature, settings.nodes, settings.tolerance
    if settings.compat is not None:
        quadrature, nodes, tolerance = _compatible(settings)
    alphas_J, weights_J = nodes_of(quadrature, nodes)
    if certificate is None:
        certificate = len(alphas_J) > 1 or tolerance is not None
    if tolerance is not None and not certificate:
        raise ValueError(f"tolerance={tolerance} needs a certificate; give tolerance=None with certificate=False")
    return _Plan(quadrature, nodes, alphas_J, weights_J, certificate, tolerance)


def _add_captum(evaluate: Evaluator, sums: Sequence[_PathSums], plan: _Plan) -> None:
    """Give each trace the masses that captum has summed over all nodes; the ends of the path are evaluated later."""
    from segrl.attribution.captum import captum_masses

    for index, path_sums in enumerate(sums):
        path_sums.nodes[1.0] = (1.0, captum_masses(evaluate, index, plan.quadrature, plan.nodes))
        path_sums.evaluations, path_sums.midpoints = plan.nodes, False


def _compatible(settings: AttributionSettings) -> tuple[str, int, None]:
    """Quadrature, number of nodes and tolerance of the paper's code: linspace(0, 1, 50) and no refinement."""
    if settings.compat != "authors":
        raise ValueError(f"compat={settings.compat!r}, expected authors, or null for segrl's own way")
    if (settings.path, settings.output) != ("embeddings", "logp"):
        raise ValueError(
            f"compat=authors is the paper's path, not path={settings.path} with output={settings.output}; take "
            "path=embeddings and output=logp with it, as attribution=authors does"
        )
    return "authors", 50, None


def _first_rows(index: int, plan: _Plan) -> list[Row]:
    """The rows of one trace before any refinement: the ends of its path if certified, and the nodes."""
    ends = [Row(index, 1.0, None), Row(index, 0.0, None)] if plan.certificate else []
    nodes = zip(plan.alphas_J.tolist(), plan.weights_J.tolist(), strict=True)
    return ends + [Row(index, alpha, weight) for alpha, weight in nodes]


# --- where the path gets more nodes ----------------------------------------------------------------------------------


def _refinement(index: int, path_sums: _PathSums, plan: _Plan, max_nodes: int) -> list[Row]:
    """Rows for a trace that misses the tolerance, at new nodes where its grid is uneven."""
    uneven_J = path_sums.integrate()
    misses, nodes = path_sums.misses(plan.tolerance), len(plan.alphas_J)
    weights = path_sums.finer(uneven_J, nodes, max_nodes) if misses else {}
    return [Row(index, alpha, weight) for alpha, weight in weights.items()]


# --- what becomes of the masses --------------------------------------------------------------------------------------


def _attribution(
    sequence: Explained, path_sums: _PathSums, settings: AttributionSettings, tolerance: float | None, finite: bool
) -> Attribution:
    """The attribution of one trace: the masses of the thinking as scores, those before and after it as sums.

    With ``compat="authors"`` scores are divided by the norm of all masses, as the paper's code does.
    """
    unit = settings.compat == "authors"
    scores_T = sequence.of_response(path_sums.masses_L / (path_sums.masses_L.norm() if unit else 1))
    total = float(path_sums.masses_L[sequence.thinking].abs().sum())
    copied = float(path_sums.masses_L[sequence.restates].abs().sum())
    flags = ["flat"] if path_sums.flat else []
    if path_sums.misses(tolerance):
        flags.append("coarse")
    if not finite and not bool(torch.isfinite(scores_T).all()):
        flags.append("not_finite")
        scores_T = torch.zeros_like(scores_T)
    return Attribution(
        trace_id=sequence.trace.id,
        scores_T=scores_T.float(),
        target=settings.target,
        path=settings.path,
        input_ids=sequence.input_ids,
        answer_span=sequence.answer_span,
        logp_input=path_sums.logp_input,
        logp_baseline=path_sums.logp_baseline,
        mass_prompt=float(path_sums.masses_L[: sequence.thinking.start].sum()),
        mass_suffix=float(path_sums.masses_L[sequence.thinking.stop :].sum()),
        gap=path_sums.gap,
        copy_share=copied / total if total else 0.0,
        evaluations=path_sums.evaluations,
        flags=tuple(flags),
        unevenness=path_sums.unevenness,
    )

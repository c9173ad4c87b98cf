"""What a table of truth compares: ways to score the thoughts of a trace, each with its cost.

An arm is anything with ``run(bench)``. Arms that read the same evidence share it; its whole cost counts for each.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch

from segrl import attribution
from segrl.analysis import text_controls
from segrl.analysis.gathering import thought_texts
from segrl.importance import MEASURES, check_measure_options, measure_of, misleading, score
from segrl.importance.gathering import gather
from segrl.importance.reading import seed_of
from segrl.resolving import near
from segrl.selection import select
from segrl.types import Attribution, Evidence, Segments, SegmentScores, TokenisedTrace

TOP_TOKENS = 0.45  # the share of tokens that a measure of tokens keeps, as in the paper ([IG] section 4.3)


class Scored(NamedTuple):
    """A number for each thought, what these numbers took, the gap of the attribution that they were read from, and,
    where an arm tests its best thought against chance, the thoughts that it marks."""

    values: list[float]
    evaluations: float = 0.0
    seconds: float = 0.0
    gap: float | None = None
    marked: list[int] | None = None


class Arm(Protocol):
    def run(self, bench: Bench) -> Scored: ...


class Bench:
    """One trace on one model: arms ask it for evidence, which is gathered once."""

    def __init__(self, model, tokenizer, trace: TokenisedTrace, segments: Segments, options: Mapping[str, Any]) -> None:
        self.model, self.tokenizer, self.trace, self.segments = model, tokenizer, trace, segments
        self.options = options  # of gather, for all arms
        self._gathered: dict[str, tuple[Evidence, float]] = {}

    def evidence(self, needs: Sequence[str], options: Mapping[str, Any]) -> tuple[Evidence, float]:
        """What a measure needs, and the seconds that it took; ``options`` go before those for all arms."""
        options = {**self.options, **options}
        key = json.dumps([sorted(needs), options], sort_keys=True, default=str)
        if key not in self._gathered:
            began = time.perf_counter()
            [evidence] = gather(
                self.model, [self.trace], self.tokenizer, tuple(needs), segments=[self.segments], **options
            )
            self._gathered[key] = evidence, time.perf_counter() - began
        return self._gathered[key]

    def by_thought(self, scores: SegmentScores) -> list[float]:
        return by_thought(scores, self.segments)

    @property
    def texts(self) -> list[str]:
        return thought_texts(self.trace, self.segments)


@dataclass(frozen=True)
class Measured:
    """A measure of segrl: its options, and those of what is gathered for it."""

    measure: str | Callable[..., SegmentScores]
    options: Mapping[str, Any] = field(default_factory=dict)
    gathered: Mapping[str, Any] = field(default_factory=dict)
    factor: float = 1.0  # of the scores; -1 reverses their order

    def run(self, bench: Bench) -> Scored:
        return self.scored(bench, lambda scores: [self.factor * value for value in bench.by_thought(scores)])

    def scored(self, bench: Bench, values_of: Callable[[SegmentScores], list[float]]) -> Scored:
        """What ``values_of`` makes of the measure's scores: a number for each thought."""
        needs = measure_of(self.measure).needs
        evidence, seconds = bench.evidence(needs, self.gathered) if needs else (Evidence(bench.trace), 0.0)
        scores = score(evidence, bench.segments, self.measure, **self.options)
        # Fields that one gatherer fills together cost once.
        evaluations = max((evidence.cost.get(need, 0.0) for need in needs), default=0.0)
        return Scored(values_of(scores), evaluations, seconds, gap_of(evidence, needs))


@dataclass(frozen=True)
class Sampled:
    """Shapley values from ``forwards`` forwards, or from the fewest that a trace's thoughts need, if these are more."""

    forwards: int
    gathered: Mapping[str, Any] = field(default_factory=dict)

    def run(self, bench: Bench) -> Scored:
        fewest = 2 * int(bench.segments.thought_S.sum()) + 2
        gathered = {**self.gathered, "forwards": max(self.forwards, fewest)}
        return Measured("shapley", gathered=gathered).run(bench)


@dataclass(frozen=True)
class Selected:
    """Which thoughts a selection keeps."""

    measured: Measured
    tau: float
    beta: float

    def run(self, bench: Bench) -> Scored:
        def kept(scores: SegmentScores) -> list[float]:
            keep_S = select(scores, tau=self.tau, beta=self.beta, force=()).keep_S
            return keep_S[bench.segments.thought_S].double().tolist()

        return self.measured.scored(bench, kept)


@dataclass(frozen=True)
class Marking:
    """What the readings of a contrast have in common, and the thought that is marked; ``dealt``: of readings whose
    scores were dealt out to the thoughts at random, of which few may be marked."""

    dealt: bool = False

    def run(self, bench: Bench) -> Scored:
        evidence, seconds = bench.evidence(misleading.NEEDS, {**GATES, "nodes": 1, "target": "contrast"})
        readings_RS = misleading.readings(evidence, bench.segments)
        if self.dealt:
            generator = torch.Generator().manual_seed(seed_of(0, bench.trace.id))
            readings_RS = misleading.dealt(readings_RS, generator)
        suspect = misleading.misled(bench.trace, bench.segments, readings_RS)
        evaluations = sum(evidence.cost[need] for need in misleading.NEEDS)
        marked = [suspect.thought] if suspect.marked else []
        return Scored(misleading.mean_share(readings_RS).tolist(), evaluations, seconds, None, marked)


@dataclass(frozen=True)
class FromText:
    """A control that reads the texts of the thoughts and the answers alone."""

    read: Callable[[list[str], TokenisedTrace], list[float]]

    def run(self, bench: Bench) -> Scored:
        return Scored(self.read(bench.texts, bench.trace))


def by_thought(scores: SegmentScores, segments: Segments) -> list[float]:
    """A number for each thought: its strength, or the share of its tokens in the top of a measure of tokens."""
    if scores.segment_T is None:
        return scores.strength_S[segments.thought_S].tolist()
    inside_T = segments.thought_T
    count = max(1, round(TOP_TOKENS * int(inside_T.sum())))
    ranked = torch.where(inside_T, scores.strength_S, -torch.inf).argsort(descending=True, stable=True)
    top_T = torch.zeros(len(inside_T))
    top_T[ranked[:count]] = 1
    return [float(top_T[thought].mean()) for thought in segments.thought_slices]


def gap_of(evidence: Evidence, needs: Sequence[str]) -> float | None:
    """The completeness gap of the attribution among ``needs``; None without one or without its certificate.

    A flat path has none either: its gap would be a share of almost nothing.
    """
    attributions = [field for need in needs if isinstance(field := getattr(evidence, need), Attribution)]
    return next((attribution.gap for attribution in attributions if "flat" not in attribution.flags), None)


# --- the arms that have names ----------------------------------------------------------------------------------------


def attributed(measure: str = "contribution", /, nodes: int = 1, **gathered: Any) -> Measured:
    """The arm of an attribution with ``nodes`` nodes: log-odds on the value path, or what ``gathered`` sets."""
    return Measured(measure, gathered={**GATES, "nodes": nodes, **gathered})


# One node is a midpoint, at 0.5; "right" puts it at the input itself.
GATES = {"path": "values", "output": "log_odds", "interpolate": "response", "tolerance": None, "quadrature": "midpoint"}
PAPER = {
    **attribution.PAPER,
    **{"interpolate": "all", "target": "gold", "begin": 0.0, "quadrature": "midpoint", "max_nodes": 108},
}
GRADIENT = {**PAPER, "tolerance": None, "interpolate": "response", "output": "log_odds"}
CONTROLS: dict[str, Arm] = {
    "length": Measured("length"),
    "position": Measured("position"),
    "digits": FromText(text_controls.digits),
    "random": Measured("random"),
    "surprise": Measured("surprise"),
    "entropy": Measured("entropy"),
}
# Which thoughts carry the answer.
CARRIES: dict[str, Arm] = {
    **CONTROLS,
    "surprise, inverted": Measured("surprise", {"inverted": True}),
    "new result": FromText(text_controls.new_result),
    "oracle": Measured("oracle"),
    "permuted": Measured("permuted_ig", gathered=PAPER),
    "ig": Measured("ig", gathered=PAPER),
    "ig, response": Measured("ig", gathered={**PAPER, "interpolate": "response"}),
    "ig, hidden answer": Measured("ig", gathered={**PAPER, "hide_answer": True}),
    "ig, tau": Selected(Measured("ig", gathered=PAPER), tau=0.7, beta=1.0),
    "ig, tau and beta": Selected(Measured("ig", gathered=PAPER), tau=0.7, beta=0.8),
    "embeddings, signed": Measured("contribution", gathered=PAPER),
    "embeddings, signed, 32 log-odds": Measured("contribution", gathered={**GRADIENT, "nodes": 32}),
    "embeddings, signed, 1 log-odds": Measured("contribution", gathered={**GRADIENT, "nodes": 1}),
    "values, 1 at half": attributed(),
    "values, 1 at input": attributed(quadrature="right"),
    "values, 1 at input, logp": attributed(quadrature="right", output="logp"),
    "values, 1 at half, strength": attributed("strength"),
    "values, 4": attributed(nodes=4),
    "values, 4 from half": attributed(nodes=4, begin=0.5),
    "values, 32": attributed(nodes=32),
    "grad_input": Measured("grad_input"),
    "oar": Measured("oar"),
    "grail": Measured("grail"),
    "attention": Measured("attention"),
    "pmi": Measured("pmi"),
    "confidence_gain_cheap": Measured("confidence_gain_cheap"),
    "leave_one_out": Measured("leave_one_out"),
    "alone": Measured("alone"),
    "first_and_last": Measured("first_and_last"),
    "perplexity": Measured("perplexity"),
    "support": Measured("support"),
    "support, 4 forwards": Measured("support", gathered={"forwards": 4}),
    "shapley, 16 forwards": Sampled(16),
    "shapley, 32 forwards": Sampled(32),
    "shapley, 64 forwards": Sampled(64),
}
# Which thought misled, in a response with a wrong answer.
MISLED: dict[str, Arm] = {
    **CONTROLS,
    "earlier": Measured("position", factor=-1.0),
    "lookup": FromText(text_controls.lookup),
    "redone": FromText(text_controls.redone),
    "contrast, values, 1 at half": attributed("mistake"),
    "contrast, values, 1 at input": attributed("mistake", quadrature="right"),
    "contrast, values, 4": attributed("mistake", nodes=4),
    "contrast, embeddings, 12": Measured("mistake", gathered=PAPER),
    "own alone, values, 1 at half": attributed(target="own"),
    "minus gold, values, 1 at half": Measured("contribution", gathered={**GATES, "nodes": 1}, factor=-1.0),
    "contrast, each thought alone": Measured("alone", gathered={"target": "contrast"}),
    "contrast, prefix gain": Measured("pmi", gathered={"target": "contrast"}),
    "contrast, leaving out": Measured("leave_one_out", gathered={"target": "contrast"}),
    "contrast, first and last": Measured("first_and_last", gathered={"target": "contrast"}),
    "contrast, shapley, 32 forwards": Sampled(32, {"target": "contrast"}),
    "contrast, three readings": Marking(),
    "contrast, three readings, dealt": Marking(dealt=True),
    "continuations": Measured("continuation_gain", factor=-1.0),
    "ig": Measured("ig", gathered=PAPER),
    "grail": Measured("grail"),
}


def arm_named(name: str, arms: Mapping[str, Arm], options: Mapping[str, Mapping[str, Any]]) -> Arm:
    """The arm called ``name``: one of the table's, else a measure with the run's own options."""
    if name in arms:
        return arms[name]
    try:
        measure_of(name)
    except ValueError as error:
        raise ValueError(f"there is no arm and no measure {name!r}{near(name, (*arms, *MEASURES))}") from error
    check_measure_options(name, options.get(name, {}))
    return Measured(name, options.get(name, {}))

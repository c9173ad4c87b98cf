"""Evidence and segments -> segment scores: the paper's measure (Eq. 3, 4), its rivals and its controls.

A measure is a pure function ``(evidence, segments, **options) -> SegmentScores``. The table says what each reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

from segrl.importance import measures
from segrl.importance.aggregation import from_strength, segment_scores, token_scores
from segrl.importance.concluding import first_concluding
from segrl.importance.discriminating import ACROSS_RESPONSES
from segrl.resolving import check_options, resolve
from segrl.types import Attribution, Evidence, Segments, SegmentScores, TokenisedTrace, given

__all__ = [
    "MEASURES",
    "Measure",
    "check_measure_options",
    "first_concluding",
    "from_strength",
    "measure_of",
    "score",
    "segment_scores",
    "token_scores",
]


class Measure(NamedTuple):
    """A measure's function and what it reads. ``needs`` are fields of the evidence; with ``reads_kinds`` it reads the
    trace's planted kinds. With ``level`` token it scores tokens, not segments.
    """

    score: Callable[..., SegmentScores]
    needs: tuple[str, ...] = ()
    level: str = "segment"
    reads_kinds: bool = False

    @property
    def offline(self) -> bool:
        """Whether one trace is enough for it, without the others of a batch."""
        return not set(self.needs) & set(ACROSS_RESPONSES)


MEASURES: dict[str, Measure] = {
    "ig": Measure(measures.ig, ("ig",)),
    "strength": Measure(measures.strength, ("ig",)),
    "contribution": Measure(measures.contribution, ("ig",)),
    "mistake": Measure(measures.mistake, ("contrast",)),
    "abs_ig_tokens": Measure(measures.abs_ig_tokens, ("ig",), level="token"),
    "ig_tokens": Measure(measures.ig_tokens, ("ig",), level="token"),
    "permuted_ig": Measure(measures.permuted_ig, ("ig",)),
    "length": Measure(measures.length),
    "position": Measure(measures.position),
    "random": Measure(measures.random),
    "oracle": Measure(measures.oracle, reads_kinds=True),
    "first_correct": Measure(measures.first_correct),
    "pmi": Measure(measures.pmi, ("prefix_logp_S",)),
    "confidence_gain": Measure(measures.confidence_gain, ("confidence_S",)),
    "continuation_gain": Measure(measures.continuation_gain, ("continued_S",)),
    "confidence_gain_cheap": Measure(measures.confidence_gain_cheap, ("prefix_logp_S",)),
    "leave_one_out": Measure(measures.leave_one_out, ("without_logp_S",)),
    "alone": Measure(measures.alone, ("alone_value_S",)),
    "first_and_last": Measure(measures.first_and_last, ("alone_value_S", "without_value_S")),
    "shapley": Measure(measures.shapley, ("shapley_S",)),
    "grad_input": Measure(measures.grad_input, ("gradient_T",)),
    "oar": Measure(measures.oar, ("gradient_T",)),
    "grail": Measure(measures.grail, ("gradnorm_T",)),
    "delta": Measure(measures.delta, ("coefficient_T",), level="token"),
    "attention": Measure(measures.attention, ("attention_T",)),
    "entropy": Measure(measures.entropy, ("entropy_T",)),
    "surprise": Measure(measures.surprise, ("logp_T",)),
    "perplexity": Measure(measures.perplexity, ("logp_T", "perplexity_S")),
    "support": Measure(measures.support, ("support_S",)),
}


def score(
    evidence: Evidence | Attribution, segments: Segments, measure: str | Callable = "contribution", **options
) -> SegmentScores:
    """The score of each segment; by a token measure, of each token.

    The ``answer`` segment gets zero: the others are scored for what they contribute to it. An attribution may stand in
    for the evidence where the measure reads nothing else.
    """
    if isinstance(evidence, Attribution):
        evidence = Evidence(_trace_of(evidence), ig=evidence)
    entry = measure_of(measure)
    for need in entry.needs:
        if getattr(evidence, need, None) is None:
            raise ValueError(
                f"the measure {measure!r} reads {need!r}, which trace {evidence.trace.id!r} lacks; "
                f"gather it with segrl.gather(model, traces, needs=({need!r},))"
            )
    if segments.tokens != evidence.trace.tokens:
        raise ValueError(
            f"trace {evidence.trace.id!r} has {evidence.trace.tokens} tokens, its segments cover {segments.tokens}"
        )
    if any(need.endswith("_S") for need in entry.needs):
        gathered = given(evidence.segments)
        if gathered.boundaries != segments.boundaries:
            raise ValueError(
                f"trace {evidence.trace.id!r}: the evidence was gathered for {len(gathered)} segments, cut "
                f"otherwise than the {len(segments)} to score; gather it again for these"
            )
    check_measure_options(measure, options)
    try:
        return entry.score(evidence, segments, **options)
    except ValueError as error:
        raise ValueError(f"the measure {measure!r} on trace {evidence.trace.id!r}: {error}") from error


def _trace_of(attribution: Attribution) -> TokenisedTrace:
    """A trace that holds nothing but the attribution's id and number of tokens."""
    tokens = len(attribution.scores_T)
    return TokenisedTrace(
        id=attribution.trace_id,
        problem="",
        response="",
        prompt_ids=torch.zeros(0, dtype=torch.long),
        response_ids=torch.zeros(tokens, dtype=torch.long),
        offsets_T=torch.zeros(tokens, 2, dtype=torch.long),
        trainable_T=torch.ones(tokens, dtype=torch.bool),
        prompt_hash="",
    )


def measure_of(name: str | Callable) -> Measure:
    """The measure called ``name``; a user's function says in its attribute ``needs`` what it reads."""
    if isinstance(name, str) and name in MEASURES:
        return MEASURES[name]
    function = resolve(name, {m: entry.score for m, entry in MEASURES.items()}, "measure")
    return Measure(function, tuple(getattr(function, "needs", ())), getattr(function, "level", "segment"))


def check_measure_options(measure: str | Callable, options: Mapping[str, Any]) -> None:
    """Refuse options that the measure does not take."""
    check_options(f"measure={measure!r}", measure_of(measure).score, ["evidence", "segments"], options)

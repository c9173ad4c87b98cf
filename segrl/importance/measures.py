"""The measures: evidence and segments -> segment scores. The paper's measure, its rivals and its controls.

The *gain* of a segment is what it adds to the answer's log-probability after the segments before it, its *loss* what is
missing without it. A score may be negative; :func:`segrl.importance.aggregation.from_strength` says how signs are kept.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from segrl.importance.aggregation import (
    Aggregate,
    from_strength,
    permuted,
    segment_scores,
    stream_scores,
    summed,
    token_scores,
)
from segrl.importance.concluding import first_concluding
from segrl.importance.reading import seed_of
from segrl.types import Evidence, Segments, SegmentScores, given

LEAST_GRADIENT = 1e-30  # a gradient of zero has no logarithm
ORACLE = {"needed": 1.0, "other": 0.5, "redundant": 0.0}
MISTAKES = ("wrong", "carried")  # kinds of thoughts: a false step, and what follows from it

# --- integrated gradients --------------------------------------------------------------------------------------------


def ig(evidence: Evidence, segments: Segments, aggregate: Aggregate = "sqrt") -> SegmentScores:
    """The scores of [IG] Eq. 3 and 4. On the value path, those of Eq. 3: without consistency, beta drops nothing."""
    stream = given(evidence.ig)
    if stream.path == "values":
        return stream_scores(stream.scores_T.abs(), segments, aggregate)
    return segment_scores(stream.scores_T, segments, aggregate)


def strength(evidence: Evidence, segments: Segments, aggregate: Aggregate = "sqrt") -> SegmentScores:
    """The scores of Eq. 3 without consistency: beta drops no segment ([IG] table 2)."""
    return stream_scores(given(evidence.ig).scores_T.abs(), segments, aggregate)


def contribution(evidence: Evidence, segments: Segments) -> SegmentScores:
    """The signed sum of the attribution: what the segment adds to the answer. No consistency, so beta drops nothing."""
    return from_strength(summed(given(evidence.ig).scores_T.double(), segments), segments)


def mistake(evidence: Evidence, segments: Segments) -> SegmentScores:
    """The signed sum of the contrast: how much the segment speaks for the response's own answer against the gold one.

    A right response has no other answer: its contrast explains the gold one, and its segments score what they add to
    that. Leave right responses out to look for mistakes.
    """
    return from_strength(summed(given(evidence.contrast).scores_T.double(), segments), segments)


def abs_ig_tokens(evidence: Evidence, segments: Segments) -> SegmentScores:
    """Each token by its \\|IG\\| ([IG] table 2)."""
    return token_scores(given(evidence.ig).scores_T.abs(), segments)


def ig_tokens(evidence: Evidence, segments: Segments) -> SegmentScores:
    """Each token by its signed IG ([IG] table 2)."""
    return token_scores(given(evidence.ig).scores_T, segments)


def permuted_ig(evidence: Evidence, segments: Segments, aggregate: Aggregate = "sqrt", seed: int = 0) -> SegmentScores:
    """Control: the scores of ``ig``, permuted at random among the thoughts."""
    return permuted(ig(evidence, segments, aggregate), segments, _generator(evidence, seed))


# --- controls --------------------------------------------------------------------------------------------------------


def length(evidence: Evidence, segments: Segments) -> SegmentScores:
    """Control: the strength that segments would have if all tokens had the same \\|IG\\|."""
    return from_strength(segments.tokens_S.double().sqrt(), segments)


def position(evidence: Evidence, segments: Segments) -> SegmentScores:
    """Control: later segments score higher."""
    return from_strength(torch.arange(1.0, len(segments) + 1), segments)


def random(evidence: Evidence, segments: Segments, seed: int = 0) -> SegmentScores:
    """Control: random scores, which depend on the trace id and the seed alone. verl's ids are new in each run."""
    return from_strength(torch.rand(len(segments), generator=_generator(evidence, seed)), segments)


def oracle(evidence: Evidence, segments: Segments, inverted: bool = False, mistakes: bool = False) -> SegmentScores:
    """Control: the planted truth of the toy world. Needed thoughts score 1, redundant ones 0, the third class 0.5.

    With ``mistakes``, what misled a wrong response: the wrong step and what is carried on from it score 1, all else 0.
    """
    from segrl.toy.world import CLASSES

    kinds = evidence.trace.kinds
    if kinds is None:
        raise ValueError(
            f"trace {evidence.trace.id!r} has no planted kinds (meta['kinds']); the measure 'oracle' is for traces of "
            "segrl.toy.sample_traces"
        )
    if len(kinds) != len(segments):
        raise ValueError(
            f"trace {evidence.trace.id!r} has {len(kinds)} planted kinds and {len(segments)} segments; the measure "
            "'oracle' needs segmenter=keywords as it is by default"
        )
    truth = [float(kind in MISTAKES) if mistakes else ORACLE[CLASSES[kind]] for kind in kinds]
    values_S = torch.tensor(truth)
    return from_strength(1 - values_S if inverted else values_S, segments)


# --- what the answer's log-probability says --------------------------------------------------------------------------


def pmi(evidence: Evidence, segments: Segments) -> SegmentScores:
    """log p(answer | prefix with the segment) - log p(answer | prefix without it)."""
    return from_strength(_gains(given(evidence.prefix_logp_S), given(evidence.empty_logp)), segments)


def confidence_gain(evidence: Evidence, segments: Segments) -> SegmentScores:
    """The gain of the share of sampled answers that are right ([IG] section 3.1)."""
    return from_strength(_gains(given(evidence.confidence_S), given(evidence.empty_confidence)), segments)


def continuation_gain(evidence: Evidence, segments: Segments) -> SegmentScores:
    """The gain of the share of continuations that end right: below zero where the segment led away from the answer."""
    return from_strength(_gains(given(evidence.continued_S), given(evidence.empty_continued)), segments)


def confidence_gain_cheap(evidence: Evidence, segments: Segments) -> SegmentScores:
    """The gain of the answer's probability, which needs no sampling: pmi without the logarithm."""
    if evidence.output != "logp":
        raise ValueError(
            f"it reads probabilities, and the evidence was gathered with output={evidence.output}; take logp"
        )
    empty = torch.tensor(given(evidence.empty_logp), dtype=torch.float64).exp()
    return from_strength(_gains(given(evidence.prefix_logp_S).double().exp(), float(empty)), segments)


def leave_one_out(evidence: Evidence, segments: Segments) -> SegmentScores:
    """The loss: log p(answer | trace) - log p(answer | trace without the segment)."""
    return from_strength(given(evidence.answer_logp) - given(evidence.without_logp_S).double(), segments)


def _gains(after_S: Tensor, empty: float) -> Tensor:
    return torch.cat([torch.tensor([empty], dtype=torch.float64), after_S.double()]).diff()


# --- the game of the thoughts: v is the answer's value with some of them in the thinking -----------------------------


def alone(evidence: Evidence, segments: Segments) -> SegmentScores:
    """What the segment adds alone: v(the segment) - v(nothing)."""
    return from_strength(given(evidence.alone_value_S).double() - given(evidence.empty_value), segments)


def first_and_last(evidence: Evidence, segments: Segments) -> SegmentScores:
    """The mean of what the segment adds alone and of what is missing when it alone is taken out, its parts."""
    first_S = alone(evidence, segments).strength_S
    last_S = from_strength(given(evidence.whole_value) - given(evidence.without_value_S).double(), segments).strength_S
    return replace(from_strength((first_S + last_S) / 2, segments), parts={"alone": first_S, "without": last_S})


def shapley(evidence: Evidence, segments: Segments) -> SegmentScores:
    """The Shapley value, from coalitions of thoughts that were sampled; ``evidence.shapley_error_S`` is its error."""
    return from_strength(given(evidence.shapley_S), segments)


# --- gradients and attention -----------------------------------------------------------------------------------------


def grad_input(evidence: Evidence, segments: Segments, aggregate: Aggregate = "sqrt") -> SegmentScores:
    """Eq. 3 on gradient . input: integrated gradients with one node at the input and a baseline of zero."""
    return segment_scores(given(evidence.gradient_T), segments, aggregate)


def oar(evidence: Evidence, segments: Segments, aggregate: Aggregate = "mean") -> SegmentScores:
    """OAR's measure: log1p of \\|gradient . embedding\\|, min-max over the thinking."""
    thought_T = segments.thought_T
    values_T = given(evidence.gradient_T).double().abs().log1p()
    low, high = _range(values_T[thought_T])
    return stream_scores((values_T - low) / (high - low if high > low else 1.0), segments, aggregate)


def grail(evidence: Evidence, segments: Segments, aggregate: Aggregate = "mean") -> SegmentScores:
    """GRAIL's measure: the norm of gradient x embedding, as the z-score of its logarithm over the thinking."""
    thought_T = segments.thought_T
    log_T = given(evidence.gradnorm_T).double().clamp_min(LEAST_GRADIENT).log()
    inside_T = log_T[thought_T]
    spread = float(inside_T.std(unbiased=False)) if len(inside_T) else 0.0
    z_T = (log_T - inside_T.mean()) / spread if spread > 0 else torch.zeros_like(log_T)
    return stream_scores(z_T, segments, aggregate)


def attention(evidence: Evidence, segments: Segments, aggregate: Aggregate = "sum") -> SegmentScores:
    """How much the answer attends to the segment."""
    return stream_scores(given(evidence.attention_T), segments, aggregate)


def _range(values_T: Tensor) -> tuple[float, float]:
    return (float(values_T.min()), float(values_T.max())) if len(values_T) else (0.0, 0.0)


# --- what tells right responses from wrong ones ----------------------------------------------------------------------


def delta(evidence: Evidence, segments: Segments, low: float = 0.8, high: float = 1.2) -> SegmentScores:
    """DelTA's coefficient of each token, from ``low`` to ``high``: how clearly it belongs to its response's side.

    With ``rule=linear sign=both`` it is the token's weight, scaled to mean one.
    """
    return token_scores(low + (high - low) * given(evidence.coefficient_T).double(), segments)


# --- what the text itself says ---------------------------------------------------------------------------------------


def entropy(evidence: Evidence, segments: Segments, aggregate: Aggregate = "sum") -> SegmentScores:
    """How uncertain the model was: entropy summed over the segment (Li et al. 2025)."""
    return stream_scores(given(evidence.entropy_T), segments, aggregate)


def surprise(
    evidence: Evidence, segments: Segments, aggregate: Aggregate = "sum", inverted: bool = False
) -> SegmentScores:
    """Control: how surprised the model is by the segment: -log p summed over it; ``inverted``, how little."""
    logp_T = given(evidence.logp_T)
    return stream_scores(logp_T if inverted else -logp_T, segments, aggregate)


def perplexity(evidence: Evidence, segments: Segments) -> SegmentScores:
    """The rise of the response's perplexity when the segment is taken out (Cui et al. 2025)."""
    whole = float(torch.exp(-given(evidence.logp_T).double().mean()))
    return from_strength(given(evidence.perplexity_S).double() - whole, segments)


def support(evidence: Evidence, segments: Segments) -> SegmentScores:
    """What the log-probability of what follows the segment, thoughts and answer, loses without it; of all that follows
    where ``forwards`` suffice to take out each by itself. A last thought with no answer behind it has the median of the
    others."""
    support_S = given(evidence.support_S)
    if len(segments) > 1 and segments.thought_S[-1]:
        support_S = torch.cat([support_S[:-1], support_S[:-1].quantile(0.5)[None]])
    return from_strength(support_S, segments)


def first_correct(evidence: Evidence, segments: Segments) -> SegmentScores:
    """Score 1 up to the first segment that concludes the answer, and 0 after it (Chen et al. 2024)."""
    concluding = first_concluding(evidence.trace, segments)
    return from_strength((torch.arange(len(segments)) <= concluding).double(), segments)


def _generator(evidence: Evidence, seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed_of(seed, evidence.trace.id))

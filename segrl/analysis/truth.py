"""One trace against what is known of it: the scores of every arm for its thoughts, their costs, and the truth.

Truths: the kinds that a generator planted, the first wrong step of a wrong solution, and the model's own dependence on
each thought as Shapley values, exact for few thoughts and sampled for many.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from segrl.analysis.arms import Arm, Bench
from segrl.analysis.gathering import kinds_of
from segrl.analysis.shapley import MOST, dependence
from segrl.attribution.target import answer_suffix, own_answer
from segrl.importance.gathering import gather
from segrl.importance.measures import MISTAKES
from segrl.importance.reading import Reading
from segrl.types import Segments, TokenisedTrace, given

Row = dict[str, Any]
WRONG = "wrong"  # the kind of the first wrong step


def judged(
    model, tokenizer, trace: TokenisedTrace, segments: Segments, arms: Mapping[str, Arm], options: Mapping[str, Any]
) -> Row:
    """The scores of each arm for each thought, what they took, the gap of the attribution that they were read from, and
    the thoughts that it marks.

    ``options`` are those of what is gathered.
    """
    bench = Bench(model, tokenizer, trace, segments, options)
    scored = {name: arm.run(bench) for name, arm in arms.items()}
    return {
        "id": trace.id,
        "problem_id": trace.problem_id,
        "answer_tokens": answer_tokens(trace, tokenizer),
        "scores": {name: arm.values for name, arm in scored.items()},
        "evaluations": {name: arm.evaluations for name, arm in scored.items()},
        "seconds": {name: arm.seconds for name, arm in scored.items()},
        "gaps": {name: arm.gap for name, arm in scored.items() if arm.gap is not None},
        "marked": {name: arm.marked for name, arm in scored.items() if arm.marked is not None},
    }


def answer_tokens(trace: TokenisedTrace, tokenizer) -> int:
    """The number of tokens of the gold answer."""
    _, first, last = answer_suffix(trace.answer or "", tokenizer)
    return last - first


def truth_of(
    model,
    tokenizer,
    trace: TokenisedTrace,
    segments: Segments,
    truths: Sequence[str],
    options: Mapping[str, Any],
) -> Row:
    """What is known of a trace: each of ``truths``. Raises where one of them is not known."""
    check_known(trace, segments, truths)
    truth: Row = {"id": trace.id}
    kinds = kinds_of(trace, segments)
    if "planted" in truths:
        truth["kinds"] = kinds
    if "mistake" in truths:
        assert kinds is not None
        truth["mistake"] = kinds.index(WRONG)
        truth["misled"] = [s for s, kind in enumerate(kinds) if kind in MISTAKES]
    if "shapley" in truths:
        truth |= _dependence(model, tokenizer, trace, segments, options)
    return truth


def _dependence(model, tokenizer, trace: TokenisedTrace, segments: Segments, options: Mapping[str, Any]) -> Row:
    """The Shapley value of each thought: exact, or with an error bar where there are more than ``MOST`` thoughts."""
    thoughts, reading = int(segments.thought_S.sum()), Reading(**options)
    if thoughts <= MOST:
        return dependence(model, tokenizer, trace, segments, reading)
    options = {**options, "subset_output": reading.output}  # the same v as for exact Shapley values
    [evidence] = gather(model, [trace], tokenizer, ("shapley_S",), segments=[segments], **options)
    return {
        "shapley": given(evidence.shapley_S)[segments.thought_S].tolist(),
        "shapley_error": given(evidence.shapley_error_S)[segments.thought_S].tolist(),
        "without": evidence.empty_value,
        "with": evidence.whole_value,
        "evaluations": evidence.cost["shapley_S"],
    }


def check_known(trace: TokenisedTrace, segments: Segments, truths: Sequence[str]) -> None:
    """Refuse a trace whose truth is not known."""
    planted = trace.kinds
    if {"planted", "mistake"} & {*truths} and kinds_of(trace, segments) is None:
        reason = "has no planted kinds" if planted is None else f"has {len(planted)} kinds for {len(segments)} segments"
        raise ValueError(
            f"trace {trace.id!r} {reason}: its truth is not known. Give traces of segrl.toy.sample_traces, "
            "or leave traces= out to sample some"
        )
    if "mistake" in truths and WRONG not in (planted or ()):
        raise ValueError(f"trace {trace.id!r} has no step of kind {WRONG!r}: there is no mistake to find")
    if "mistake" in truths and own_answer(trace) is None:
        raise ValueError(f"trace {trace.id!r} boxes no answer of its own: there is none that a thought misled to")

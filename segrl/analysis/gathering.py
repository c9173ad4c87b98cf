"""The row that an analysis reads of one trace: lists with a value for each thought, none for the answer segment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from segrl.grading import grade
from segrl.importance import measure_of, score
from segrl.importance.gathering import gather
from segrl.types import Attribution, Evidence, Segments, TokenisedTrace, given

Row = dict[str, Any]
NEEDS = ("logp_T", "entropy_T", "prefix_logp_S")
SCORES = ("strength", "share", "consistency", "tokens")
COLUMNS = (
    *("id", "problem_id", "correct", "status", "flags", "error", "kinds", "texts", "answer_text"),
    *(*SCORES, "answer_logp", "confidence", "log_perplexity", "entropy", "bleu"),
)


def gathered(
    model,
    tokenizer,
    trace: TokenisedTrace,
    segments: Segments,
    *,
    measure: str = "ig",
    measure_options: Mapping[str, Any] | None = None,
    gather_options: Mapping[str, Any] | None = None,
    sampled: bool = False,
    bleu_tokenize: str = "13a",
    thinking: str = "auto",
) -> Row:
    """The row of a trace; of one that cannot be read (too long, without an answer) its ids and the error.

    ``sampled`` also draws answers after each thought, as the paper does for its confidence.
    """
    ids = {"id": trace.id, "problem_id": trace.problem_id}
    options, cut = dict(gather_options or {}), [segments]
    try:
        [evidence] = gather(model, [trace], tokenizer, measure_of(measure).needs, segments=cut, **options)
        scores = score(evidence, segments, measure, **measure_options or {})
        options["output"] = "logp"  # the confidences are probabilities, whatever the measure read
        [about] = gather(
            model, [trace], tokenizer, (*NEEDS, *(["confidence_S"] if sampled else [])), segments=cut, **options
        )
        prompt, finish = trace.prompt or "", trace.finish
        verdict = grade(given(trace.answer), trace.response, thinking=thinking, prompt=prompt, finish=finish)
    except ValueError as error:
        return {**dict.fromkeys(COLUMNS), **ids, "error": str(error)}
    texts, thought_S = thought_texts(trace, segments), segments.thought_S
    return {
        **dict.fromkeys(COLUMNS),
        **ids,
        "correct": verdict.correct,
        "status": verdict.status,
        "flags": list(evidence.ig.flags) if isinstance(evidence.ig, Attribution) else [],
        "kinds": kinds_of(trace, segments),
        "texts": texts,
        "answer_text": _after_thinking(trace, segments),
        **{name: getattr(scores, f"{name}_S")[thought_S].tolist() for name in SCORES},
        **_confidences(about, segments),
        **_by_thought(about, segments),
        "bleu": bleu_before(texts, bleu_tokenize),
    }


def _confidences(evidence: Evidence, segments: Segments) -> dict[str, list[float] | None]:
    """The confidence in the gold answer after no thought, the first, the first two, ..."""
    count = int(segments.thought_S.sum())
    sampled_S = evidence.confidence_S
    return {
        "answer_logp": [given(evidence.empty_logp), *given(evidence.prefix_logp_S)[:count].tolist()],
        "confidence": None if sampled_S is None else [given(evidence.empty_confidence), *sampled_S[:count].tolist()],
    }


def _by_thought(evidence: Evidence, segments: Segments) -> dict[str, list[float]]:
    """The mean of each token stream over each thought; log-perplexity is the mean surprise of its tokens."""
    thoughts = segments.thought_slices
    return {
        "log_perplexity": [-float(given(evidence.logp_T)[thought].mean()) for thought in thoughts],
        "entropy": [float(given(evidence.entropy_T)[thought].mean()) for thought in thoughts],
    }


# --- from the text of the trace --------------------------------------------------------------------------------------


def thought_texts(trace: TokenisedTrace, segments: Segments) -> list[str]:
    """The text of each thought."""
    return [_text(trace, thought) for thought in segments.thought_slices]


def bleu_before(texts: Sequence[str], tokenize: str = "13a") -> list[float | None]:
    """BLEU, 0 to 1, of each text against all before it as references; None for the first, which has none.

    Texts shorter than four tokens are judged by the n-grams they have; ``tokenize`` is a name of sacrebleu's.
    """
    from sacrebleu.metrics import BLEU

    bleu = BLEU(effective_order=True, tokenize=tokenize)
    scores: list[float | None] = [None] if texts else []
    for s in range(1, len(texts)):
        scores.append(bleu.sentence_score(texts[s], list(texts[:s])).score / 100)
    return scores


def kinds_of(trace: TokenisedTrace, segments: Segments) -> list[str] | None:
    """The planted kind of each thought; None where the trace has none, or is cut otherwise than planted."""
    kinds: Sequence[str] | None = trace.kinds
    if kinds is None or len(kinds) != len(segments):
        return None
    return [kind for kind, thought in zip(kinds, segments.thought_S.tolist(), strict=True) if thought]


def _after_thinking(trace: TokenisedTrace, segments: Segments) -> str:
    return "" if bool(segments.thought_S[-1]) else _text(trace, segments.slices[-1])


def _text(trace: TokenisedTrace, piece: slice) -> str:
    return trace.response[int(trace.offsets_T[piece.start, 0]) : int(trace.offsets_T[piece.stop - 1, 1])].strip()

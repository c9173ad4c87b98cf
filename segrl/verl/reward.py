"""The rewards verl asks for, by the verdict that evaluation uses too.

``reward.custom_reward_function`` takes ``compute_score`` or ``compute_score_async``; ``verl.trainer.main_eval``, which
averages floats, takes ``score``.

Whether the prompt opened the thought, and whether the response ended by itself or was cut off, stands in ``extra_info``
where ``reward.reward_manager`` is segrl's (reward_manager.py); verl's own managers pass neither.
"""

from __future__ import annotations

from typing import Any

from segrl.grading import Verdict, grade, grade_async

PROMPT, FINISH = "rollout_prompt", "rollout_finish"  # in extra_info


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: dict | None = None,
    *,
    thinking: str = "auto",
    **kwargs: Any,
) -> dict[str, Any]:
    """The score of one response, with the same keys every time: verl makes a column of each.

    ``acc`` is verl's own name for what its validation reports first. ``kwargs`` are the terms of ``with_terms`` and
    whatever else verl sends along.
    """
    ending = ending_of(extra_info)
    verdict = grade(str(ground_truth), solution_str, thinking=thinking, **ending)
    return with_terms(verdict, solution_str, **kwargs) | {"finish": ending["finish"] or ""}


async def compute_score_async(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: dict | None = None,
    *,
    thinking: str = "auto",
    **kwargs: Any,
) -> dict[str, Any]:
    """The same while the event loop of verl's reward worker runs on."""
    ending = ending_of(extra_info)
    verdict = await grade_async(str(ground_truth), solution_str, thinking=thinking, **ending)
    return with_terms(verdict, solution_str, **kwargs) | {"finish": ending["finish"] or ""}


def score(
    data_source: str, solution_str: str, ground_truth: str, extra_info: dict | None = None, **kwargs: Any
) -> float:
    """The score alone."""
    return compute_score(data_source, solution_str, ground_truth, extra_info, **kwargs)["score"]


def ending_of(extra_info: dict | None) -> dict[str, Any]:
    """The end of the prompt and the finish of the response, as ``grade`` takes them."""
    known = extra_info or {}
    return {"prompt": known.get(PROMPT) or "", "finish": known.get(FINISH)}


def with_terms(
    verdict: Verdict,
    response: str,
    format_weight: float = 0.0,
    length_weight: float = 0.0,
    length_from: int = 0,
    length_to: int = 0,
    **others: Any,
) -> dict[str, Any]:
    """score = acc + format_weight x format + length_weight x length. ``acc`` is the verdict alone."""
    if length_weight and not 0 <= length_from < length_to:
        raise ValueError(
            f"length_weight={length_weight} with length_from={length_from} and length_to={length_to}: expected the "
            "characters at which the penalty starts and, further on, those at which it is whole"
        )
    correct, form, length = float(verdict.correct), well_formed(verdict, response), 0.0
    if length_weight:
        length = length_term(len(response), length_from, length_to)
    return {
        "score": correct + format_weight * form + length_weight * length,
        "acc": correct,
        "status": verdict.status,
        "pred": verdict.pred or "",
        "format": form,
        "length": length,
    }


def well_formed(verdict: Verdict, response: str) -> float:
    """1.0 for an answer, right or wrong, after at most one thought."""
    return float(verdict.pred is not None and response.count("<think>") <= 1 and response.count("</think>") <= 1)


def length_term(characters: int, start: int, end: int) -> float:
    """0 up to ``start``, then evenly down to -1 at ``end``."""
    return -min(1.0, max(0.0, (characters - start) / (end - start)))

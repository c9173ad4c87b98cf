"""The reward functions that verl calls, made of the same verdict as evaluation.

``reward.custom_reward_function`` takes ``compute_score`` or ``compute_score_async``; ``verl.trainer.main_eval``, which
averages floats, takes ``score``.

Under segrl's ``reward.reward_manager`` (reward_manager.py), ``extra_info`` says whether the prompt opened the thought
and whether the response was cut off. verl's own managers pass neither.
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
    """The score of one response with its parts, under the same keys every time: verl makes a column of each.

    ``acc`` is verl's name for what its validation reports first. ``kwargs`` are the weights that ``with_terms`` takes;
    what else verl sends is ignored.
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
    """``compute_score``, without blocking the event loop of verl's reward worker."""
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
            f"length_weight={length_weight} with length_from={length_from} and length_to={length_to}: expected 0 <= "
            "length_from < length_to, the characters at which the penalty starts and at which it is full"
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
    """1.0 where there is an answer, right or wrong, and at most one ``<think>`` and ``</think>``; else 0.0."""
    return float(verdict.pred is not None and response.count("<think>") <= 1 and response.count("</think>") <= 1)


def length_term(characters: int, start: int, end: int) -> float:
    """0 up to ``start``, then evenly down to -1 at ``end``."""
    return -min(1.0, max(0.0, (characters - start) / (end - start)))

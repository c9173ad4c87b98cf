"""The reward verl asks for, by the verdict that evaluation uses too."""

from __future__ import annotations

from typing import Any

from segrl.grading import grade


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: dict | None = None,
    *,
    thinking: str = "auto",
    **kwargs: Any,
) -> dict[str, Any]:
    """The score of one response, with the same keys every time; verl collects each as a column.

    ``acc`` is verl's own name for what its validation reports first. verl calls this off the main thread. The prompt
    does not come along, so ``segrl grpo`` sets ``thinking`` where the chat template opens the thought.
    """
    verdict = grade(str(ground_truth), solution_str, thinking=thinking)
    correct = float(verdict.correct)
    return {"score": correct, "acc": correct, "status": verdict.status, "pred": verdict.pred or ""}

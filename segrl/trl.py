"""The reward for TRL's GRPOTrainer, with the verdict that evaluation uses; TRL itself is not imported.

GRPOTrainer(model, reward_funcs=segrl.trl.accuracy_reward, train_dataset=...)   # with a column `answer` or `solution`
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from segrl.grading import grade
from segrl.text.boxed import last_boxed


def accuracy_reward(
    completions: Sequence[str | list[dict]],
    answer: Sequence[str] | None = None,
    solution: Sequence[str] | None = None,
    prompts: Sequence[str | list[dict]] | None = None,
    thinking: str = "auto",
    **columns: Any,
) -> list[float | None]:
    """1.0 for a right answer, else 0.0; None, which TRL leaves out, where the gold answer cannot be read.

    A ``solution`` may be a worked solution that boxes the answer. The end of a plain-text prompt tells whether it
    opened the thought; where a chat template opens it, pass ``thinking="required"``.
    """
    golds = answer if answer is not None else solution
    if golds is None or len(golds) != len(completions):
        raise ValueError(
            f"{len(completions)} completions came with {0 if golds is None else len(golds)} gold answers: the dataset "
            "needs a column `answer` or `solution`"
        )
    texts = [text if isinstance(text, str) else text[-1]["content"] for text in completions]
    plain = [prompt if isinstance(prompt, str) else "" for prompt in prompts or [""] * len(texts)]

    def judge(gold: str, text: str, prompt: str) -> float | None:
        verdict = grade(last_boxed(str(gold)) or str(gold), text, thinking=thinking, prompt=prompt)
        return None if verdict.status == "gold_unparsable" else float(verdict.correct)

    with ThreadPoolExecutor(4) as threads:  # they wait for the workers of the grading pool
        return list(threads.map(judge, golds, texts, plain))

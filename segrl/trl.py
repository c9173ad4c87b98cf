"""The reward for TRL's GRPOTrainer, with the verdict that evaluation uses; TRL itself is not imported.

GRPOTrainer(model, reward_funcs=segrl.trl.accuracy_reward, train_dataset=...)   # with a column `answer` or `solution`
GRPOTrainer(model, reward_funcs=segrl.trl.reward(opened=True, ends=[tokenizer.eos_token_id]), train_dataset=...)
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import wraps
from typing import Any

from segrl.grading import grade
from segrl.text.boxed import last_boxed
from segrl.text.ending import finish_of


def reward(**options: Any) -> Callable[..., list[float | None]]:
    """``accuracy_reward`` with these options, as TRL takes a reward: a function with a name."""

    @wraps(accuracy_reward)
    def with_options(*args: Any, **columns: Any) -> list[float | None]:
        return accuracy_reward(*args, **{**columns, **options})

    return with_options


def accuracy_reward(
    completions: Sequence[str | list[dict]],
    answer: Sequence[str | None] | None = None,
    solution: Sequence[str | None] | None = None,
    prompts: Sequence[str | list[dict]] | None = None,
    completion_ids: Sequence[Sequence[int]] | None = None,
    thinking: str = "auto",
    opened: bool = False,
    ends: Collection[int] = (),
    **columns: Any,
) -> list[float | None]:
    """1.0 for a right answer, else 0.0; None, which TRL leaves out, where there is no gold answer or it cannot be read.

    A ``solution`` may be a worked solution that boxes the answer. TRL does not say how a completion ended: give
    ``ends``, the tokens that end one (``[tokenizer.eos_token_id]``), and its ids tell. The end of a plain-text prompt
    tells whether it opened the thought; where a chat template does, give ``opened=True``. :func:`reward` gives both.
    """
    golds = answer if answer is not None else solution
    if golds is None or len(golds) != len(completions):
        raise ValueError(
            f"{len(completions)} completions came with {0 if golds is None else len(golds)} gold answers: the dataset "
            "needs a column `answer` or `solution`"
        )
    texts = [text if isinstance(text, str) else text[-1]["content"] for text in completions]
    opening = "<think>" if opened else ""
    plain = [prompt if isinstance(prompt, str) else opening for prompt in prompts or [opening] * len(texts)]
    finishes = [finish_of(ids, ends) for ids in completion_ids] if ends and completion_ids else [None] * len(texts)

    def judge(gold: str | None, text: str, prompt: str, finish: str | None) -> float | None:
        if gold is None:
            return None
        verdict = grade(last_boxed(str(gold)) or str(gold), text, thinking=thinking, prompt=prompt, finish=finish)
        return None if verdict.status == "gold_unparsable" else float(verdict.correct)

    with ThreadPoolExecutor(4) as threads:  # they wait for the workers of the grading pool
        return list(threads.map(judge, golds, texts, plain, finishes))

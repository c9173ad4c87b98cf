"""Which rollouts are attributed, and why the others weigh one. Nothing here knows of verl, Ray or a model."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence

from segrl.credit.rollout import Rollout
from segrl.credit.settings import OF_THE_ANSWER, CreditSettings

LONGEST_ANSWER = 256  # characters; a longer box holds no answer, and attribution would have to read all of it
# verl's estimators that compare the rollouts of a prompt with each other alone: there equal rewards give advantages of
# zero. The others read the whole batch too, or take no baseline.
WITHIN_GROUPS = ("grpo", "grpo_vectorized", "rloo", "rloo_vectorized", "opo", "gpg")
# Why every weight of a response is one, in the order of the checks.
REASONS = (
    "off_step",  # segrl.every leaves this step out
    "equal_rewards",  # the advantage is zero, or off zero by rounding alone: nothing is learnt from it
    "other_sign",  # segrl.sign weighs the other responses
    "no_answer",  # there is no answer to explain; in a contrast, one of the two is missing
    "one_thought",  # there is nothing to compare it with; a measure of tokens needs no second thought
    "too_long",  # for the model, with the appended answer
    "not_sampled",  # segrl.share left it out
    "not_finite",  # attributed, but the scores hold NaN or infinity
    "no_scores",  # attributed, but the scores tell no token from another
)


def reasons(
    rollouts: Sequence[Rollout],
    settings: CreditSettings,
    step: int,
    too_long: Mapping[str, bool] | None = None,
    within_groups: bool = True,
) -> dict[str, str | None]:
    """By key: the first reason against attributing the rollout, or None. ``within_groups``: whether advantages come
    from the rewards of a group alone."""
    if off_step(settings, step):
        return {rollout.key: "off_step" for rollout in rollouts}
    equal = equal_groups(rollouts) if within_groups else set()
    too_long = too_long or {}
    why = {rollout.key: _reason(rollout, settings, equal, too_long.get(rollout.key, False)) for rollout in rollouts}
    worth = [rollout for rollout in rollouts if why[rollout.key] is None]
    sampled = sample(worth, settings.share * sum(rollout.tokens for rollout in rollouts), step)
    return why | {rollout.key: "not_sampled" for rollout in worth if rollout.key not in sampled}


def off_step(settings: CreditSettings, step: int) -> bool:
    """Whether ``segrl.every`` leaves the step out: nothing of its batch has to be read."""
    return (step - 1) % settings.every != 0


def _reason(rollout: Rollout, settings: CreditSettings, equal: set[str], too_long: bool) -> str | None:
    if rollout.group in equal or rollout.advantage == 0:
        return "equal_rewards"
    if (settings.sign == "positive" and rollout.advantage < 0) or (
        settings.sign == "negative" and rollout.advantage > 0
    ):
        return "other_sign"
    if not all(answer and answer.strip() and len(answer) <= LONGEST_ANSWER for answer in answers(rollout, settings)):
        return "no_answer"
    if rollout.thoughts < settings.side(rollout.advantage).least_thoughts or not bool(rollout.weighted_T.any()):
        return "one_thought"
    return "too_long" if too_long else None


def answers(rollout: Rollout, settings: CreditSettings) -> list[str | None]:
    """The answers to explain: two in a contrast, an empty list where the measure explains none. None stands for an
    answer that is missing."""
    side = settings.side(rollout.advantage)
    if side.need not in OF_THE_ANSWER:
        return []
    answers = {"own": [rollout.trace.answer], "gold": [rollout.gold]}
    return answers.get(side.explains, answers["own"] + answers["gold"])


def equal_groups(rollouts: Sequence[Rollout]) -> set[str]:
    """The groups whose rewards are all the same; their advantages may still be off zero by rounding. A group of one
    session is left out: there is no reward to compare its own with, and verl takes it as the advantage."""
    rewards, sessions = defaultdict(set), defaultdict(set)
    for rollout in rollouts:
        rewards[rollout.group].add(rollout.reward)
        sessions[rollout.group].add(rollout.session)
    return {group for group, different in rewards.items() if len(different) == 1 and len(sessions[group]) > 1}


def sample(worth: Sequence[Rollout], tokens: float, step: int) -> set[str]:
    """Keys of rollouts drawn at random until the next would exceed ``tokens``; one at least. The order of ``worth``
    does not matter. A run that is started again draws others: verl's keys are new each time."""
    order = sorted(worth, key=lambda rollout: rollout.key)
    random.Random(f"segrl share {step}").shuffle(order)
    keys: set[str] = set()
    for rollout in order:
        tokens -= rollout.tokens
        if tokens < 0 and keys:
            break
        keys.add(rollout.key)
    return keys

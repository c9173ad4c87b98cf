"""Which rollouts are attributed, and why the others weigh one. Nothing here knows of verl, Ray or a model."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence

from segrl.credit.rollout import Rollout
from segrl.credit.settings import OF_THE_ANSWER, CreditSettings

LONGEST_ANSWER = 256  # characters; what stands in a longer box is not an answer, and would have to be attributed whole
# verl's estimators that compare the rollouts of a prompt alone: equal rewards are then advantages of zero. Others mix
# in the whole batch, or take no baseline.
WITHIN_GROUPS = ("grpo", "grpo_vectorized", "rloo", "rloo_vectorized", "opo", "gpg")
# Why every weight of a response is one, in the order of the checks.
REASONS = (
    "off_step",  # segrl.every leaves this step out
    "equal_rewards",  # the advantage is zero, or would be but for rounding: nothing is learnt from it
    "other_sign",  # segrl.sign weighs the other responses
    "no_answer",  # to explain, or to hold against the other in a contrast
    "one_thought",  # nothing to tell apart; a measure of tokens can
    "too_long",  # with the appended answer, for the model
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
    """By key: the first reason against attributing the rollout, or None. ``within_groups`` says that advantages come
    from comparing the rewards of a group alone."""
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
    """The answers to explain, None where there is none: two in a contrast, none by a measure that runs no model."""
    side = settings.side(rollout.advantage)
    if side.need not in OF_THE_ANSWER:
        return []
    answers = {"own": [rollout.trace.answer], "gold": [rollout.gold]}
    return answers.get(side.explains, answers["own"] + answers["gold"])


def equal_groups(rollouts: Sequence[Rollout]) -> set[str]:
    """The groups whose rewards are all the same; their advantages may still be off zero by rounding. One session, of
    however many turns, has nothing to be compared with: verl takes its reward as it is."""
    rewards, sessions = defaultdict(set), defaultdict(set)
    for rollout in rollouts:
        rewards[rollout.group].add(rollout.reward)
        sessions[rollout.group].add(rollout.session)
    return {group for group, different in rewards.items() if len(different) == 1 and len(sessions[group]) > 1}


def sample(worth: Sequence[Rollout], tokens: float, step: int) -> set[str]:
    """Keys of rollouts drawn at random until the next would exceed ``tokens``, one at least; the same in whatever order
    they come. A run that is started again draws others: verl's keys are new each time."""
    order = sorted(worth, key=lambda rollout: rollout.key)
    random.Random(f"segrl share {step}").shuffle(order)
    keys: set[str] = set()
    for rollout in order:
        tokens -= rollout.tokens
        if tokens < 0 and keys:
            break
        keys.add(rollout.key)
    return keys

"""Which rollouts are attributed, and why the others weigh one. Nothing here knows of verl, Ray or a model."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence

from segrl.credit.rollout import Rollout
from segrl.credit.settings import CreditSettings

LONGEST_ANSWER = 256  # characters; what stands in a longer box is not an answer, and would have to be attributed whole
# verl's estimators that compare the rollouts of a prompt alone: equal rewards are then advantages of zero. Others mix
# in the whole batch, or take no baseline.
WITHIN_GROUPS = ("grpo", "grpo_vectorized", "rloo", "rloo_vectorized", "opo", "gpg")
# Why every weight of a response is one, in the order in which it is asked.
REASONS = (
    "off_step",  # segrl.every leaves this step out
    "equal_rewards",  # the advantage is zero, or would be but for rounding: nothing is learnt from it
    "other_sign",  # segrl.sign weighs the other responses
    "no_answer",
    "one_thought",  # nothing to tell apart
    "too_long",  # with the appended answer, for the model
    "not_sampled",  # segrl.share left it out
    "not_finite",  # attributed, but the scores hold NaN or infinity
    "no_scores",  # attributed, but the scores tell no token from another
)


def reasons(
    rollouts: Sequence[Rollout],
    credit: CreditSettings,
    step: int,
    too_long: Mapping[str, bool] | None = None,
    within_groups: bool = True,
) -> dict[str, str | None]:
    """By key: the first reason against attributing the rollout, or None. ``within_groups`` says that advantages come
    from comparing the rewards of a group alone."""
    if off_step(credit, step):
        return {one.key: "off_step" for one in rollouts}
    equal = equal_groups(rollouts) if within_groups else set()
    found = {one.key: _reason(one, credit, equal, (too_long or {}).get(one.key, False)) for one in rollouts}
    worth = [one for one in rollouts if found[one.key] is None]
    sampled = sample(worth, credit.share * sum(len(one.trace.prompt_ids) + one.trace.tokens for one in rollouts), step)
    return found | {one.key: "not_sampled" for one in worth if one.key not in sampled}


def off_step(credit: CreditSettings, step: int) -> bool:
    """Whether ``segrl.every`` leaves the step out: nothing of its batch has to be read."""
    return (step - 1) % credit.every != 0


def _reason(one: Rollout, credit: CreditSettings, equal: set[str], too_long: bool) -> str | None:
    if one.group in equal or one.advantage == 0:
        return "equal_rewards"
    if (credit.sign == "positive" and one.advantage < 0) or (credit.sign == "negative" and one.advantage > 0):
        return "other_sign"
    if not one.explained or len(one.explained) > LONGEST_ANSWER:
        return "no_answer"
    if one.thoughts < 2 or not bool(one.weighted_T.any()):
        return "one_thought"
    return "too_long" if too_long else None


def equal_groups(rollouts: Sequence[Rollout]) -> set[str]:
    """The groups whose rewards are all the same; their advantages may still be off zero by rounding. One session, of
    however many turns, has nothing to be compared with: verl takes its reward as it is."""
    rewards, sessions = defaultdict(set), defaultdict(set)
    for one in rollouts:
        rewards[one.group].add(one.reward)
        sessions[one.group].add(one.session)
    return {group for group, found in rewards.items() if len(found) == 1 and len(sessions[group]) > 1}


def sample(worth: Sequence[Rollout], tokens: float, step: int) -> set[str]:
    """Keys of rollouts drawn at random until the next would exceed ``tokens``, one at least; the same in whatever order
    they come. A run that is started again draws others: verl's keys are new each time."""
    order = sorted(worth, key=lambda one: one.key)
    random.Random(f"segrl share {step}").shuffle(order)
    keys: set[str] = set()
    for one in order:
        tokens -= len(one.trace.prompt_ids) + one.trace.tokens
        if tokens < 0 and keys:
            break
        keys.add(one.key)
    return keys

"""Which rollouts are attributed, and the reason why not."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from segrl import Segments
from segrl.credit.choosing import LONGEST_ANSWER, WITHIN_GROUPS, equal_groups, reasons, sample
from segrl.credit.rollout import Rollout
from segrl.credit.settings import CreditSettings
from segrl.types import TokenisedTrace

ranked = partial(CreditSettings, rule="rank")

TWO = Segments((0, 4, 8, 10), ("thought", "thought", "answer"))


def rollout(key: str, reward: float, advantage: float, answer: str | None = "7", segments=TWO) -> Rollout:
    ends = torch.arange(1, 11)
    trace = TokenisedTrace(
        id=key,
        problem="",
        response="x" * 10,
        answer=answer,
        prompt_ids=torch.ones(10),
        response_ids=ends,
        offsets_T=torch.stack([ends - 1, ends], 1),
        trainable_T=torch.ones(10, dtype=torch.bool),
        prompt_hash="p",
    )
    return Rollout(key, trace, segments, torch.full((10,), advantage), reward)


DELTA = {"measure": "delta", "sign": "both"}
RIGHT, WRONG = rollout("a_0_0", 1.0, 0.5), rollout("a_1_0", 0.0, -0.5)


@pytest.mark.parametrize(
    ("candidate", "settings", "reason"),
    [
        (RIGHT, {}, None),
        (WRONG, {}, "other_sign"),
        (WRONG, {"sign": "both"}, None),
        (WRONG, {"sign": "inverted"}, None),
        (WRONG, {"sign": "signed"}, None),
        (RIGHT, {"sign": "negative"}, "other_sign"),
        (replace(RIGHT, advantages_T=torch.zeros(10)), {"sign": "both"}, "equal_rewards"),
        (replace(RIGHT, trace=replace(RIGHT.trace, answer=None)), {}, "no_answer"),
        (replace(RIGHT, trace=replace(RIGHT.trace, answer="1" * (LONGEST_ANSWER + 1))), {}, "no_answer"),
        (replace(RIGHT, trace=replace(RIGHT.trace, answer=None), gold="7"), {"target": "gold"}, None),
        (replace(RIGHT, gold=""), {"target": "gold"}, "no_answer"),
        # A measure that explains no answer needs none; one side may explain another than the other.
        (replace(RIGHT, trace=replace(RIGHT.trace, answer=None)), {"measure": "entropy"}, None),
        (replace(WRONG, gold="7"), {"sign": "both", "negative_measure": "mistake"}, None),
        (WRONG, {"sign": "both", "negative_measure": "mistake"}, "no_answer"),
        (RIGHT, {"sign": "both", "negative_measure": "mistake"}, None),
        (replace(RIGHT, gold="7"), {"target": "contrast"}, None),
        (RIGHT, {"target": "contrast"}, "no_answer"),
        (replace(RIGHT, gold=" "), {"target": "contrast"}, "no_answer"),
        (replace(RIGHT, trace=replace(RIGHT.trace, answer=None), gold="7"), {"target": "contrast"}, "no_answer"),
        (replace(RIGHT, gold="1" * (LONGEST_ANSWER + 1)), {"target": "contrast"}, "no_answer"),
        (
            replace(RIGHT, trace=replace(RIGHT.trace, answer="1" * (LONGEST_ANSWER + 1)), gold="7"),
            {"target": "contrast"},
            "no_answer",
        ),
        (replace(RIGHT, segments=Segments((0, 8, 10), ("thought", "answer"))), {}, "one_thought"),
        # A measure of tokens tells those of a single thought apart; without a thought there is nothing to weigh.
        (replace(RIGHT, segments=Segments((0, 8, 10), ("thought", "answer"))), DELTA, None),
        (replace(RIGHT, trace=replace(RIGHT.trace, answer=None)), DELTA, None),
        (replace(RIGHT, segments=Segments((0, 10), ("answer",))), DELTA, "one_thought"),
    ],
)
def test_attribution_is_spent_where_it_can_change_something(candidate, settings, reason):
    partner = WRONG if candidate.key == "a_0_0" else RIGHT
    assert reasons([candidate, partner], ranked(**settings), step=1)[candidate.key] == reason


def test_a_group_with_equal_rewards_costs_nothing_even_where_rounding_leaves_an_advantage():
    # three rewards of 0.1 have a mean that is not 0.1 in float32, and (0.1 - mean) / 1e-6 is not zero
    group = [rollout(f"b_{i}_0", 0.1, 7e-3) for i in range(3)]
    assert equal_groups(group) == {"b"}
    assert set(reasons(group, ranked(sign="both"), step=1).values()) == {"equal_rewards"}


def test_one_session_is_compared_with_nothing():
    """Of its group the others failed; two turns of one session are one session."""
    lone = rollout("c_0_0", 1.0, 1.0)
    assert equal_groups([lone]) == equal_groups([lone, rollout("c_0_1", 1.0, 1.0)]) == set()
    assert reasons([lone], ranked(), step=1)["c_0_0"] is None
    assert reasons([rollout("c_0_0", 0.0, 0.0)], ranked(), step=1)["c_0_0"] == "equal_rewards"


# Three groups of rewards: equal ones, others, and a single one.
REWARDS = {"e_0_0": 0.1, "e_1_0": 0.1, "e_2_0": 0.1, "u_0_0": 1.0, "u_1_0": 0.0, "u_2_0": 0.0, "s_0_0": 1.0}


def advantages_of_verl(estimator: str) -> dict[str, float]:
    """By key, what verl's estimator makes of these rewards on responses of ten tokens."""
    numpy = pytest.importorskip("numpy")
    pytest.importorskip("verl")
    from omegaconf import OmegaConf
    from verl import DataProto
    from verl.trainer.ppo.v1.utils import compute_advantage_for_multi_trajectories

    rewards = torch.zeros(len(REWARDS), 10)
    rewards[:, -1] = torch.tensor(list(REWARDS.values()))
    uids = numpy.array([key[0] for key in REWARDS], dtype=object)
    tensors = {"token_level_rewards": rewards, "response_mask": torch.ones(len(REWARDS), 10)}
    data = DataProto.from_dict(tensors, non_tensors={"uid": uids})
    config = OmegaConf.create({"gamma": 1.0})
    data = compute_advantage_for_multi_trajectories(data, list(REWARDS), estimator, config=config)
    return dict(zip(REWARDS, data.batch["advantages"].mean(-1).tolist(), strict=True))


@pytest.mark.parametrize("estimator", [*WITHIN_GROUPS, "reinforce_plus_plus", "reinforce_plus_plus_baseline"])
def test_equal_rewards_teach_nothing_where_verl_compares_groups_alone(estimator):
    advantages = advantages_of_verl(estimator)
    equal = [abs(advantages[f"e_{i}_0"]) for i in range(3)]
    within = estimator in WITHIN_GROUPS
    assert max(equal) < 1e-2 if within else min(equal) > 0.05
    batch = [rollout(key, reward, advantages[key]) for key, reward in REWARDS.items()]
    why = reasons(batch, ranked(sign="both"), step=1, within_groups=within)
    assert {why[f"e_{i}_0"] for i in range(3)} == {"equal_rewards" if within else None}
    assert why["s_0_0"] == (None if advantages["s_0_0"] else "equal_rewards")
    assert why["u_0_0"] is None


def test_a_response_too_long_for_the_model_weighs_one():
    assert reasons([RIGHT, WRONG], ranked(), 1, {"a_0_0": True})["a_0_0"] == "too_long"


def test_only_every_so_many_steps_from_the_first_on():
    attributed = [step for step in range(1, 8) if reasons([RIGHT, WRONG], ranked(every=3), step)["a_0_0"] is None]
    assert attributed == [1, 4, 7]
    assert reasons([RIGHT, WRONG], ranked(every=3), 2)["a_0_0"] == "off_step"


@given(st.integers(2, 12), st.floats(0.01, 1.0), st.integers(1, 50))
def test_a_share_bounds_the_tokens_of_the_step(pairs, share, step):
    batch = [
        member for i in range(pairs) for member in (replace(RIGHT, key=f"{i}_0_0"), replace(WRONG, key=f"{i}_1_0"))
    ]
    why = reasons(batch, ranked(share=share), step)
    chosen = [key for key, reason in why.items() if reason is None]
    assert 1 <= len(chosen) <= max(1, share * len(batch))
    assert len(chosen) == min(pairs, max(1, int(share * len(batch) + 1e-9)))  # all rollouts are of equal length
    assert sum(reason == "not_sampled" for reason in why.values()) == pairs - len(chosen)


def test_the_draw_is_the_same_in_any_order_and_another_for_the_next_step():
    batch = [replace(RIGHT, key=f"{i}_0_0") for i in range(40)]
    draws = [frozenset(sample(batch, 200, step)) for step in range(1, 9)]
    assert draws[0] == sample(list(reversed(batch)), 200, 1)
    assert len(set(draws)) == 8

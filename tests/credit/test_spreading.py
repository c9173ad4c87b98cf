"""The advantages of a batch's tokens, by hand."""

from dataclasses import replace
from itertools import accumulate

import pytest
import torch
from omegaconf import OmegaConf

from segrl import Evidence, Segments
from segrl.commands.config import CONFIG_DIR
from segrl.credit.rollout import Rollout, Weighed, evidence_of, weigh_rollout, weigh_rollouts
from segrl.credit.settings import CreditSettings, credit_from
from segrl.credit.spreading import spread
from segrl.types import Stream, TokenisedTrace


def rollout(key: str, advantage: float, boundaries=(0, 1, 2, 3, 4)) -> Rollout:
    tokens = boundaries[-1]
    trace = TokenisedTrace(
        id=key,
        problem="",
        response="a" * tokens,
        answer="7",
        prompt_ids=torch.tensor([1]),
        response_ids=torch.arange(tokens),
        offsets_T=torch.stack([torch.arange(tokens), torch.arange(1, tokens + 1)], 1),
        trainable_T=torch.ones(tokens, dtype=torch.bool),
        prompt_hash="p",
    )
    return Rollout(key, trace, Segments(boundaries), torch.full((tokens,), advantage))


def weighed(one: Rollout, settings: CreditSettings, values) -> Weighed:
    return weigh_rollout(one, evidence_of(one, Stream(torch.tensor(values)), settings), settings, step=1)


@pytest.mark.parametrize("contributions", [[0.0, 2.0, 4.0, 2.0], [-1.0, 1.0, 3.0, 1.0]])
@pytest.mark.parametrize("advantage", [1.0, -0.5])
def test_acpo_by_hand(contributions, advantage):
    """The contributions lie -2, 0, 2, 0 from their mean and have a deviation of sqrt(2), whether one is negative or
    not: each token gets 0.2 of its z-score more, in right responses and in wrong ones, and the parts sum to zero."""
    settings = credit_from(OmegaConf.load(CONFIG_DIR / "grpo" / "method" / "acpo.yaml"))
    after = [-9.0, *(-9.0 + total for total in accumulate(contributions))]  # the answer's log-probability
    response = rollout("p_0_0", advantage)
    spread_T = spread([response], [weighed(response, settings, after)], settings)["p_0_0"]
    added = [-0.2 * 2**0.5, 0, 0.2 * 2**0.5, 0]
    assert spread_T.tolist() == pytest.approx([advantage + part for part in added])


def test_cliff_by_hand():
    """One right response of two tokens and one wrong of four, whose third token is the first wrong one: advantages of
    1 and -1 become [1, 1] and [0, 0, -1, -1], whose mean over the group is zero already."""
    settings = CreditSettings(measure="random", sign="negative", rule="onward", mean_one=False, centred=True)
    right, wrong = rollout("p_0_0", 1.0, (0, 1, 2)), rollout("p_1_0", -1.0)
    blamed = replace(settings, measure="contribution")
    [spread_right, spread_wrong] = [
        spread([right, wrong], [weighed(wrong, blamed, [0.0, 0.1, 0.9, 0.2])], settings)[key]
        for key in ("p_0_0", "p_1_0")
    ]
    assert spread_right.tolist() == pytest.approx([1, 1])
    assert spread_wrong.tolist() == pytest.approx([0, 0, -1, -1])
    # Blamed from the last token alone, the group's mean of 1/6 is taken from all.
    late = spread([right, wrong], [weighed(wrong, blamed, [0.0, 0.1, 0.2, 0.9])], settings)
    assert late["p_0_0"].tolist() == pytest.approx([5 / 6, 5 / 6])
    assert late["p_1_0"].tolist() == pytest.approx([-1 / 6, -1 / 6, -1 / 6, -7 / 6])
    assert float(torch.cat(list(late.values())).sum()) == pytest.approx(0, abs=1e-6)


def test_raised_blame_leaves_each_response_its_mean():
    """Three quarters of the wrong response lie before its last token: weights of 3/4, and of 7/4 there."""
    settings = CreditSettings(sign="negative", rule="onward", rule_options={"raised": True})
    right, wrong = rollout("p_0_0", 1.0, (0, 1, 2)), rollout("p_1_0", -1.0)
    raised = spread([right, wrong], [weighed(wrong, settings, [0.0, 0.1, 0.2, 0.9])], settings)
    assert set(raised) == {"p_1_0"}
    assert raised["p_1_0"].tolist() == pytest.approx([-0.75, -0.75, -0.75, -1.75])


def test_a_group_without_a_weighed_rollout_stays_as_verl_left_it():
    settings = CreditSettings(rule="onward", mean_one=False, centred=True, sign="negative")
    others = [rollout("q_0_0", 0.7), rollout("q_1_0", -0.3)]
    wrong = rollout("p_1_0", -1.0)
    assert set(spread([wrong, *others], [weighed(wrong, settings, [0.1, 0.2, 0.3, 0.4])], settings)) == {"p_1_0"}


def test_a_batch_is_one_pool_for_each_side():
    """Of eight tokens a quarter are two: both in the response whose entropies are larger."""
    settings = CreditSettings(measure="entropy", measure_options={"aggregate": "token"}, rule="top", sign="both")
    settings = replace(settings, rule_options={"share": 0.25}, scope="batch")
    rollouts = [rollout("p_0_0", 1.0), rollout("p_1_0", -1.0)]
    evidence = [
        Evidence(one.trace, entropy_T=torch.tensor(values))
        for one, values in zip(rollouts, ([0.1, 0.2, 0.3, 0.4], [1.0, 2.0, 0.1, 0.2]), strict=True)
    ]
    found = [one.weights_T.tolist() for one in weigh_rollouts(rollouts, evidence, settings, step=1)]
    assert found == [[0, 0, 0, 0], [4, 4, 0, 0]]
    alone = [
        one.weights_T.tolist() for one in weigh_rollouts(rollouts, evidence, replace(settings, scope="response"), 1)
    ]
    assert alone == [[0, 0, 0, 4], [0, 4, 0, 0]]

"""The numbers of scripts/gradient_quality.py and of its gradients, by hand and against finite differences."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from testkit.script_files import loaded
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from segrl import toy
from segrl.toy import CLASSES

gradients = loaded("policy_gradients")
script = loaded("gradient_quality")


@pytest.fixture(scope="module")
def group():
    """Two right and one wrong response to a problem, as rollouts."""
    _, tokenizer = toy.load_model()
    [right], [wrong] = toy.sample_traces(1, seed=3, ask="last"), toy.sample_mistakes(1, seed=3, ask="last")
    meta = {"finish": "stop", "problem_id": right.id, "prompt": right.problem}
    traces = [replace(trace, answer=right.answer, meta=meta) for trace in (right, wrong, right)]
    return script.group_of(traces, tokenizer)


def test_the_gradient_of_the_reward_is_that_of_rewards_weighed_by_likelihood(group):
    """Along any direction its product is the change of sum(ratio x (reward - the others' mean)) over a small step."""
    model, _ = toy.load_model()
    assert [rollout.reward for rollout in group] == [1, 0, 1]
    gradient = gradients.reward_gradient(model, group)
    above = torch.tensor([1 - 1 / 2, 0 - 1.0, 1 - 1 / 2])
    direction = torch.randn(len(gradient), generator=torch.Generator().manual_seed(0))
    start, before, values = parameters_to_vector(model.parameters()).detach(), gradients.all_logp(model, group), []
    for step in (1e-4, -1e-4):
        vector_to_parameters(start + step * direction, model.parameters())
        sums = torch.stack(
            [now.sum() - old.sum() for now, old in zip(gradients.all_logp(model, group), before, strict=True)]
        )
        values.append(float((sums.double().exp() * above).mean()))
    assert float(gradient @ direction) == pytest.approx((values[0] - values[1]) / 2e-4, rel=0.02)


def test_the_step_has_the_kl_that_is_asked_for(group):
    model, _ = toy.load_model()
    gradient = gradients.policy_gradient(model, group, {})
    before, start = gradients.all_logp(model, group), parameters_to_vector(model.parameters()).clone()
    step, change = gradients.step_of_equal_kl(model, gradient, group, before)
    assert torch.equal(parameters_to_vector(model.parameters()), start)
    assert change > 0  # on the rollouts that it was computed from
    vector_to_parameters(start + step, model.parameters())
    assert gradients.divergence(model, group, before)[0] == pytest.approx(gradients.KL, rel=0.06)


def test_each_side_has_its_scores_and_the_control_permutes_them(group):
    scores = {}
    for rollout in group:
        thoughts = len(rollout.segments)
        scores[rollout.key] = {"own": list(range(thoughts)), "contrast": list(range(thoughts, 0, -1))}
    chosen = ("rank", {"low": 0.0, "high": 2.0})
    right, wrong = group[0], group[1]

    def weights(arm):
        return script.weights_of(group, scores, arm, chosen)

    both = weights(script.ARMS["both"])
    first, last = right.segments.slices[0], right.segments.slices[right.thoughts - 1]
    assert float(both[right.key][first][0]) == 0
    assert float(both[right.key][last][0]) > 1
    assert float(both[wrong.key][wrong.segments.slices[0]][0]) > 1
    assert set(weights(script.ARMS["own alone"])) == {group[0].key, group[2].key}
    assert weights(script.ARMS["uniform"]) == {}
    dealt = weights(script.ARMS["permuted"])
    assert any(not torch.equal(dealt[key], both[key]) for key in both)
    for rollout in group:
        for weights_T in (both[rollout.key], dealt[rollout.key]):
            assert float(weights_T[rollout.weighted_T].mean()) == pytest.approx(1)


def test_planted_weight_is_on_the_mistake_and_what_hangs_on_it(group):
    [right], [wrong] = toy.sample_traces(1, seed=3, ask="last"), toy.sample_mistakes(1, seed=3, ask="last")
    weight = {"needed": 1.0, "other": 0.5, "redundant": 0.0}
    assert script.planted(group[0]) == [weight[CLASSES[kind]] for kind in right.meta["kinds"]]
    assert script.planted(group[1]) == [float(kind in ("wrong", "carried")) for kind in wrong.meta["kinds"]]


def test_a_sketch_keeps_inner_products():
    one, other = torch.randn(2, 200_000, generator=torch.Generator().manual_seed(1))
    mixed = one + other
    exact = float(one @ mixed)
    assert float(gradients.sketch(one) @ gradients.sketch(mixed)) == pytest.approx(exact, rel=0.05)


def test_variance_by_hand():
    """Each is 2 from the mean of squared norm 16, whose own noise is 8 / 2: 8 over 16 - 4."""
    assert script.variance([torch.tensor([4.0, 2.0]), torch.tensor([4.0, -2.0])]) == pytest.approx(8 / 12)


def test_differences_are_paired_by_batch_and_the_best_rule_is_that_of_the_reward():
    def numbers(reward):
        same = {"reward, sampled": [0.0, 0.0], "cosine": [0.5, 0.5]}
        return {"reward": reward, **same, "sketch": [torch.tensor([1.0, 0.1]), torch.tensor([1.0, -0.1])]}

    of_arms = {"uniform": numbers([0.0, 0.2]), "both": numbers([0.1, 0.1])}
    line = next(line for line in script.table(of_arms, ("uniform",)).splitlines() if line.startswith("| both"))
    assert "0.10000 ± 0.00000 | 0.00000 ± 0.10000 |" in line
    names = list(script.RULES)
    assert script.best_rule({name: numbers([0.1 * i, 0.1]) for i, name in enumerate(names)}) == names[-1]


def test_halves_share_no_batch():
    choose, report = script.of_half(5, "choose"), script.of_half(5, "report")
    assert sorted([*choose, *report]) == list(range(5))


def test_a_reward_counts_against_its_own_group():
    ones = [SimpleNamespace(group=group, reward=reward) for group, reward in (("a", 1.0), ("b", 0.0), ("a", 0.0))]
    assert gradients.group_means(ones).tolist() == [0.5, 0.0, 0.5]

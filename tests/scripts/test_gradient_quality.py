"""The numbers of scripts/gradient_quality.py and of its gradients, by hand and against finite differences."""

import multiprocessing
import os
import re
import signal
import time
from dataclasses import replace
from statistics import fmean, stdev
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf
from testkit.processes import alive, wait_until
from testkit.readme import ROOT
from testkit.script_files import loaded
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from segrl import toy
from segrl.credit.settings import CreditSettings, credit_from
from segrl.toy import CLASSES

gradients = loaded("policy_gradients")
arms_of = loaded("gradient_arms")
loaded("grpo_cells")
script = loaded("gradient_quality")
METHODS = {file.stem: file for file in (ROOT / "configs" / "grpo" / "method").glob("*.yaml")}


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
    step, ratios = gradients.step_of_equal_kl(model, gradient, group, before)
    assert torch.equal(parameters_to_vector(model.parameters()), start)
    assert (ratios * gradients.above_the_others(group)).sum() > 0  # on the rollouts that it was computed from
    vector_to_parameters(start + step, model.parameters())
    assert gradients.divergence(model, group, before)[0] == pytest.approx(gradients.KL, rel=0.06)
    for ratio, now, old in zip(ratios, gradients.all_logp(model, group), before, strict=True):
        assert float(ratio) == pytest.approx(float((now - old).sum().exp()), rel=1e-4)


def test_each_side_has_its_scores_and_the_control_permutes_them(group):
    scores = {}
    for rollout in group:
        thoughts = len(rollout.segments)
        scores[rollout.key] = {"own": list(range(thoughts)), "contrast": list(range(thoughts, 0, -1))}
    chosen = ("rank", {"low": 0.0, "high": 2.0})
    right, wrong = group[0], group[1]

    def weights(arm):
        return arms_of.weights_of(group, scores, arm, chosen)

    both = weights(arms_of.ARMS["both"])
    first, last = right.segments.slices[0], right.segments.slices[right.thoughts - 1]
    assert float(both[right.key][first][0]) == 0
    assert float(both[right.key][last][0]) > 1
    assert float(both[wrong.key][wrong.segments.slices[0]][0]) > 1
    assert set(weights(arms_of.ARMS["own alone"])) == {group[0].key, group[2].key}
    assert weights(arms_of.ARMS["uniform"]) == {}
    dealt = weights(arms_of.ARMS["permuted"])
    assert any(not torch.equal(dealt[key], both[key]) for key in both)
    for rollout in group:
        for weights_T in (both[rollout.key], dealt[rollout.key]):
            assert float(weights_T[rollout.weighted_T].mean()) == pytest.approx(1)


def test_planted_weight_is_on_the_mistake_and_what_hangs_on_it(group):
    [right], [wrong] = toy.sample_traces(1, seed=3, ask="last"), toy.sample_mistakes(1, seed=3, ask="last")
    weight = {"needed": 1.0, "other": 0.5, "redundant": 0.0}
    assert arms_of.planted(group[0]) == [weight[CLASSES[kind]] for kind in right.meta["kinds"]]
    assert arms_of.planted(group[1]) == [float(kind in ("wrong", "carried")) for kind in wrong.meta["kinds"]]


def test_a_sketch_keeps_inner_products():
    one, other = torch.randn(2, 200_000, generator=torch.Generator().manual_seed(1))
    mixed = one + other
    exact = float(one @ mixed)
    assert float(gradients.sketch(one) @ gradients.sketch(mixed)) == pytest.approx(exact, rel=0.05)


def test_variance_by_hand():
    """Each is 2 from the mean of squared norm 16, whose own noise is 8 / 2: 8 over 16 - 4."""
    assert gradients.variance(torch.tensor([[4.0, 2.0], [4.0, -2.0]])) == pytest.approx(8 / 12)
    assert gradients.variance(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])) is None  # of mean 0 and noise 1 nothing is left


# --- the products, and their errors ---


def measured(steps_BP, rewards_CP, held=None):
    """Of made-up steps and gradients of the reward; ``held`` of made-up gains and ratios."""
    gains_BC, ratios_BC = held or torch.ones(2, len(steps_BP), len(steps_BP), dtype=torch.float64)
    products, norms = steps_BP @ rewards_CP.T, steps_BP.norm(dim=1)
    return gradients.Measured(products, norms, gains_BC, ratios_BC, rewards_CP @ rewards_CP.T, steps_BP)


def drawn(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_jackknife_by_hand():
    """All six products off the diagonal: 21 / 6. Without batch 0: (4 + 6) / 2, without 1: (2 + 5) / 2, without 2:
    (1 + 3) / 2. Those are 5, 3.5 and 2, whose squares around 3.5 sum to 4.5, and 2 / 3 of that is 3."""
    products = torch.tensor([[90.0, 1, 2], [3, 90, 4], [5, 6, 90]], dtype=torch.float64)
    one = measured(products, torch.eye(3, dtype=torch.float64))
    assert gradients.value_and_error(gradients.gain, one) == pytest.approx((3.5, 3**0.5))
    twice = measured(2 * products, torch.eye(3, dtype=torch.float64))
    assert gradients.value_and_error(gradients.gain, twice, one) == pytest.approx((3.5, 3**0.5))


def test_leaving_a_batch_out_of_the_products_is_leaving_out_its_step_and_its_gradient():
    """From the vectors themselves, each statistic anew without the batch."""
    steps, more, rewards = drawn(5, 7, seed=0), drawn(5, 7, seed=1), drawn(5, 7, seed=2)
    gains, ratios = drawn(5, 5, seed=3), drawn(5, 5, seed=4).exp()
    held = torch.tensor([[(c - b) % 5 in (1, 2) for c in range(5)] for b in range(5)])
    arm = measured(steps, rewards, (gains * held, ratios * held))

    def gain(kept, of=steps):
        return fmean(float(of[b] @ torch.stack([rewards[c] for c in kept if c != b]).mean(0)) for b in kept)

    def cosine(kept):
        means = {b: torch.stack([rewards[c] for c in kept if c != b]).mean(0) for b in kept}
        return fmean(float(torch.cosine_similarity(steps[b], means[b], dim=0)) for b in kept)

    def sampled(kept):
        met = {b: [c for c in kept if held[b, c]] for b in kept}
        return fmean(
            float(sum(gains[b, c] for c in met[b]) / sum(ratios[b, c] for c in met[b])) for b in kept if met[b]
        )

    def by_force(statistic):
        left = [statistic([b for b in range(5) if b != k]) for k in range(5)]
        return statistic(list(range(5))), (4 / 5 * sum((value - fmean(left)) ** 2 for value in left)) ** 0.5

    assert gradients.value_and_error(gradients.gain, arm) == pytest.approx(by_force(gain))
    assert gradients.value_and_error(gradients.cosine, arm) == pytest.approx(by_force(cosine))
    assert gradients.value_and_error(gradients.sampled_gain, arm) == pytest.approx(by_force(sampled))
    difference = by_force(lambda kept: gain(kept) - gain(kept, more))
    assert gradients.value_and_error(gradients.gain, arm, measured(more, rewards)) == pytest.approx(difference)


def test_the_error_is_that_of_repetitions_where_the_gradient_of_the_reward_is_noisier_than_the_steps():
    values, errors, of_steps_alone = [], [], []
    for seed in range(400):
        steps, rewards = 1 + 0.3 * drawn(12, 4, seed=2 * seed), 1 + drawn(12, 4, seed=2 * seed + 1)
        arm = measured(steps, rewards)
        value, error = gradients.value_and_error(gradients.gain, arm)
        by_batch = (arm.products_BC.sum(1) - arm.products_BC.diag()) / 11
        values.append(value)
        errors.append(error**2)
        of_steps_alone.append(float(by_batch.var()) / 12)
    assert fmean(errors) ** 0.5 == pytest.approx(stdev(values), rel=0.12)
    assert fmean(of_steps_alone) ** 0.5 < 0.6 * stdev(values)


def test_surprise_is_what_the_tokens_of_a_thought_cost(group):
    """-log p summed over each segment, by the forwards that gradients are taken of."""
    model, tokenizer = toy.load_model()
    for rollout, logp_T in zip(group, gradients.all_logp(model, group), strict=True):
        found = arms_of.later_scores_of(model, tokenizer, rollout)["surprise"]
        by_hand = [-float(logp_T[piece].sum()) for piece in rollout.segments.slices]
        thoughts = rollout.segments.thought_S.tolist()
        pairs = [pair for pair, thought in zip(zip(found, by_hand, strict=True), thoughts, strict=True) if thought]
        assert [one for one, _ in pairs] == pytest.approx([other for _, other in pairs], abs=1e-4)


def test_the_table_pairs_differences_by_batch_and_the_best_rule_is_that_of_the_reward():
    """`both` gains 0.1 more in every product, so its difference has no error."""
    rewards, products = torch.eye(4, dtype=torch.float64), drawn(4, 4, seed=0)
    of_arms = {"uniform": measured(products, rewards), "both": measured(products + 0.1, rewards)}
    line = next(line for line in gradients.table(of_arms, ("uniform",)).splitlines() if line.startswith("| both"))
    assert "| 0.10000 ± 0.00000 |" in line
    names = list(arms_of.RULES)
    assert script.best_rule({name: measured(products + i, rewards) for i, name in enumerate(names)}) == names[-1]


# --- halves, problems and methods ---


def test_halves_share_no_batch():
    choose, report = script.of_half(7, "choose"), script.of_half(7, "report")
    assert sorted([*choose, *report]) == list(range(7))


def test_a_half_is_measured_with_its_own_batches_alone(group, tmp_path):
    """The other half's rollouts and gradients are not there. Batch c of this one has the gradient (c, c, c, ...)."""
    given = SimpleNamespace(out=tmp_path, batch=3, held=2, workers=1)
    ones = torch.ones(sum(p.numel() for p in toy.load_model()[0].parameters()))
    for c in (3, 4, 5):
        script.save_whole({"gradient": c * ones}, tmp_path / "reward" / f"{c}.safetensors")
    arms = {"uniform": (arms_of.ARMS["uniform"], ("uniform", {}))}
    script.write_comparison(given, [None] * 9 + group * 3, {}, arms, "report", "some", 0)
    arm = script.results(given, 6, "report", "some")["uniform"]
    for b in range(3):
        assert (arm.products_BC[b] / arm.products_BC[b, 0]).tolist() == pytest.approx([1, 4 / 3, 5 / 3], rel=1e-3)
        assert [value > 0 for value in arm.ratios_BC[b].tolist()] == [c != b for c in range(3)]
        assert [value > 0 for value in arm.gains_BC[b].tolist()] == [c != b for c in range(3)]
    assert (arm.rewards_CC / len(ones)).flatten().tolist() == pytest.approx(
        [9, 12, 15, 12, 16, 20, 15, 20, 25], rel=1e-3
    )


def test_sums_stand_at_the_batches_that_were_held():
    assert script.sums_of_batches(torch.tensor([1.0, 2.0, 3.0, 4.0]), [3, 0], 4) == [7.0, 0.0, 0.0, 3.0]


def test_a_reward_counts_against_the_others_of_its_group():
    groups = {"a": (1.0, 0.0), "b": (0.0, 1.0, 1.0)}
    rollouts = [SimpleNamespace(group=group, reward=reward) for group, rewards in groups.items() for reward in rewards]
    assert gradients.above_the_others(rollouts).tolist() == [1.0, -1.0, -1.0, 0.5, 0.5]


def test_the_baseline_takes_nothing_from_the_expected_change():
    """Two rollouts that are right half the time, and three quarters of the time after a step: ratios 1.5 and 0.5. Over
    the four groups, all as likely, the mean of ratio x (reward - the other's) is the whole change of 0.25."""
    changes = []
    for rewards in ((0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0)):
        above = gradients.above_the_others([SimpleNamespace(group="a", reward=reward) for reward in rewards])
        ratios = torch.tensor([1.5 if reward else 0.5 for reward in rewards])
        changes.append(float((ratios * above).mean()))
    assert fmean(changes) == pytest.approx(0.25)


def test_problems_are_those_of_the_grid_unless_others_are_asked_for():
    grid = OmegaConf.load(ROOT / "examples" / "segment_grpo.yaml").problems
    problems = script.problems(script.parsed(["out"]))
    assert len(problems) == 8192 // 8
    assert {problem.meta["n_steps"] for problem in problems} == set(range(grid.steps[0], grid.steps[1] + 1))
    of_all = {problem.problem for problem in toy.sample_problems(4 * len(problems), 2_000_000, grid.ask)}
    assert {problem.problem for problem in problems} <= of_all
    others = script.problems(script.parsed(["out", "--rollouts", "2048", "--ask", "all", "--steps", "3", "3"]))
    assert {problem.meta["n_steps"] for problem in others} == {3}
    assert others[0].answer != others[0].answer[-1]  # three values, not one


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--rollouts", "512"], "2 batches of 128 a half; expected 3 or more"),
        (["--held", "32"], "32 batches of 128 a half; expected 33 or more"),
        (["--batch", "100"], "--batch 100 must hold whole groups of --group 8"),
        (["--steps", "8", "5"], "--steps 8 5: toy problems have 3 to 9"),
    ],
)
def test_what_cannot_be_compared_is_refused(arguments, why):
    with pytest.raises(SystemExit, match=re.escape(why)):
        script.parsed(["out", *arguments])


@pytest.mark.parametrize(("name", "method"), [("entropy 20%", "entropy"), ("grail", "grail")])
def test_an_arm_with_its_own_rule_is_the_method(name, method):
    arm = arms_of.ARMS[name]
    assert arm.right == arm.wrong
    assert arm.right in arms_of.OF_TOKENS
    copied = CreditSettings(
        rule=arm.rule,
        rule_options=dict(arm.options),
        measure=arm.right,
        measure_options={"aggregate": "token"},
        sign="both",
    )
    assert credit_from(OmegaConf.load(METHODS[method])) == copied


@pytest.mark.parametrize(
    ("name", "method", "measures"),
    [
        ("uniform", "uniform", {}),
        ("both", "contrast", {"measure": "contribution", "negative_measure": "mistake", "sign": "both"}),
        ("paper's ig", "paper", {"measure": "ig", "path": "embeddings", "output": "logp", "quadrature": "calibrated"}),
    ],
)
def test_an_arm_with_the_chosen_rule_measures_as_the_method_does(name, method, measures):
    """The gate of `both` and the path of `paper's ig` are those of the methods, whose rules are among those tried."""
    settings, arm = credit_from(OmegaConf.load(METHODS[method])), arms_of.ARMS[name]
    assert settings == CreditSettings(**measures, rule=settings.rule, rule_options=settings.rule_options)
    assert arm.rule is None
    assert (settings.rule, settings.rule_options) in [*arms_of.RULES.values(), ("uniform", {})]
    assert (bool(arm.right), bool(arm.wrong)) == (name != "uniform", settings.sign == "both")
    of_attribution = {"both": arms_of.GATE, "paper's ig": {key: arms_of.PAPER[key] for key in ("path", "output")}}
    asked = {key: value for key, value in of_attribution.get(name, {}).items() if key != "tolerance"}
    assert {key: getattr(settings, key) for key in asked} == asked


def test_the_script_says_of_every_method_whether_it_competes():
    said = re.search(r"Of the methods in .*?\n\n", script.__doc__, re.DOTALL)[0]
    assert set(re.findall(r"`([\w]+)`", said)) == {*METHODS, "both"}


def test_a_killed_comparison_leaves_no_worker_behind(monkeypatch):
    """The worker's own rollouts are a minute of sleep. It is forked here, since a spawned one imports torch first."""
    forked, (read, write) = multiprocessing.get_context("fork"), os.pipe()
    monkeypatch.setattr(script.multiprocessing, "get_context", lambda _: forked)
    monkeypatch.setattr(script, "sampled", lambda _: os.write(write, str(os.getpid()).encode()) and time.sleep(60))
    comparison = os.fork()
    if comparison == 0:
        script.in_parts(SimpleNamespace(workers=1), print)
        os._exit(0)
    worker = int(os.read(read, 20))
    os.kill(comparison, signal.SIGTERM)
    os.waitpid(comparison, 0)
    assert wait_until(lambda: not alive(worker))

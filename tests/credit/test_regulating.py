"""What the phases add to advantages, by hand and against the gradient of entropy."""

from math import exp, log

import pytest
import torch

from segrl import Segments
from segrl.credit.regulating import Likelihoods, Regulation, RegulationSettings, directions, entropy_bonus, steered
from segrl.importance import from_strength

SEGMENTS = Segments((0, 2, 3, 4), ("thought", "thought", "answer"))
SCORES = from_strength(torch.tensor([1.0, 3.0, 9.0]), SEGMENTS)


def test_directions_by_hand():
    """Strengths of 1 and 3 have z-scores of -1 and 1."""
    up, down = 2 / (1 + exp(-1)), 2 / (1 + exp(1))
    assert directions(SCORES, converging=False).tolist() == pytest.approx([up, down, 0])
    assert directions(SCORES, converging=True).tolist() == pytest.approx([-down, -up, 0])
    equal = from_strength(torch.tensor([2.0, 2.0, 9.0]), SEGMENTS)
    assert directions(equal, converging=False).tolist() == [1, 1, 0]
    assert directions(equal, converging=True).tolist() == [-1, -1, 0]


def test_the_bonus_is_surplus_surprise_times_direction_less_that_of_the_others():
    logp_T, entropy_T = torch.tensor([-1.0, -0.5, -2.0, -3.0]), torch.tensor([0.4, 0.5, 1.0, 1.0])
    up, down = 2 / (1 + exp(-1)), 2 / (1 + exp(1))
    likelihoods = Likelihoods(logp_T, entropy_T)
    bonus_T = entropy_bonus(SCORES, SEGMENTS, likelihoods, converging=False, trained_T=torch.ones(4).bool())
    first, third = 0.6 * up, 1.0 * down  # the second is as surprising as it must be
    assert bonus_T.tolist() == pytest.approx([first - third / 2, -(first + third) / 2, third - first / 2, 0.0])
    trained_T = torch.tensor([True, False, True, True])
    bonus_T = entropy_bonus(SCORES, SEGMENTS, likelihoods, converging=False, trained_T=trained_T)
    assert bonus_T.tolist() == pytest.approx([first - third, 0.0, third - first, 0.0])
    alone_T = torch.tensor([True, False, False, True])
    assert not entropy_bonus(SCORES, SEGMENTS, likelihoods, converging=False, trained_T=alone_T).any()


def test_its_expected_gradient_is_that_of_the_entropy():
    """Over all responses of two tokens that could have been sampled, by their probability: that of the first token's
    entropy and of the second's after each first. What the other token gets is only a baseline."""
    generator = torch.Generator().manual_seed(0)
    first_V = torch.randn(3, generator=generator, dtype=torch.float64).requires_grad_()
    second_VV = torch.randn(3, 3, generator=generator, dtype=torch.float64).requires_grad_()
    logp_V, logp_VV = first_V.log_softmax(0), second_VV.log_softmax(1)
    entropy, entropy_V = -(logp_V.exp() * logp_V).sum(), -(logp_VV.exp() * logp_VV).sum(1)
    wanted = torch.autograd.grad(entropy + logp_V.exp().detach() @ entropy_V, [first_V, second_VV], retain_graph=True)
    two = Segments((0, 2))
    equal = from_strength(torch.tensor([1.0]), two)
    surrogate = torch.zeros((), dtype=torch.float64)
    for v in range(3):
        for w in range(3):
            logp_T = torch.stack([logp_V[v], logp_VV[v, w]])
            likelihoods = Likelihoods(logp_T.detach(), torch.stack([entropy, entropy_V[v]]).detach())
            bonus_T = entropy_bonus(equal, two, likelihoods, converging=False, trained_T=torch.ones(2).bool())
            assert float(bonus_T.sum()) == pytest.approx(0, abs=1e-12)
            surrogate = surrogate + logp_T.sum().exp().detach() * (bonus_T @ logp_T)
    for found, gradient in zip(torch.autograd.grad(surrogate, [first_V, second_VV]), wanted, strict=True):
        torch.testing.assert_close(found, gradient)


def test_converging_holds_on_to_the_reference_and_to_what_is_sure():
    settings = RegulationSettings(entropy_weight=0.0, reference_weight=0.1, confidence=True)
    reference_T = torch.tensor([-1.5, -0.5, -1.0, -3.0])
    likelihoods = Likelihoods(torch.tensor([-1.0, -0.5, -2.0, -3.0]), torch.zeros(4), reference_T)
    trained_T = torch.tensor([True, True, True, False])
    converging = Regulation(settings, True, 0.0, {"r": likelihoods})
    added_T = converging.added("r", SCORES, SEGMENTS, trained_T)
    assert added_T.tolist() == pytest.approx([-0.05, 0, 0.1, 0])
    assert converging.times(0.5, confidence=0.8) == 0.8
    assert converging.times(-0.5, confidence=0.8) == 1.0
    exploring = Regulation(settings, False, 0.0, {"r": likelihoods})
    assert exploring.added("r", SCORES, SEGMENTS, trained_T).tolist() == [0, 0, 0, 0]
    assert exploring.times(0.5, confidence=0.8) == 1.0


def test_the_weight_is_steered_to_the_target_and_stays_in_its_range():
    settings = RegulationSettings(entropy_weight=0.01, entropy_target=0.4, entropy_gain=0.5)
    assert log(steered(0.01, 0.2, settings) / 0.01) == pytest.approx(0.25)
    assert log(steered(0.01, 0.6, settings) / 0.01) == pytest.approx(-0.25)
    assert steered(0.9, 0.0, settings) == 1.0
    assert steered(0.00011, 4.0, settings) == 0.0001
    assert steered(0.3, 0.0, RegulationSettings(entropy_weight=0.01)) == 0.3


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"entropy_weight": -1.0}, "segrl.regulation.entropy_weight=-1.0, expected 0 or more"),
        ({"entropy_target": 0.0}, "segrl.regulation.entropy_target=0.0, expected nats above 0, or null"),
    ],
)
def test_a_wrong_setting_is_named(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        RegulationSettings(**settings)

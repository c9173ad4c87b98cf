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


def test_the_bonus_is_surplus_surprise_times_direction():
    logp_T, entropy_T = torch.tensor([-1.0, -0.5, -2.0, -3.0]), torch.tensor([0.4, 0.5, 1.0, 1.0])
    up, down = 2 / (1 + exp(-1)), 2 / (1 + exp(1))
    bonus_T = entropy_bonus(SCORES, SEGMENTS, Likelihoods(logp_T, entropy_T), converging=False)
    assert bonus_T.tolist() == pytest.approx([0.6 * up, 0.0, 1.0 * down, 0.0])


def test_its_expected_gradient_is_that_of_the_entropy():
    """Over all tokens that could have been sampled, weighed by their probability."""
    logits_V = torch.tensor([0.3, -1.0, 2.0, 0.1], dtype=torch.float64, requires_grad=True)
    logp_V = torch.log_softmax(logits_V, 0)
    entropy = -(logp_V.exp() * logp_V).sum()
    (wanted,) = torch.autograd.grad(entropy, logits_V, retain_graph=True)
    one = Segments((0, 1))
    equal = from_strength(torch.tensor([1.0]), one)
    found = torch.zeros(4, dtype=torch.float64)
    for v in range(4):
        likelihoods = Likelihoods(logp_V[v : v + 1].detach(), entropy.detach()[None])
        (gradient,) = torch.autograd.grad(logp_V[v], logits_V, retain_graph=True)
        found += logp_V[v].exp().item() * float(entropy_bonus(equal, one, likelihoods, converging=False)) * gradient
    torch.testing.assert_close(found, wanted)


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

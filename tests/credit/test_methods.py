"""The weights that each yaml of configs/grpo/method gives, by hand: of five thoughts of a token each, and an answer."""

import math

import pytest
import torch
from testkit.pages import trace_of

from segrl.commands.config import CONFIG_DIR, compose
from segrl.credit.rollout import Rollout, evidence_of, weigh_rollout
from segrl.credit.settings import credit_from
from segrl.types import Stream

pytest.importorskip("verl")

RANKS = [0, 0.5, 1, 1.5, 2]
# Norms whose logarithms are 0 to 4: z is -sqrt(2) to sqrt(2) in even steps. 1 + z / 2 begins below the least, 0.5.
NORMS = [1, math.e, math.e**2, math.e**3, math.e**4]
GRAIL = [0.480114, 0.620735, 0.960226, 1.299717, 1.639208]
# Method: what its measure reads of the thoughts, and their weights. Of boundaries one value stands before the first.
BY_HAND = {
    "support": ([0, 1, 4, 9, 7, 15], [0, 0.5, 1.5, 1, 2]),
    "contrast": ([1, 3, -2, 15, 7], [0.5, 1, 0, 2, 1.5]),
    "paper": ([0, -1, 3, -7, 15], RANKS),  # the sum of absolute values
    "entropy": ([0.1, 0.3, 0.9, 0.2, 0.4], [0, 0, 5, 0, 0]),  # the most uncertain fifth of the tokens
    "grail": (NORMS, GRAIL),
    "grail_wrong": (NORMS, GRAIL),
    "oar": ([0, -1, 3, -7, 15], [0.069204, 0.432526, 0.922722, 1.499423, 2.076125]),  # as in test_weighting
    "cliff": ([0, 1, 15, 7, 3], [0.4, 0.4, 1.4, 1.4, 1.4]),  # two fifths lie before the third thought
    "delta": ([0, 0.25, 0.5, 0.75, 1], [0.8, 0.9, 1, 1.1, 1.2]),
    # gains of 0 to 4: 1 + 0.2 z
    "acpo": ([0, 0, 1, 3, 6, 10], [1 - 0.2 * math.sqrt(2), 1 - 0.1 * math.sqrt(2), 1, 1.141421, 1.282843]),
}
ALONE = {"support": -0.5, "paper": -0.5, "grail_wrong": 0.5, "cliff": 0.5}  # the advantage that a method leaves alone


def test_every_method_is_here():
    assert {*BY_HAND, "uniform"} == {path.stem for path in (CONFIG_DIR / "grpo" / "method").glob("*.yaml")}


@pytest.mark.parametrize(
    ("method", "advantage"), [(name, sign) for name in BY_HAND for sign in (0.5, -0.5) if sign != ALONE.get(name)]
)
def test_the_weights_of_a_yaml(method, advantage):
    settings, (read, weights) = credit_from(compose("grpo", [f"method={method}"])), BY_HAND[method]
    assert settings.sign == {None: "both", -0.5: "positive", 0.5: "negative"}[ALONE.get(method)]
    trace, segments = trace_of(["a", "b", "c", "d", "e", "</think> \\boxed{12}"])
    rollout = Rollout("a_0_0", trace, segments, torch.full((trace.tokens,), advantage), float(advantage > 0))
    behind = [read[-1]] if len(read) > 5 else [0.0] * (trace.tokens - 5)  # a value for the answer, or for its tokens
    stream = Stream(torch.tensor([float(one) for one in [*read, *behind]]))
    weighed = weigh_rollout(rollout, evidence_of(rollout, stream, settings), settings, step=1)
    assert weighed.weights_T.tolist() == pytest.approx([*weights, *[1.0] * (trace.tokens - 5)], abs=2e-6)

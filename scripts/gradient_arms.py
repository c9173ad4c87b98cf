"""The arms that scripts/gradient_quality.py compares: what weighs right and wrong responses, by which rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

import segrl
from segrl.analysis.arms import GATES
from segrl.attribution import PAPER
from segrl.credit.rollout import Rollout
from segrl.importance import from_strength, score, token_scores
from segrl.importance.aggregation import permuted
from segrl.importance.measures import MISTAKES, ORACLE
from segrl.importance.reading import seed_of
from segrl.toy.kinds import kinds_of
from segrl.toy.world import CLASSES
from segrl.types import SegmentScores, TokenisedTrace
from segrl.weighting import Weighable, weigh_together

GATE = {**GATES, "nodes": 1}
OF_TOKENS = ("entropy", "grail")


@dataclass(frozen=True)
class Arm:
    """The scores that weigh right responses, and those that weigh wrong ones: names of `scores_of`; None for ones.

    An arm without a rule takes the rule that was chosen.
    """

    right: str | None = None
    wrong: str | None = None
    rule: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    permuted: bool = False


ARMS = {
    "uniform": Arm(),
    "both": Arm("own", "contrast"),
    "own alone": Arm("own"),
    "minus gold": Arm("own", "minus_gold"),
    "paper's ig": Arm("ig"),
    "entropy 20%": Arm("entropy", "entropy", "top", {"share": 0.2}),
    "grail": Arm("grail", "grail", "zscore", {"gain": 0.5, "low": 0.5, "high": 5.0}),
    "random": Arm("random", "random"),
    "permuted": Arm("own", "contrast", permuted=True),
    "position": Arm("position", "position"),
    "length": Arm("length", "length"),
    "planted": Arm("planted", "planted"),
}
# For --arms alone: grail's own control, and wrong responses weighed by what surprised the model, with its control.
LATER = {
    "grail permuted": replace(ARMS["grail"], permuted=True),
    "surprise": Arm(None, "surprise"),
    "surprise permuted": Arm(None, "surprise", permuted=True),
}
# Rule and width, chosen for `both` on the first half.
RULES = {
    "rank 0.8 to 1.2": ("rank", {"low": 0.8, "high": 1.2}),
    "rank 0 to 2": ("rank", {"low": 0.0, "high": 2.0}),
    "softmax at 1": ("softmax", {"temperature": 1.0}),
    "softmax at 0.5, a fifth spread evenly": ("softmax", {"temperature": 0.5, "floor": 0.2}),
}


def scores_of(model, tokenizer, rollout: Rollout) -> dict[str, list[float]]:
    """The rollout's strengths by every measure that an arm of `ARMS` reads: of its segments, or of its tokens."""
    explained, read = own_answered(rollout), partial(strengths, model, tokenizer, rollout)
    scores = {
        "own": read(explained, "contribution", GATE),
        "ig": read(explained, "ig", {**PAPER, "nodes": 12, "tolerance": None}),
        "entropy": read(explained, "entropy", {}, aggregate="token"),
        "grail": read(explained, "grail", {}, aggregate="token"),
        "position": read(explained, "position", {}),
        "length": read(explained, "length", {}),
        "random": read(explained, "random", {}),
        "planted": planted(rollout),
    }
    if not rollout.reward:
        gold = replace(explained, answer=rollout.gold)
        scores["contrast"] = read(gold, "mistake", GATE)
        scores["minus_gold"] = [-value for value in read(gold, "contribution", GATE)]
    return scores


def later_scores_of(model, tokenizer, rollout: Rollout) -> dict[str, list[float]]:
    """The rollout's strengths by the further measures that an arm of `LATER` reads."""
    return {"surprise": strengths(model, tokenizer, rollout, own_answered(rollout), "surprise", {})}


def own_answered(rollout: Rollout) -> TokenisedTrace:
    return replace(rollout.trace, meta={**rollout.trace.meta, "own_answer": rollout.trace.answer})


def strengths(model, tokenizer, rollout: Rollout, explained, measure: str, options, **of_measure) -> list[float]:
    needs = segrl.importance.measure_of(measure).needs
    [evidence] = segrl.gather(model, [explained], tokenizer, needs, segments=[rollout.segments], **options)
    return score(evidence, rollout.segments, measure, **of_measure).strength_S.tolist()


def planted(rollout: Rollout) -> list[float]:
    """The planted truth: in a right response the needed thoughts, in a wrong one the first wrong step and what depends
    on it."""
    kinds = kinds_of(rollout.trace.problem, rollout.trace, rollout.segments)
    if rollout.reward:
        return [ORACLE[CLASSES[kind]] for kind in kinds]
    return [float(kind in MISTAKES) for kind in kinds]


def weights_of(
    rollouts: Sequence[Rollout], scores: Mapping[str, dict], arm: Arm, chosen: tuple[str, dict]
) -> dict[str, Tensor]:
    """By key, the weights of a batch's rollouts that the arm weighs."""
    rule, options = (arm.rule, arm.options) if arm.rule else chosen
    pool = {}
    for rollout in rollouts:
        name = arm.right if rollout.reward else arm.wrong
        if name and rollout.key in scores:
            segment_scores = as_scores(scores[rollout.key][name], rollout, name)
            if arm.permuted:
                drawn = torch.Generator().manual_seed(seed_of(0, rollout.key))
                segment_scores = permuted(segment_scores, rollout.segments, drawn)
            pool[rollout.key] = Weighable(segment_scores, rollout.segments, None, rollout.advantage)
    return {key: weigh_together([weighable], rule, sign="both", **options)[0] for key, weighable in pool.items()}


def as_scores(strengths: Sequence[float], rollout: Rollout, name: str) -> SegmentScores:
    values = torch.tensor(strengths, dtype=torch.float64)
    return token_scores(values, rollout.segments) if name in OF_TOKENS else from_strength(values, rollout.segments)

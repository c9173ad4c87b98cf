"""One rollout: its trace and segments, and how its advantage is spread over its tokens.

Nothing here knows of verl, Ray or a model.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from segrl.credit.settings import ALONG_A_PATH, OF_THE_ANSWER, CreditSettings
from segrl.grading.answer import extract
from segrl.importance import score
from segrl.importance.aggregation import permuted
from segrl.importance.lockstep import AFTER_PREFIXES, SUPPORT
from segrl.importance.reading import seed_of
from segrl.segmentation import segment
from segrl.selection import select
from segrl.text.ending import finish_of
from segrl.text.prompting import prompt_tail
from segrl.toy.kinds import kinds_of
from segrl.types import Evidence, Segments, SegmentScores, Selection, Stream, TokenisedTrace, Trace, given
from segrl.weighting import Weighable, weigh_together


@dataclass(frozen=True, eq=False)
class Rollout:
    """One row of verl's batch: its key in the TransferQueue, what was sampled, its reward, the advantages verl gave it,
    and the gold answer where that is explained, alone or in a contrast."""

    key: str
    trace: TokenisedTrace
    segments: Segments
    advantages_T: Tensor
    reward: float = 0.0
    gold: str | None = None

    @property
    def tokens(self) -> int:
        """The number of tokens of prompt and response."""
        return len(self.trace.prompt_ids) + self.trace.tokens

    @property
    def group(self) -> str:
        """The part of the key that the rollouts of one prompt share: keys are ``{prompt}_{session}_{turn}``."""
        return self.key.rsplit("_", 2)[0]

    @property
    def session(self) -> str:
        return self.key.rsplit("_", 1)[0]

    @property
    def advantage(self) -> float:
        """The mean advantage of the trained tokens; GRPO gives all of them the same."""
        trained = self.trace.trainable_T
        return float(self.advantages_T[trained].mean()) if bool(trained.any()) else 0.0

    @property
    def thoughts(self) -> int:
        return int(self.segments.thought_S.sum())

    @property
    def weighted_T(self) -> Tensor:
        """The tokens whose weights have mean one: trained, and part of the thinking."""
        return self.trace.trainable_T & self.segments.thought_T


@dataclass(frozen=True, eq=False)
class Weighed:
    """A rollout with its scores, its selection and the weights of its tokens."""

    rollout: Rollout
    scores: SegmentScores
    selection: Selection
    weights_T: Tensor
    stream: Stream | None = None
    confidence: float | None = None  # the answer's probability after the whole thinking, where that was read
    target: str | None = None  # the answer that the scores explain

    @property
    def uniform(self) -> bool:
        """Whether all weights of the thinking are equal."""
        inside = self.weights_T[self.rollout.weighted_T]
        return not len(inside) or bool((inside == inside[0]).all())


def rollout_trace(
    key: str, prompt_ids: Tensor, response_ids: Tensor, trainable_T: Tensor, tokenizer, ends: Collection[int]
) -> TokenisedTrace:
    """The trace of a rollout. Its answer is the response's own, or None where the response gives none. ``ends``: the
    tokens that end a response."""
    finish = finish_of(response_ids.tolist(), ends)
    trace = Trace.from_ids(
        id=key,
        problem=tokenizer.decode(prompt_ids.tolist()),
        prompt_ids=prompt_ids,
        response_ids=response_ids,
        tokenizer=tokenizer,
        trainable_T=trainable_T.bool(),
        meta={"finish": finish},
    )
    answer = extract(trace.response, prompt=prompt_tail(prompt_ids.tolist(), tokenizer), finish=finish)
    answer = answer or None
    return replace(trace, answer=answer, meta={**trace.meta, "own_answer": answer})


def make_rollout(
    key: str,
    trace: TokenisedTrace,
    advantages_T: Tensor,
    settings: CreditSettings,
    reward: float = 0.0,
    gold: str | None = None,
    cutting_T: Tensor | None = None,
) -> Rollout:
    """The rollout with its segments, and the kinds of its thoughts where the measure reads them. ``cutting_T`` is the
    number of each token that the segmenter reads, if it reads one."""
    options = dict(settings.segmentation)
    read: dict[str, Any] = {settings.cuts_by: cutting_T} if settings.cuts_by else {}
    evidence = Evidence(trace, **read) if read else None
    segments = segment(trace, settings.segmenter, evidence, **options.pop("options", {}), **options)
    if any(side.reads_kinds for side in settings.sides):
        trace = replace(trace, meta={**trace.meta, "kinds": kinds_of(trace.problem, trace, segments)})
    return Rollout(key, trace, segments, advantages_T, reward, gold)


def evidence_of(rollout: Rollout, stream: Stream | None, settings: CreditSettings) -> Evidence:
    """The evidence for the measure of the rollout's side, made from the stream that was read for it."""
    need = settings.side(rollout.advantage).need
    if need is None:
        return Evidence(rollout.trace)
    if need == AFTER_PREFIXES:
        empty, *after = given(stream).scores_T.double()
        return Evidence(
            rollout.trace,
            segments=rollout.segments,
            output=settings.output,
            prefix_logp_S=torch.stack(after),
            empty_logp=float(empty),
        )
    if need == SUPPORT:
        return Evidence(rollout.trace, segments=rollout.segments, support_S=given(stream).scores_T[1:])
    fields: dict[str, Any] = {need: stream if need in ALONG_A_PATH else given(stream).scores_T}
    return Evidence(rollout.trace, **fields)


def scores_of(rollout: Rollout, evidence: Evidence, settings: CreditSettings) -> SegmentScores:
    """The scores of the rollout's segments, by the measure of its side."""
    side = settings.side(rollout.advantage)
    scores = score(evidence, rollout.segments, side.measure, **side.options)
    if not settings.permuted:
        return scores
    return permuted(scores, rollout.segments, torch.Generator().manual_seed(seed_of(0, rollout.key)))


def weigh_rollout(rollout: Rollout, evidence: Evidence, settings: CreditSettings, step: int) -> Weighed:
    """One rollout with its weights."""
    return weigh_rollouts([rollout], [evidence], settings, step)[0]


def weigh_rollouts(
    rollouts: Sequence[Rollout], evidence: Sequence[Evidence], settings: CreditSettings, step: int
) -> list[Weighed]:
    """The rollouts with their weights. By ``scope`` the rule compares the segments of one rollout, or those of all
    rollouts on one side."""
    keys = [rollout.key for rollout in rollouts]
    read = dict(zip(keys, evidence, strict=True))
    scores = {rollout.key: scores_of(rollout, read[rollout.key], settings) for rollout in rollouts}
    selections = {key: select(scores[key], settings.tau, settings.beta) for key in keys}
    weights: dict[str, Tensor] = {}
    for pool in _pools(rollouts, settings):
        ruled = weigh_together(
            [_weighable(rollout, scores[rollout.key], selections[rollout.key], read[rollout.key]) for rollout in pool],
            settings.rule,
            step,
            sign=settings.sign,
            warmup_steps=settings.warmup_steps,
            mean_one=settings.mean_one,
            **settings.rule_options,
        )
        weights |= {rollout.key: weights_T for rollout, weights_T in zip(pool, ruled, strict=True)}
    return [
        Weighed(
            rollout,
            scores[key],
            selections[key],
            weights[key],
            read[key].ig or read[key].contrast,
            _confidence(read[key]),
            _target(rollout, settings),
        )
        for key, rollout in zip(keys, rollouts, strict=True)
    ]


def _weighable(rollout: Rollout, scores: SegmentScores, selection: Selection, evidence: Evidence) -> Weighable:
    signed_T = evidence.ig.scores_T if evidence.ig else None
    trained_T = rollout.trace.trainable_T
    return Weighable(scores, rollout.segments, selection, rollout.advantage, trained_T, signed_T)


def _confidence(evidence: Evidence) -> float | None:
    if evidence.prefix_logp_S is None:
        return None
    value = evidence.prefix_logp_S[-1]
    return float(value.exp() if evidence.output == "logp" else value.sigmoid())


def _target(rollout: Rollout, settings: CreditSettings) -> str | None:
    side = settings.side(rollout.advantage)
    return side.explains if side.need in OF_THE_ANSWER else None


def _pools(rollouts: Sequence[Rollout], settings: CreditSettings) -> list[list[Rollout]]:
    """The rollouts in pools; the rule compares the segments of one pool."""
    if settings.scope == "response":
        return [[rollout] for rollout in rollouts]
    pools = [[rollout for rollout in rollouts if settings.side(rollout.advantage) == side] for side in settings.sides]
    return [pool for pool in pools if pool]


def record(rollout: Rollout, why: str | None, weighed: Weighed | None, advantages_T: Tensor) -> dict[str, Any]:
    """One line of the rollout dump. ``advantages_T`` is what the TransferQueue holds after the weights were applied.

    ``uniform`` is the reason why every weight is one, or null. Without scores, the fields for scores are empty.
    """
    segments, scores = rollout.segments, weighed.scores if weighed else None
    stream = weighed.stream if weighed else None
    return {
        "key": rollout.key,
        "group": rollout.group,
        "reward": rollout.reward,
        "prompt": rollout.trace.problem,
        "response": rollout.trace.response,
        "answer": rollout.trace.answer,
        "gold": rollout.gold,
        "finish": rollout.trace.finish,
        "offsets": rollout.trace.offsets_T.tolist(),
        "boundaries": list(segments.boundaries),
        "kinds": list(segments.kinds_S),
        "uniform": why,
        "strength": scores.strength_S.tolist() if scores else [],
        "share": scores.share_S.tolist() if scores else [],
        "consistency": scores.consistency_S.tolist() if scores else [],
        "keep": weighed.selection.keep_S.tolist() if weighed else [],
        "reason": list(weighed.selection.reason_S) if weighed else [],
        "target": weighed.target if weighed else None,
        "gap": _number(stream.gap) if stream else None,
        "copy_share": _number(stream.copy_share) if stream else None,
        "advantage": rollout.advantage,
        "trainable": rollout.trace.trainable_T.tolist(),
        "weights": weighed.weights_T.tolist() if weighed else [1.0] * segments.tokens,
        "advantages": advantages_T.tolist(),
    }


def _number(value: float | None) -> float | None:
    """The value, or None for NaN and infinity, which JSON cannot write."""
    return value if value is not None and isfinite(value) else None

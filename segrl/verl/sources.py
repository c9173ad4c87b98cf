"""Where the one number a token comes from that a measure reads: the live actor, the reference, frozen actors, or what
verl has computed anyway."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from transfer_queue import KVBatchMeta

from segrl.attribution.lockstep import Request, explained
from segrl.credit.rollout import Rollout, evidence_of
from segrl.credit.settings import BY_GRADIENT, FROM_VERL, Credit
from segrl.types import Evidence, Stream
from segrl.verl.frozen import FrozenAttributors
from segrl.verl.queue import columns, dispatched, write_scores
from segrl.verl.worker import FIELDS, MASSES, SCORES

COLUMN = dict(zip(FROM_VERL, ("entropy", "old_log_probs"), strict=True))


class Sources:
    """``workers`` is verl's group of actor workers, ``frozen`` the group of our own, if any."""

    def __init__(self, workers, frozen: FrozenAttributors | None, credit: Credit, tokenizer) -> None:
        self.workers, self.frozen, self.credit, self.tokenizer = workers, frozen, credit, tokenizer

    @property
    def ranks(self) -> int:
        return max(self.workers._dispatch_info["actor"]) + 1

    def evidence(
        self, batch: KVBatchMeta, chosen: Sequence[Rollout], request: Request, live: bool = False
    ) -> list[Evidence | None]:
        """None for a rollout whose numbers are not finite."""
        keys = [one.key for one in chosen]
        if self.credit.need not in BY_GRADIENT:
            column = COLUMN.get(self.credit.need or "")
            if column is None:
                return [evidence_of(rollout, None, self.credit) for rollout in chosen]
            (values,) = columns(keys, batch.partition_id, [column])
            streams = [Stream(values_T) for values_T in values]
        else:
            self.attribute(batch, chosen, request, live)
            streams = [
                Stream(scores_T, float(gap), float(copied))
                for scores_T, gap, copied in zip(*self._scores(batch, keys), strict=True)
            ]
        return [self._evidence(rollout, stream) for rollout, stream in zip(chosen, streams, strict=True)]

    def _evidence(self, rollout: Rollout, stream: Stream) -> Evidence | None:
        finite = bool(torch.isfinite(stream.scores_T).all())
        return evidence_of(rollout, stream, self.credit) if finite else None

    def attribute(self, batch: KVBatchMeta, chosen: Sequence[Rollout], request: Request, live: bool = False) -> None:
        """Leaves the fields ``SCORES`` of the chosen rollouts in the TransferQueue; ``live`` asks the actor even where
        frozen ones attribute.
        """
        keys = [one.key for one in chosen]
        if self.frozen is None or live:
            self.workers.compute_segrl_scores(dispatched(batch, keys, self.ranks, FIELDS, segrl=request))
            return
        golds = [one.gold or "" for one in chosen] if request.target == "gold" else []
        traces = explained([one.trace for one in chosen], request.target, golds)
        found = dict(zip(keys, self.frozen.attributed(traces, request), strict=True))
        write_scores(batch, found)

    def masses_on_grid(self, batch: KVBatchMeta, chosen: Sequence[Rollout], request: Request, nodes: int) -> list:
        """Masses at every node of a grid, ``(nodes, tokens)`` a rollout. Of the live actor, or the reference."""
        keys = [one.key for one in chosen]
        about = {"segrl": replace(request, certificate=False), "segrl_nodes": nodes}
        self.workers.compute_segrl_masses(dispatched(batch, keys, self.ranks, FIELDS, **about))
        (masses,) = columns(keys, batch.partition_id, [MASSES])
        return [flat.double().reshape(nodes, -1) for flat in masses]

    def _scores(self, batch: KVBatchMeta, keys: list[str]) -> list[list]:
        return columns(keys, batch.partition_id, SCORES)

"""Evidence for rollouts: from the live actor, the reference, frozen attributors, or what verl has computed anyway."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import ray
import torch
from transfer_queue import KVBatchMeta

from segrl.attribution.cluster import ModelPool
from segrl.credit.checks import check_vocabulary
from segrl.credit.rollout import Rollout, evidence_of
from segrl.credit.settings import OF_THE_ANSWER, OF_THE_RESPONSE, CreditSettings, Side
from segrl.importance.discriminating import ACROSS_RESPONSES
from segrl.importance.lockstep import (
    OF_SEGMENTS,
    Request,
    attribute_in_lockstep,
    explained,
    split_until,
    together,
)
from segrl.loading import load_tokenizer
from segrl.types import Evidence, Stream, TokenisedTrace, given
from segrl.verl.queue import COLUMN, columns, dispatched, known, write_column
from segrl.verl.worker import ADVANTAGE, BOUNDARIES, FIELDS, LOGP, MASSES, SCORES


class Sources:
    """What gathers evidence. ``workers``: verl's group of actor workers; ``frozen``: the frozen attributors, if any."""

    def __init__(self, workers, frozen: FrozenAttributors | None, settings: CreditSettings) -> None:
        self.workers, self.frozen, self.settings = workers, frozen, settings

    @property
    def ranks(self) -> int:
        return max(self.workers._dispatch_info["actor"]) + 1

    def evidence(
        self, batch: KVBatchMeta, chosen: Sequence[Rollout], request: Request, live: bool = False
    ) -> list[Evidence | None]:
        """Each rollout's evidence, or None where its numbers are not finite. Each side has a request of its own."""
        evidence: dict[str, Evidence | None] = {}
        for side in self.settings.sides:
            rollouts = [rollout for rollout in chosen if self.settings.side(rollout.advantage) == side]
            streams = self._streams(batch, rollouts, side, request, live) if rollouts else []
            pairs = zip(rollouts, streams, strict=True)
            evidence |= {rollout.key: self._evidence(rollout, stream) for rollout, stream in pairs}
        return [evidence[rollout.key] for rollout in chosen]

    def _streams(
        self, batch: KVBatchMeta, chosen: Sequence[Rollout], side: Side, request: Request, live: bool
    ) -> Sequence[Stream | None]:
        """What the side's measure reads: one stream a rollout, or None where it reads nothing."""
        if side.need is None:
            return [None] * len(chosen)
        if side.need in OF_THE_ANSWER:
            return self.attribute(batch, chosen, replace(request, need=side.need, target=side.explains), live)
        if side.need in OF_THE_RESPONSE:
            return self.attribute(batch, chosen, replace(request, need=side.need, target="own"), live)
        if side.compares_responses:
            return self.attribute(batch, chosen, replace(request, need=side.need, target="own"), live=True)
        keys = [rollout.key for rollout in chosen]
        (rows,) = columns(keys, batch.partition_id, [COLUMN[side.need]])
        return [Stream(values_T) for values_T in rows]

    def _evidence(self, rollout: Rollout, stream: Stream | None) -> Evidence | None:
        finite = stream is None or bool(torch.isfinite(stream.scores_T).all())
        return evidence_of(rollout, stream, self.settings) if finite else None

    def attribute(
        self, batch: KVBatchMeta, chosen: Sequence[Rollout], request: Request, live: bool = False
    ) -> list[Stream]:
        """One stream a rollout, from the frozen attributors if there are any, else from verl's actor workers through
        the TransferQueue. ``live`` asks the actor workers in either case.
        """
        if self.frozen is None or live:
            keys = [rollout.key for rollout in chosen]
            subset = dispatched(batch, keys, self.ranks, FIELDS, segrl=request)
            if request.need in OF_SEGMENTS:
                _tell(subset, BOUNDARIES, {rollout.key: rollout.segments.boundaries for rollout in chosen}, (0,))
            if request.need in ACROSS_RESPONSES:
                _tell(subset, ADVANTAGE, {rollout.key: (rollout.advantage,) for rollout in chosen}, (0.0,))
            if request.need in ACROSS_RESPONSES or (request.need in OF_THE_RESPONSE and request.logps_given):
                subset.fields = [*subset.fields, LOGP]
            self.workers.compute_segrl_scores(subset)
            return streams_of(*columns(keys, batch.partition_id, SCORES), path=request.path)
        golds = [rollout.gold or "" for rollout in chosen] if request.target != "own" else []
        traces = [rollout.trace for rollout in chosen]
        given_to = explained(traces, request.target, golds, self.frozen.tokenizer)
        streams = self.frozen.attribute(given_to, request, [rollout.segments.boundaries for rollout in chosen])
        # In float32, like the values that arrive from the actor workers.
        gaps, copied = known([stream.gap for stream in streams]), known([stream.copy_share for stream in streams])
        return streams_of([stream.scores_T for stream in streams], gaps, copied, path=request.path)

    def masses_on_grid(self, batch: KVBatchMeta, chosen: Sequence[Rollout], request: Request, nodes: int) -> list:
        """Masses at every node of a grid, ``(nodes, tokens)`` a rollout, by the live actor or the reference."""
        keys = [rollout.key for rollout in chosen]
        extra = {"segrl": replace(request, certificate=False), "segrl_nodes": nodes}
        self.workers.compute_segrl_masses(dispatched(batch, keys, self.ranks, FIELDS, **extra))
        (rows,) = columns(keys, batch.partition_id, [MASSES])
        return [masses.double().reshape(nodes, -1) for masses in rows]


def _tell(subset: KVBatchMeta, name: str, rows: Mapping[str, Sequence], filler: Sequence) -> None:
    """Write one more column for the workers. Rows that only fill up the ranks get ``filler``."""
    write_column(subset.keys, subset.partition_id, name, [torch.tensor(rows.get(key, filler)) for key in subset.keys])
    subset.fields = [*subset.fields, name]


def streams_of(scores: Sequence[torch.Tensor], gaps, copy_shares, *, path: str) -> list[Stream]:
    """The streams of rollouts from their columns."""
    rows = zip(scores, gaps, copy_shares, strict=True)
    return [Stream(scores_T, float(gap), float(copy_share), path) for scores_T, gap, copy_share in rows]


# --- frozen attributors: Ray actors with a model that never changes ---------------------------------------------------


class FrozenAttributors:
    """``attributor_workers`` Ray actors, each on ``attributor_gpus`` GPUs; on a CPU each on one core."""

    def __init__(self, settings: CreditSettings, tokenizer, on_cpu: bool) -> None:
        path = given(settings.attributor_path)
        self.tokenizer = load_tokenizer(path)
        check_vocabulary(tokenizer, self.tokenizer, path)
        dtype, device = ("float32", "cpu") if on_cpu else (settings.attributor_dtype, "auto")
        if not on_cpu:
            check_free(settings.attributor_workers, settings.attributor_gpus, ray.available_resources().get("GPU", 0))
        # An attribution has no side effects: where the process dies, a new process repeats the call, once.
        self.pool = ModelPool(
            {"path": path, "dtype": dtype, "device": device},
            settings.attributor_workers,
            num_cpus=1,
            num_gpus=0 if on_cpu else settings.attributor_gpus,
            max_restarts=1,
            max_task_retries=1,
        )

    def attribute(
        self, traces: Sequence[TokenisedTrace], request: Request, boundaries: Sequence[Sequence[int]]
    ) -> list[Stream]:
        """One stream a trace; traces of like length share a call to an actor."""
        lengths = [len(trace.prompt_ids) + trace.tokens for trace in traces]
        groups = together(lengths, request.tokens)
        groups = split_until(groups, min(len(self.pool.actors), len(traces)))
        request = replace(request, agree=False)
        calls = {
            g: ([traces[i] for i in group], request, [boundaries[i] for i in group]) for g, group in enumerate(groups)
        }
        streams: dict[int, Stream] = {}
        for g, of_group in self.pool.run(_attribute, calls):
            streams.update(zip(groups[g], of_group, strict=True))
        return [streams[i] for i in range(len(traces))]


def check_free(workers: int, gpus: float, free: float) -> None:
    """Raise where the actors' GPUs are not there: Ray would wait for them without end."""
    if workers * gpus > free:
        raise ValueError(
            f"segrl.attributor_workers={workers} of segrl.attributor_gpus={gpus} take {workers * gpus:g} GPUs, and the "
            f"trainer leaves {free:g} free; lower trainer.n_gpus_per_node, or take segrl.attributor=live"
        )


def _attribute(model, tokenizer, traces: Sequence[TokenisedTrace], request: Request, boundaries) -> list[Stream]:
    return attribute_in_lockstep(model, traces, tokenizer, request, boundaries)

"""verl's trainers with one more step before the update: attribute, select, weigh.

verl computes the advantages; the weights are multiplied onto them in the TransferQueue, so the loss stays verl's own.
Importing this module registers the trainers under ``trainer.v1.trainer_mode``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import ray
import torch
import transfer_queue as tq
from omegaconf import open_dict
from tensordict import TensorDict
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.utils import Role
from verl.trainer.ppo.v1 import PPOTrainerSync, register_trainer
from verl.utils.debug import marked_timer
from verl.utils.seqlen_balancing import get_seqlen_balanced_partitions

from segrl.verl.credit import (
    Rollout,
    Weighed,
    credit_from,
    credit_metrics,
    make_rollout,
    record,
    rollout_trace,
    weigh_rollout,
    worth_attributing,
)
from segrl.verl.grpo import check_supported
from segrl.verl.worker import FIELDS, SCORES, attributing

ACTOR_ROLES = (Role.Actor, Role.ActorRollout, Role.ActorRolloutRef)


class SegmentCredit:
    """Mixed over one of verl's trainers, whose name stands in ``base_mode``."""

    base_mode: str

    def __init__(self, config) -> None:
        with open_dict(config):  # verl asks "is this the sync trainer?" by this name
            config.trainer.v1.trainer_mode = self.base_mode
        check_supported(config)
        self.credit = credit_from(config)
        super().__init__(config)
        self.replay_buffer.poll_interval = self.credit.poll_seconds

    def _init_resource_pool_mgr(self) -> None:
        super()._init_resource_pool_mgr()
        for role in ACTOR_ROLES:
            if role in self.role_worker_mapping:
                worker_class = self.role_worker_mapping[role].__ray_actor_class__
                self.role_worker_mapping[role] = ray.remote(attributing(worker_class))

    def _compute_advantage(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        batch = super()._compute_advantage(batch, metrics)
        if self.credit.rule != "uniform":
            with marked_timer("attribution", self.timing_raw, color="purple"):
                self._spread_advantages(batch, metrics)
        return batch

    def _spread_advantages(self, batch: KVBatchMeta, metrics: dict) -> None:
        rollouts = self._rollouts(batch)
        chosen = [one for one in rollouts if worth_attributing(one, self.credit)]
        weighed = self._weighed(batch, chosen)
        if weighed:
            self._write_advantages(batch, weighed)
        metrics.update(credit_metrics(rollouts, weighed))

    def _rollouts(self, batch: KVBatchMeta) -> list[Rollout]:
        """The rows of the batch, without those that verl adds to fill it up."""
        keys = [key for key, tag in zip(batch.keys, batch.tags, strict=True) if not tag.get("is_padding", False)]
        columns = _columns(keys, batch.partition_id, ["prompts", "responses", "response_mask", "advantages"])
        rollouts = []
        for key, prompt_ids, response_ids, mask_T, advantages_T in zip(keys, *columns, strict=True):
            trace = rollout_trace(key, prompt_ids, response_ids, mask_T, self.tokenizer)
            rollouts.append(make_rollout(key, trace, advantages_T, self.credit))
        return rollouts

    def _weighed(self, batch: KVBatchMeta, chosen: Sequence[Rollout]) -> list[Weighed]:
        if not chosen:
            return []
        keys = [one.key for one in chosen]
        self.actor_rollout_wg.compute_segrl_scores(self._attributed_batch(batch, keys))
        columns = _columns(keys, batch.partition_id, list(SCORES))
        return [
            weigh_rollout(one, scores_T, float(gap), float(copy_share), self.credit, self.global_steps)
            for one, scores_T, gap, copy_share in zip(chosen, *columns, strict=True)
        ]

    def _attributed_batch(self, batch: KVBatchMeta, keys: list[str]) -> KVBatchMeta:
        """The rows to attribute, filled up and ordered so that each rank gets as many, of like lengths in sum."""
        ranks = max(self.actor_rollout_wg._dispatch_info["actor"]) + 1
        keys = fill_up(keys, batch.keys, ranks)
        lengths = {key: tag["seq_len"] for key, tag in zip(batch.keys, batch.tags, strict=True)}
        partitions = get_seqlen_balanced_partitions([lengths[key] for key in keys], ranks, equal_size=True)
        subset = batch.select_keys([keys[i] for partition in partitions for i in partition])
        subset.fields = list(FIELDS)
        subset.extra_info = {"segrl": self.credit}
        return subset

    def _write_advantages(self, batch: KVBatchMeta, weighed: Sequence[Weighed]) -> None:
        keys = [one.rollout.key for one in weighed]
        advantages = torch.nested.as_nested_tensor([one.advantages_T for one in weighed], layout=torch.jagged)
        fields = TensorDict({"advantages": advantages}, batch_size=len(keys))
        tq.kv_batch_put(keys=keys, partition_id=batch.partition_id, fields=fields)
        if self.credit.dump_dir:
            (written,) = _columns(keys, batch.partition_id, ["advantages"])
            lines = [json.dumps(record(*pair), ensure_ascii=False) for pair in zip(weighed, written, strict=True)]
            path = Path(self.credit.dump_dir) / f"{self.global_steps}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def fill_up(keys: list[str], others: Sequence[str], multiple: int) -> list[str]:
    """``keys`` and as many of the others as make their number divisible. There are enough: all of them are."""
    spare = (key for key in others if key not in set(keys))
    return keys + list(islice(spare, -len(keys) % multiple))


def _columns(keys: list[str], partition_id: str, names: list[str]) -> list[list[torch.Tensor]]:
    data = tq.kv_batch_get(keys=keys, partition_id=partition_id, select_fields=names)
    return [list(data[name].unbind()) for name in names]


@register_trainer("segrl")
class SegmentTrainerSync(SegmentCredit, PPOTrainerSync):
    base_mode = "sync"

"""Reading and writing verl's TransferQueue: rows as rollouts, columns, advantages."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path

import torch
import transfer_queue as tq
from tensordict import TensorDict
from transfer_queue import KVBatchMeta
from verl.utils.seqlen_balancing import get_seqlen_balanced_partitions

from segrl.credit.rollout import Rollout, make_rollout, rollout_trace
from segrl.credit.settings import FROM_VERL, CreditSettings

ROW = ["prompts", "responses", "response_mask", "advantages", "rm_scores"]
COLUMN = dict(zip(FROM_VERL, ("entropy", "old_log_probs"), strict=True))


def real_keys(batch: KVBatchMeta) -> list[str]:
    """The keys of the batch's rows, without those that verl adds as padding."""
    return [key for key, tag in zip(batch.keys, batch.tags, strict=True) if not tag.get("is_padding", False)]


def columns(keys: list[str], partition_id: str, names: Sequence[str]) -> list[list[torch.Tensor]]:
    data = tq.kv_batch_get(keys=keys, partition_id=partition_id, select_fields=list(names))
    return [list(data[name].unbind()) for name in names]


def plain_column(keys: list[str], partition_id: str, name: str) -> list:
    """A column of anything but tensors."""
    return list(tq.kv_batch_get(keys=keys, partition_id=partition_id, select_fields=[name])[name])


def rollouts_of(batch: KVBatchMeta, tokenizer, ends: Collection[int], settings: CreditSettings) -> list[Rollout]:
    """The batch's rows as rollouts, without the rows that verl adds as padding. ``ends``: what ends a response."""
    keys = real_keys(batch)
    golds: list[str | None] = [None] * len(keys)
    if settings.reads_gold:
        golds = [str(row["ground_truth"]) for row in plain_column(keys, batch.partition_id, "reward_model")]
    cutting: Sequence[torch.Tensor | None] = [None] * len(keys)
    if settings.cuts_by:
        [cutting] = columns(keys, batch.partition_id, [COLUMN[settings.cuts_by]])
    rollouts = []
    for key, prompt, response, mask, advantages_T, scores_T, gold, cutting_T in zip(
        keys, *columns(keys, batch.partition_id, ROW), golds, cutting, strict=True
    ):
        trace = rollout_trace(key, prompt, response, mask, tokenizer, ends)
        rollouts.append(make_rollout(key, trace, advantages_T, settings, float(scores_T.sum()), gold, cutting_T))
    return rollouts


def dispatched(batch: KVBatchMeta, keys: Sequence[str], ranks: int, fields: Sequence[str], **extra) -> KVBatchMeta:
    """The rows of ``keys``, filled up and ordered so that every rank gets as many rows, of similar total length."""
    lengths = {key: tag["seq_len"] for key, tag in zip(batch.keys, batch.tags, strict=True)}
    keys = fill_up(list(keys), sorted(batch.keys, key=lambda key: lengths[key]), ranks)
    shares = get_seqlen_balanced_partitions([lengths[key] for key in keys], ranks, equal_size=True)
    subset = batch.select_keys([keys[i] for share in shares for i in share])
    subset.fields, subset.extra_info = list(fields), extra
    return subset


def fill_up(keys: list[str], others: Iterable[str], multiple: int) -> list[str]:
    """``keys``, and as many of the others as bring their number to a multiple of ``multiple``. The others suffice: the
    whole batch is such a multiple."""
    chosen = set(keys)
    return keys + list(islice((key for key in others if key not in chosen), -len(keys) % multiple))


def write_advantages(batch: KVBatchMeta, rows: Mapping[str, torch.Tensor]) -> None:
    write_column(list(rows), batch.partition_id, "advantages", list(rows.values()))


def write_column(keys: list[str], partition_id: str, name: str, rows: list[torch.Tensor]) -> None:
    """Write one row a key; the rows may differ in length."""
    column = torch.nested.as_nested_tensor(rows, layout=torch.jagged)
    tq.kv_batch_put(keys=keys, partition_id=partition_id, fields=TensorDict({name: column}, batch_size=len(keys)))


def known(values: Sequence[float | None]) -> torch.Tensor:
    """The values as a tensor, with NaN for None: a column of the TransferQueue holds numbers."""
    return torch.tensor([float("nan") if value is None else value for value in values])


def write_jsonl(folder: str, step: int, lines: Iterable[Mapping], more: bool = False) -> None:
    """Write one file a step. In the asynchronous modes a step has several batches: ``more`` appends to the file."""
    path = Path(folder) / f"{step}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a" if more else "w", encoding="utf-8") as file:
        file.writelines(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines)

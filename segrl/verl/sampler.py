"""verl's training rows in the order of a curriculum, and the share of each row's rollouts that passed.

verl's v1 trainers make their own sampler and call no hook of it, so the loader is made again around a curriculum. The
curriculum's state is part of the loader's, which verl saves in its checkpoint (``data.pt``).
"""

from __future__ import annotations

from typing import Any

from torch.utils.data import Dataset
from torchdata.stateful_dataloader import StatefulDataLoader
from transfer_queue import KVBatchMeta

from segrl.credit.curriculum import Curriculum, pass_rates
from segrl.verl.queue import columns, plain_column, real_keys

ROW = "segrl_row"  # a column of the TransferQueue; verl's `index` is what the file says, often 0 for all


class Numbered(Dataset):
    """A data set whose rows carry their number, so that the row of a rollout is known."""

    def __init__(self, dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {**self.dataset[row], ROW: row}


def drawn_by(curriculum: Curriculum, loader: StatefulDataLoader) -> StatefulDataLoader:
    """The loader with the curriculum as its sampler.

    It has no workers. Workers fetch ``prefetch_factor x num_workers`` batches ahead: these would be drawn before the
    step's results are known, and a checkpoint would hold the curriculum's state after the last of these draws.
    """
    return StatefulDataLoader(
        Numbered(loader.dataset),
        batch_size=loader.batch_size,
        num_workers=0,
        drop_last=True,
        collate_fn=loader.collate_fn,
        sampler=curriculum,
    )


def passed_in(batch: KVBatchMeta, passed_from: float) -> dict[int, float]:
    """By row of the training set, the share of its rollouts in the batch that passed."""
    keys = real_keys(batch)
    (scores,) = columns(keys, batch.partition_id, ["rm_scores"])
    rows = [int(row) for row in plain_column(keys, batch.partition_id, ROW)]
    said = [_accuracy(fields) for fields in plain_column(keys, batch.partition_id, "extra_fields")]
    rewards = [float(scores_T.sum()) if acc is None else acc for scores_T, acc in zip(scores, said, strict=True)]
    return pass_rates(rows, [key.rsplit("_", 1)[0] for key in keys], rewards, passed_from)


def _accuracy(fields: Any) -> float | None:
    """The ``acc`` of the reward function, which says whether the rollout is right; None where it gives none."""
    acc = ((fields or {}).get("reward_extra_info") or {}).get("acc")
    return None if acc is None else float(acc)

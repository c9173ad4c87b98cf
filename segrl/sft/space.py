"""Whether the disk has room for what a training saves."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

from omegaconf import DictConfig

from segrl.cost.disk import checkpoint_bytes
from segrl.sft.stages import executed_steps

EXPORTED = 4  # of one parameter in the exported model, at most
FULL = 64 * 2**20  # bytes left on a disk that is as good as full


def check_saved(config: DictConfig) -> None:
    """Refuse a training whose checkpoints would hold no model to export."""
    saved = list(config.checkpoint.save_contents)
    if "hf_model" not in saved:
        raise ValueError(f"checkpoint.save_contents={saved} has no hf_model, from which the trained model is exported")


def check_space(*stages: DictConfig) -> None:
    """Refuse to start where the checkpoints of a local model's stages, and what is exported of them, find no room."""
    if stages and Path(stages[0].model.path).expanduser().is_dir():
        needed = {staged.trainer.default_local_dir: _needed(staged) for staged in stages}
        check_room(needed, "checkpoint.save_contents")


def check_room(needed: dict[str, int], key: str) -> None:
    """Refuse where the disk has no room for so many bytes a folder, but for those that a training has written there.

    ``key`` is the config's that says what a checkpoint holds.
    """
    missing = sum(max(0, size - _taken(folder)) for folder, size in needed.items())
    place = Path(next(iter(needed)))
    free = shutil.disk_usage(next(path for path in (place, *place.absolute().parents) if path.exists())).free
    if free < missing:
        raise OSError(
            f"the checkpoints and the exported model take about {_size(sum(needed.values()))}, {place} has "
            f"{_size(free)} left; make room, give another out=, or leave the optimizer out with "
            f"{key}=[model,extra,hf_model]"
        )


def bytes_needed(count: int, contents: Iterable[str], adapters: bool, kept: int) -> int:
    """Of so many checkpoints of a model of ``count`` parameters, and of the exported model."""
    return kept * checkpoint_bytes(count, contents, adapters) + EXPORTED * count


def _needed(config: DictConfig) -> int:
    """Of all checkpoints that are kept, the one that a training goes on from, and the exported model. verl writes a new
    one before it deletes a single one, and never deletes one of an earlier run.
    """
    saves = config.trainer.total_epochs if config.trainer.save_freq == "after_each_epoch" else 2
    kept = min(saves, max(2, config.trainer.max_ckpt_to_keep or saves)) + bool(executed_steps(config))
    count = parameters(Path(config.model.path).expanduser())
    return bytes_needed(count, config.checkpoint.save_contents, bool(config.model.lora_rank), kept)


def _taken(folder: str) -> int:
    return sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())


def parameters(folder: Path) -> int:
    """How many parameters the model has, from the headers of its weights."""
    from safetensors import safe_open

    count = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as weights:
            for name in weights.keys():  # noqa: SIM118
                size = 1
                for length in weights.get_slice(name).get_shape():
                    size *= length
                count += size
    return count


def full_disk(out: str) -> None:
    """Print a message to standard error where the disk is full, after a training has failed."""
    free = shutil.disk_usage(out).free
    if free < FULL:
        print(
            f"segrl sft: the disk of {out} is full ({_size(free)} left); make room and give the same command again, "
            "it goes on from the last whole checkpoint",
            file=sys.stderr,
        )


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"

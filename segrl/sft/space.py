"""Whether the disk has room for what a training saves."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from omegaconf import DictConfig

from segrl.cost.disk import checkpoint_bytes

EXPORTED = 4  # of one parameter in the exported model, at most
FULL = 64 * 2**20  # bytes left on a disk that is as good as full


def check_saved(config: DictConfig) -> None:
    """Refuse a training whose checkpoints would hold no model to export."""
    saved = list(config.checkpoint.save_contents)
    if "hf_model" not in saved:
        raise ValueError(f"checkpoint.save_contents={saved} has no hf_model, from which the trained model is exported")


def check_space(config: DictConfig) -> None:
    """Refuse to start where a local model's checkpoint, and the model exported from it, would find no room."""
    folder, place = Path(config.model.path).expanduser(), Path(config.trainer.default_local_dir)
    if not folder.is_dir():
        return
    count = parameters(folder)
    needed = checkpoint_bytes(count, config.checkpoint.save_contents, bool(config.model.lora_rank)) + EXPORTED * count
    taken = sum(file.stat().st_size for file in place.rglob("*") if file.is_file())  # of a training that goes on
    free = shutil.disk_usage(next(path for path in (place, *place.absolute().parents) if path.exists())).free
    if free < needed - taken:
        raise OSError(
            f"a checkpoint and the exported model take about {_size(needed)}, {place} has {_size(free)} left; make "
            "room, give another out=, or leave the optimizer out with checkpoint.save_contents=[model,extra,hf_model]"
        )


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

"""Whether the disk has room for what a training saves."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

# Of one parameter in a checkpoint: float32, Adam's two moments, and once more for Hugging Face.
BYTES = {"model": 4, "optimizer": 8, "hf_model": 4}
EXPORTED = 4  # of one parameter in the exported model, at most
FULL = 64 * 2**20  # bytes left on a disk that is as good as full


def check_saved(config: DictConfig) -> None:
    """Refuse a training whose checkpoints would hold no model to export."""
    saved = list(config.checkpoint.save_contents)
    if "hf_model" not in saved:
        raise ValueError(f"checkpoint.save_contents={saved} has no hf_model, from which the trained model is exported")


def check_space(config: DictConfig) -> None:
    """Refuse to start where a local model's checkpoint, and the model exported from it, would find no room."""
    folder = Path(config.model.path).expanduser()
    if folder.is_dir():
        saved = saved_bytes(config.checkpoint.save_contents, bool(config.model.lora_rank))
        check_room(parameters(folder), [saved], config.trainer.default_local_dir, "checkpoint.save_contents")


def saved_bytes(contents: Sequence[str], adapters: bool) -> int:
    """Of one parameter in a checkpoint; of adapters the optimizer's share is little."""
    return sum(BYTES[name] for name in contents if name in BYTES and not (adapters and name == "optimizer"))


def check_room(count: int, checkpoints: Sequence[int], place: str, key: str) -> None:
    """Refuse where the disk has no room for the checkpoints, each of so many bytes a parameter, and the exported model.

    ``count`` is the number of parameters, ``key`` the config's that says what a checkpoint holds.
    """
    folder = Path(place)
    needed = (sum(checkpoints) + EXPORTED) * count
    taken = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())  # of a training that goes on
    free = shutil.disk_usage(next(path for path in (folder, *folder.absolute().parents) if path.exists())).free
    if free < needed - taken:
        what = "a checkpoint" if len(checkpoints) == 1 else f"{len(checkpoints)} checkpoints"
        raise OSError(
            f"{what} and the exported model take about {_size(needed)}, {place} has {_size(free)} left; make "
            f"room, give another out=, or leave the optimizer out with {key}=[model,extra,hf_model]"
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

"""What must be there before a training starts: weights to begin with, and disk for what it saves."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

BYTES = 4 + 8 + 4  # of one parameter in a checkpoint: float32, Adam's two moments, and once more for Hugging Face
FULL = 64 * 2**20  # bytes left on a disk that is as good as full


def check_weights(model_path: str) -> None:
    """Refuse a local folder that holds no model."""
    folder = Path(model_path).expanduser()
    if not folder.is_dir():
        if model_path.startswith((".", "/", "~")):
            raise FileNotFoundError(f"there is no model folder {model_path!r}; give a folder or a hub id")
        return
    if not (folder / "config.json").exists():
        raise FileNotFoundError(f"{model_path} has no config.json; a Hugging Face model folder was expected")
    if not weight_files(folder):
        raise FileNotFoundError(
            f"{model_path} has a config.json and no weights (*.safetensors); was the model downloaded or saved whole?"
        )


def weight_files(folder: Path) -> list[Path]:
    return [*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")]


def check_space(out: str, model_path: str) -> None:
    """Refuse to start where not one checkpoint of a local model would find room."""
    folder = Path(model_path).expanduser()
    if not folder.is_dir():
        return
    needed, free = BYTES * parameters(folder), shutil.disk_usage(out).free
    if free < needed:
        raise OSError(
            f"a checkpoint takes about {_size(needed)}, {out} has {_size(free)} left; make room, give another out=, or "
            "leave the optimizer out with checkpoint.save_contents=[model,extra,hf_model]"
        )


def parameters(folder: Path) -> int:
    """The model's parameters, from the headers of its weights."""
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
    """Say so where a training has failed and its disk is full."""
    free = shutil.disk_usage(out).free
    if free < FULL:
        print(
            f"segrl sft: the disk of {out} is full ({_size(free)} left); make room and give the same command again, "
            "it goes on from the last whole checkpoint",
            file=sys.stderr,
        )


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"

"""Whether the disk has room for what a training saves."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from segrl.cost.disk import checkpoint_bytes
from segrl.sft.stages import executed_steps

CONTENTS = "checkpoint.save_contents"
EXPORTED = 4  # bytes of one parameter in the exported model, at most
FULL = 64 * 2**20  # bytes; a disk with fewer left counts as full


def check_saved(config: DictConfig, key: str = CONTENTS) -> None:
    """Refuse a training whose checkpoints would hold no model to export; ``key`` says what they hold."""
    saved = list(OmegaConf.select(config, key))
    if "hf_model" not in saved:
        raise ValueError(f"{key}={saved} has no hf_model, from which the trained model is exported; add it")


def check_space(*stages: DictConfig) -> None:
    """Raise where the disk has no room for the checkpoints and the exported models of a local model's stages."""
    if not stages or not Path(stages[0].model.path).expanduser().is_dir():
        return
    each = [_bytes_needed(config) for config in stages]
    taken = [bytes_taken(config.trainer.default_local_dir) for config in stages]
    needed = sum(max(0, needed - there) for needed, there in zip(each, taken, strict=True))
    check_room(needed, sum(each), stages[0].trainer.default_local_dir, CONTENTS)


def check_room(needed: int, total: int, place: str, key: str) -> None:
    """Raise where the disk has fewer bytes left than ``needed``, which are a part of ``total``. ``key``: the config's
    key that says what a checkpoint holds.
    """
    folder = Path(place)
    free = shutil.disk_usage(next(path for path in (folder, *folder.absolute().parents) if path.exists())).free
    if free < needed:
        raise OSError(
            f"the checkpoints and the exported model take about {_size(total)}, {place} has {_size(free)} left; "
            f"make room, give another out=, or leave the optimizer out with {key}=[model,extra,hf_model]"
        )


def _bytes_needed(config: DictConfig) -> int:
    """The bytes of all checkpoints that are kept, of the one that a training goes on from, and of the exported model.
    verl writes a new checkpoint before it deletes an old one, and never deletes one of an earlier run.
    """
    count = parameters(Path(config.model.path).expanduser())
    each = checkpoint_bytes(count, config.checkpoint.save_contents, bool(config.model.lora_rank))
    saves = config.trainer.total_epochs if config.trainer.save_freq == "after_each_epoch" else 2
    kept = min(saves, max(2, config.trainer.max_ckpt_to_keep or saves)) + bool(executed_steps(config))
    return kept * each + EXPORTED * count


def bytes_taken(place: str) -> int:
    """The bytes of the files in ``place``: the checkpoints of a training that goes on."""
    files = Path(place).rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())


def parameters(folder: Path) -> int:
    """The number of the model's parameters, from the headers of its weights."""
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

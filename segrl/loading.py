"""A model and its tokenizer, ready to be read."""

from __future__ import annotations

import hashlib
from os.path import expanduser
from pathlib import Path
from typing import Any

import torch

DTYPES = ("float32", "bfloat16", "float16")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tekken.json")
BLOCKS, BLOCK = 64, 2**16  # the blocks of a file of weights that are hashed, and the bytes of each


def load_model(path: str, dtype: str = "float32", device: str = "auto") -> tuple[Any, Any]:
    """The causal language model and tokenizer at ``path`` (a folder or a hub id), in eval mode."""
    from transformers import AutoModelForCausalLM

    check_model(path, dtype, device)
    tokenizer = load_tokenizer(path)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(expanduser(path), dtype=getattr(torch, dtype))
    return model.to(device).eval(), tokenizer


def own_dtype(path: str) -> str:
    """The dtype that the config.json of the model at ``path`` names; bfloat16 where it names none."""
    from transformers import AutoConfig

    dtype = AutoConfig.from_pretrained(expanduser(path)).dtype or torch.bfloat16
    return str(dtype).removeprefix("torch.")


def load_tokenizer(path: str) -> Any:
    """The tokenizer at ``path`` (a folder or a hub id)."""
    from transformers import AutoTokenizer

    check_model(path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(expanduser(path))
    except (OSError, ValueError) as error:
        reason = _missing(path) or " ".join(str(error).split())
        raise ValueError(f"{path!r} gives no tokenizer, as a folder or a hub id: {reason}") from error
    # Without its files, transformers makes a tokenizer of the config.json alone, which knows no letter.
    if not tokenizer("1 + 1 = 2", add_special_tokens=False)["input_ids"]:
        raise ValueError(f"{path!r} gives no tokenizer: {_missing(path) or 'the one that is there reads no text'}")
    return tokenizer


def _missing(path: str) -> str:
    """What a folder without a tokenizer lacks, and what to do; empty for a hub id and a folder that has one."""
    folder = local_folder(path)
    if folder is None or any((folder / name).exists() for name in TOKENIZER_FILES):
        return ""
    return "the folder has no tokenizer.json; copy the files of the model's tokenizer into it"


def check_model(path: str, dtype: str = "float32", device: str = "auto") -> None:
    """Refuse a folder, dtype or device that is not there, before anything is loaded or a job claims its folder."""
    local_folder(path)
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r}, expected one of {DTYPES}")
    kind = device.partition(":")[0]
    if kind not in ("auto", "cpu") and not (hasattr(torch, kind) and getattr(torch, kind).is_available()):
        raise ValueError(f"device={device!r}, but there is none here; expected auto, cpu, or an accelerator like cuda")


def local_folder(path: str) -> Path | None:
    """The folder at ``path``; None for a hub id. A path that cannot be a hub id must be a folder."""
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    if path.startswith((".", "/", "~")) or len(folder.parts) > 2:
        raise FileNotFoundError(
            f"there is no model folder {path!r} (looked in {Path.cwd()}); give a folder, or a hub id of the form "
            "owner/name"
        )
    if len(folder.parts) == 2 and folder.parent.is_dir() and not _downloaded(path):
        raise FileNotFoundError(
            f"the folder {str(folder.parent)!r} (in {Path.cwd()}) holds no model folder {folder.name!r}; check the "
            f"spelling. If the model {path} of the hub is meant, download it first: hf download {path}"
        )
    return None


def _downloaded(hub_id: str) -> bool:
    """Whether the hub's cache on this machine has the model."""
    from transformers import AutoConfig

    try:
        AutoConfig.from_pretrained(hub_id, local_files_only=True)
    except OSError:
        return False
    return True


def check_weights(model_path: str) -> None:
    """Refuse a local folder that holds no model."""
    folder = local_folder(model_path)
    if folder is None:
        return
    if not (folder / "config.json").exists():
        raise FileNotFoundError(f"{model_path} has no config.json; a Hugging Face model folder was expected")
    if not weight_files(folder):
        raise FileNotFoundError(
            f"{model_path} has a config.json and no weights (*.safetensors); was the model downloaded or saved whole?"
        )


def weight_files(folder: Path) -> list[Path]:
    """The files of weights in a model's folder."""
    return [*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")]


def position_limit(model_config) -> int | None:
    """How many positions the model takes, where its config says so."""
    return getattr(getattr(model_config, "text_config", model_config), "max_position_embeddings", None)


def tokenizer_of(model):
    """The tokenizer from the folder or hub id that the model was loaded from."""
    name = getattr(model.config, "_name_or_path", "")
    if not name:
        raise ValueError("the model does not say where it was loaded from; pass tokenizer=...")
    return load_tokenizer(name)


def weights_hash(path: str) -> str | None:
    """A hash of blocks of the weights in the folder ``path``, which changes with training; None for a hub id."""
    folder = local_folder(path)
    if folder is None:
        return None
    digest = hashlib.sha256()
    for file in sorted(weight_files(folder)):
        size = file.stat().st_size
        digest.update(f"{file.name} {size}".encode())
        with file.open("rb") as weights:
            for start in range(0, size, max(BLOCK, size // BLOCKS)):
                weights.seek(start)
                digest.update(weights.read(BLOCK))
    return digest.hexdigest()[:16]

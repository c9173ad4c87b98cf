"""What a checkpoint takes on the disk."""

from __future__ import annotations

from collections.abc import Iterable

# Bytes of one parameter in a checkpoint: float32, Adam's two moments, and float32 again for Hugging Face.
BYTES = {"model": 4, "optimizer": 8, "hf_model": 4}


def checkpoint_bytes(parameters: int, contents: Iterable[str], lora: bool = False) -> int:
    """Bytes of one checkpoint with these contents. The optimiser's state of LoRA adapters is small and not counted."""
    saved = [name for name in contents if name in BYTES and not (lora and name == "optimizer")]
    return parameters * sum(BYTES[name] for name in saved)

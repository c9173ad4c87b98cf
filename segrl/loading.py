"""A model and its tokenizer, ready to be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


def load_model(path: str, dtype: str = "float32", device: str = "auto") -> tuple[Any, Any]:
    """The causal language model and tokenizer at ``path`` (a folder or a hub id), in eval mode."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise ValueError(f"dtype={dtype!r}, expected float32, bfloat16 or float16")
    if path.startswith((".", "/", "~")) and not Path(path).expanduser().is_dir():
        raise FileNotFoundError(f"there is no model folder {path!r}")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, dtype))
    return model.to(device).eval(), AutoTokenizer.from_pretrained(path)

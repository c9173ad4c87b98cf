"""The rows that verl's SFT trainer reads: loss on the segments that matter, the whole trace as context ([IG] Eq. 9).

verl loads ``SelectiveDataset`` through ``data.custom_cls``. Its settings stand in ``data.segrl``; ``rows`` there is the
file in which ``segrl sft`` saves the rows of ``data.train_files``, so that no rank makes them again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import load_file, save
from torch import Tensor
from torch.utils.data import Dataset

from segrl.data import load_traces
from segrl.data.files import replacing
from segrl.loading import load_tokenizer
from segrl.sft.masking import Example, Rules
from segrl.sft.rows import Supervision, read_selections, reselecting, supervise

RULES = tuple(field.name for field in fields(Rules))


class SelectiveDataset(Dataset):
    """Rows for verl's SFT trainer, unpadded (``data.pad_mode=no_padding``)."""

    def __init__(self, parquet_files, tokenizer, config: DictConfig, processor=None, max_samples: int = -1) -> None:
        settings = config.segrl
        self.tokenizer = tokenizer
        self.notes: list[str] = []
        if settings.get("rows") and parquet_files == config.train_files:
            self.examples = load_examples(settings.rows)
        else:
            paths = [parquet_files] if isinstance(parquet_files, str) else list(parquet_files)
            supervision = self._supervise(paths, config)
            self.examples, self.notes = supervision.examples, supervision.notes()
        if max_samples > 0:
            self.examples = self.examples[:max_samples]

    def _supervise(self, paths: list[str], config: DictConfig) -> Supervision:
        settings = config.segrl
        return supervise(
            [trace for path in paths for trace in load_traces(path, require_response=True)],
            self.tokenizer,
            rules_of(settings),
            config.max_length,
            read_selections(settings.selections) if settings.mode != "full" else None,
            selecting_tokenizer(settings.get("attributor_path"), self.tokenizer),
            settings.template,
            reselecting(settings.get("selections"), settings.get("tau"), settings.get("beta")),
        )

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        example = self.examples[index]
        positions_L = torch.arange(len(example.ids_L))
        return {"input_ids": example.ids_L, "position_ids": positions_L, "loss_mask": example.mask_L}

    @property
    def tokens(self) -> int:
        """The number of tokens of all responses, their ends included."""
        return sum(len(example.ids_L) - example.prompt_tokens for example in self.examples)

    @property
    def kept(self) -> int:
        """The number of tokens that count as labels."""
        return sum(int((example.mask_L > 0).sum()) for example in self.examples)

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.examples)


def rules_of(settings: DictConfig) -> Rules:
    values: Any = OmegaConf.to_container(settings, resolve=True)
    return Rules(**{name: values[name] for name in RULES if name in values})


def selecting_tokenizer(attributor_path: str | None, tokenizer):
    """The tokenizer that made the selections; None where it makes the same tokens as the trained model's."""
    if not attributor_path:
        return None
    selecting = load_tokenizer(attributor_path)
    return None if same_tokens(selecting, tokenizer) else selecting


def same_tokens(a, b) -> bool:
    """Whether two tokenizers make the same ids of every text and conversation, as those of one model family may."""
    return a.chat_template == b.chat_template and a.backend_tokenizer.to_str() == b.backend_tokenizer.to_str()


# --- saved examples --------------------------------------------------------------------------------------------------


def fingerprint(examples: Iterable[Example]) -> str:
    """A hash of every id and every weight. It does not depend on the files they came from."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(example.ids_L.numpy().tobytes())
        digest.update(example.mask_L.numpy().tobytes())
    return digest.hexdigest()[:16]


def save_examples(path: Path, examples: list[Example]) -> None:
    """Write all examples to one file, so that other processes need not make them again."""
    columns = {
        "ids": torch.cat([example.ids_L for example in examples]),
        "mask": torch.cat([example.mask_L for example in examples]),
        "lengths": torch.tensor([len(example.ids_L) for example in examples]),
        "prompts": torch.tensor([example.prompt_tokens for example in examples]),
    }
    with replacing(path) as file:
        file.write(save(columns))


def load_examples(path: Path) -> list[Example]:
    columns = load_file(path)
    lengths = columns["lengths"].tolist()
    pieces = zip(
        columns["ids"].split(lengths), columns["mask"].split(lengths), columns["prompts"].tolist(), strict=True
    )
    return [Example(*piece) for piece in pieces]

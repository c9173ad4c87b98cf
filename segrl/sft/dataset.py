"""The rows that verl's SFT trainer reads: loss on the segments that matter, the whole trace as context ([IG] Eq. 9).

``SelectiveDataset`` is what verl's ``data.custom_cls`` takes. Its settings stand in ``data.segrl``. ``rows`` there is
the file in which ``segrl sft`` leaves those of ``data.train_files``, so that no rank makes them again.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from torch.utils.data import Dataset

from segrl.data import load_traces
from segrl.loading import load_tokenizer
from segrl.sft.masking import Rules
from segrl.sft.rows import Supervision, fingerprint, load_examples, read_selections, reselecting, supervise

RULES = tuple(field.name for field in fields(Rules))


class SelectiveDataset(Dataset):
    """Rows for verl's SFT trainer, unpadded (``data.pad_mode=no_padding``)."""

    def __init__(self, parquet_files, tokenizer, config: DictConfig, processor=None, max_samples: int = -1) -> None:
        settings = config.segrl
        self.tokenizer = tokenizer
        self.notes: list[str] = []
        if settings.get("rows") and parquet_files == config.train_files:
            self.examples = load_examples(settings.rows)
            return
        done = self._supervise([parquet_files] if isinstance(parquet_files, str) else list(parquet_files), config)
        self.examples, self.notes = done.examples, done.notes()
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
            self._maker(settings.get("attributor_path")),
            settings.template,
            reselecting(settings.get("selections"), settings.get("tau"), settings.get("beta")),
        )

    def _maker(self, attributor_path: str | None):
        """The tokenizer that made the selections, where it is another one."""
        maker = load_tokenizer(attributor_path) if attributor_path else None
        return None if maker is None or same_tokens(maker, self.tokenizer) else maker

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        one = self.examples[index]
        return {"input_ids": one.ids_L, "position_ids": torch.arange(len(one.ids_L)), "loss_mask": one.mask_L}

    @property
    def tokens(self) -> int:
        """Those of the responses, with their ends."""
        return sum(len(one.ids_L) - one.prompt_tokens for one in self.examples)

    @property
    def kept(self) -> int:
        return sum(int((one.mask_L > 0).sum()) for one in self.examples)

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.examples)


def rules_of(settings: DictConfig) -> Rules:
    given: Any = OmegaConf.to_container(settings, resolve=True)
    return Rules(**{name: given[name] for name in RULES if name in given})


def same_tokens(a, b) -> bool:
    """Whether two tokenizers make the same ids of every text and of every conversation, as those of one family do."""
    return a.chat_template == b.chat_template and a.backend_tokenizer.to_str() == b.backend_tokenizer.to_str()

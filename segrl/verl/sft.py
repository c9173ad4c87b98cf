"""Selective SFT on verl's own trainer: loss on the segments that matter, the whole trace as context ([IG] Eq. 9).

``SelectiveDataset`` is what verl's ``data.custom_cls`` takes; ``main`` is ``segrl sft``.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import Tensor
from torch.utils.data import Dataset

from segrl.config import needed
from segrl.data import load_traces, read_rows
from segrl.records import Row, check_identity, segments_of, selection_of
from segrl.resolving import near
from segrl.tokenization import decode, tokenize
from segrl.types import Trace
from segrl.verl.launch import check_device, editable, run_verl

MODES = ("full", "selective")
TOO_LONG = ("error", "drop")


@dataclass(frozen=True, eq=False)
class Example:
    """One sequence, prompt and response and end, and how much each of its tokens counts as a label."""

    ids_L: Tensor
    mask_L: Tensor
    prompt_tokens: int = 0


class SelectiveDataset(Dataset):
    """Rows for verl's SFT trainer, unpadded (``data.pad_mode=no_padding``). Its settings stand in ``data.segrl``."""

    def __init__(self, parquet_files, tokenizer, config: DictConfig, processor=None, max_samples: int = -1) -> None:
        settings = config.segrl
        _check_choice("mode", settings.mode, MODES)
        _check_choice("too_long", settings.too_long, TOO_LONG)
        selections = read_selections(settings.selections) if settings.mode == "selective" else None
        paths = [parquet_files] if isinstance(parquet_files, str) else list(parquet_files)
        traces = [trace for path in paths for trace in load_traces(path, require_response=True)]
        self.examples: list[Example] = []
        self.dropped: list[str] = []
        for trace in traces[:max_samples] if max_samples > 0 else traces:
            trace = trace if spelled_by(tokenizer, trace) else tokenize(trace, tokenizer, settings.template)
            weights_T = trace.trainable_T.float() if selections is None else kept_tokens(trace, selections)
            example = make_example(trace, weights_T, tokenizer.eos_token_id)
            if _fits(example, trace.id, config.max_length, settings.too_long):
                self.examples.append(example)
            else:
                self.dropped.append(trace.id)

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


def make_example(trace: Trace, weights_T: Tensor, eos_id: int) -> Example:
    """Prompt, response and end of text; the label of response token t counts ``weights_T[t]``, the end counts one.

    verl rolls the flattened mask by one over all rows, so that the prediction of a token meets its mask; a row's first
    entry would land on the row before and must be zero. It is a prompt token's.
    """
    if not len(trace.prompt_ids):
        raise ValueError(f"trace {trace.id!r} renders to an empty prompt, so nothing predicts its first token")
    ids_T = trace.response_ids
    if len(ids_T) and int(ids_T[-1]) == eos_id:
        ids_T, weights_T = ids_T[:-1], weights_T[:-1]
    return Example(
        ids_L=torch.cat([trace.prompt_ids, ids_T, torch.tensor([eos_id])]),
        mask_L=torch.cat([torch.zeros(len(trace.prompt_ids)), weights_T, torch.ones(1)]),
        prompt_tokens=len(trace.prompt_ids),
    )


def spelled_by(tokenizer, trace: Trace) -> bool:
    """Whether the trace's ids are this tokenizer's, so that they are kept and not made again."""
    if not trace.tokenised or int(trace.response_ids.max()) >= len(tokenizer):
        return False
    return decode(trace.response_ids, tokenizer)[0] == trace.response


def _fits(example: Example, id: str, max_length: int, too_long: str) -> bool:
    if len(example.ids_L) <= max_length or too_long == "drop":
        return len(example.ids_L) <= max_length
    raise ValueError(
        f"trace {id!r} has {len(example.ids_L)} tokens with its prompt, data.max_length is {max_length}; raise it, or "
        "set segrl.too_long=drop"
    )


# --- selections ------------------------------------------------------------------------------------------------------


def read_selections(path: str | None) -> dict[str, Row]:
    """The rows ``segrl select`` wrote, by trace id."""
    if path is None:
        raise ValueError("segrl.mode=selective needs selections=<file>; `segrl select traces=... out=...` writes it")
    return {row["id"]: row for row in read_rows(path)}


def kept_tokens(trace: Trace, selections: Mapping[str, Row]) -> Tensor:
    """One for each token of a kept segment, zero elsewhere."""
    if trace.id not in selections:
        raise ValueError(f"trace {trace.id!r} has none of the {len(selections)} selections; are they of other traces?")
    row = selections[trace.id]
    check_identity(trace, row, "selection")
    segments = segments_of(row)
    if segments.tokens != trace.tokens:
        raise ValueError(
            f"trace {trace.id!r}: the selection covers {segments.tokens} tokens, this tokenizer makes {trace.tokens}; "
            "select with the tokenizer of the model to train"
        )
    return (selection_of(row).keep_S[segments.index_T] & trace.trainable_T).float()


# --- the command -----------------------------------------------------------------------------------------------------


def main(config: DictConfig) -> int:
    """``segrl sft``: check, say what will be trained, train, export. The exit code."""
    needed(config, "traces", "out")
    config = editable(config)
    check_device(config, "sft_preset")
    from transformers import AutoTokenizer

    dataset = SelectiveDataset(config.data.train_files, AutoTokenizer.from_pretrained(config.model.path), config.data)
    steps = planned_steps(len(dataset), config)
    print(summary(dataset, steps, config), flush=True)
    code = run_verl([*torchrun(config.nproc), "-m", "verl.trainer.sft_trainer"], config, "sft")
    if code == 0:
        print(f"trained model: {export(config, steps)}")
    return code


def torchrun(nproc: int) -> list[str]:
    """torchrun on this machine alone; verl's documentation says how to start it on several."""
    rendezvous = ["--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "--local-addr=127.0.0.1"]
    return ["torch.distributed.run", *rendezvous, f"--nproc-per-node={nproc}"]


def planned_steps(rows: int, config: DictConfig) -> int:
    """As verl counts: every rank takes equally many rows, and a batch that is not full is left out."""
    batch, epochs = config.data.train_batch_size, config.trainer.total_epochs
    steps = rows // config.nproc // max(batch // config.nproc, 1) * epochs
    asked = config.trainer.total_training_steps or steps
    if not 0 < asked <= steps:
        raise ValueError(
            f"{rows} traces in batches of data.train_batch_size={batch} on {config.nproc} ranks make {steps} steps in "
            f"{epochs} epochs, {asked or 'at least one'} must be made: give more epochs or smaller batches"
        )
    return asked


def summary(dataset: SelectiveDataset, steps: int, config: DictConfig) -> str:
    if dataset.kept == 0:
        raise ValueError(f"no token of {len(dataset)} traces is kept: nothing would be trained")
    share = dataset.kept / dataset.tokens
    dropped = f", {len(dataset.dropped)} too long and dropped" if dataset.dropped else ""
    return (
        f"{config.segrl.mode} SFT: {len(dataset)} traces{dropped}, {dataset.tokens} response tokens, "
        f"{dataset.kept} of them kept ({share:.1%}), {steps} steps"
    )


def export(config: DictConfig, steps: int) -> Path:
    """The last checkpoint's Hugging Face directory, beside the checkpoints."""
    saved = Path(config.trainer.default_local_dir) / f"global_step_{steps}" / "huggingface"
    if not list(saved.glob("*.safetensors")):
        raise FileNotFoundError(f"verl ended well, but there is no model in {saved}")
    model = Path(config.out) / "model"
    shutil.copytree(saved, model, dirs_exist_ok=True)
    return model


def _check_choice(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"segrl.{name}={value!r}{near(value, known)}")

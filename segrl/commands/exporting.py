"""The masks that ``segrl sft`` trains with, for other trainers: `datasets` folders of token rows and of messages."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from segrl.commands.common import model_path, plain
from segrl.commands.config import needed
from segrl.data.files import replacing_folder
from segrl.sft.masking import Example, Masked, Rules
from segrl.text.prompting import user_message

IGNORED = -100  # a label that PyTorch's cross entropy, Transformers and TRL leave out


def export(config: DictConfig) -> None:
    """Write ``out/tokens`` and ``out/messages``; ``datasets.load_from_disk`` reads either."""
    from segrl.data import load_traces
    from segrl.loading import load_tokenizer
    from segrl.sft.dataset import selecting_tokenizer
    from segrl.sft.rows import read_selections, reselecting, supervise

    path, out = needed(config, "traces", "out")
    rules = Rules(**plain(config.masking))
    tokenizer = load_tokenizer(model_path(config))
    supervision = supervise(
        load_traces(path, limit=config.limit, require_response=True),
        tokenizer,
        rules,
        config.max_length,
        None if rules.mode == "full" else read_selections(config.selections),
        selecting_tokenizer(config.attributor_path, tokenizer),
        config.template,
        reselecting(config.selections, config.tau, config.beta),
    )
    if not supervision.rows:
        raise ValueError(f"no row is left to write: {'; '.join(supervision.notes())}")
    save(Path(out) / "tokens", [token_row(*pair) for pair in zip(supervision.rows, supervision.examples, strict=True)])
    save(Path(out) / "messages", [message_row(masked) for masked in supervision.rows])
    kept = sum(int((example.mask_L > 0).sum()) for example in supervision.examples)
    total = sum(len(example.ids_L) - example.prompt_tokens for example in supervision.examples)
    print(f"{len(supervision.rows)} rows, {kept} of {total} response tokens kept ({kept / total:.1%}) -> {out}")
    for note in supervision.notes():
        print(f"  {note}")


def token_row(masked: Masked, example: Example) -> dict[str, Any]:
    """The row that TRL and Transformers read; ``loss_weights`` weigh ``labels``, which the model shifts."""
    labels_L = example.ids_L.masked_fill(example.mask_L == 0, IGNORED)
    return {
        "id": masked.trace.id,
        "input_ids": example.ids_L.tolist(),
        "attention_mask": [1] * len(example.ids_L),
        "labels": labels_L.tolist(),
        "loss_weights": example.mask_L.tolist(),
    }


def message_row(masked: Masked) -> dict[str, Any]:
    """The conversation as text; ``spans`` partition the answer's characters by their weight."""
    trace = masked.trace
    answer = {"role": "assistant", "content": trace.response}
    return {"id": trace.id, "messages": [user_message(trace.problem), answer], "spans": spans(masked)}


def spans(masked: Masked) -> list[dict[str, Any]]:
    """Runs of tokens of equal segment and weight, with ``start`` and ``end`` in characters; a character that several
    tokens share goes to the first of them.
    """
    weighed: list[dict[str, Any]] = []
    rows = zip(masked.trace.offsets_T[:, 1].tolist(), masked.weights_T.tolist(), masked.segment_T.tolist(), strict=True)
    for (weight, _), run in groupby(rows, key=lambda row: row[1:]):
        start, end = weighed[-1]["end"] if weighed else 0, [row[0] for row in run][-1]
        if end > start:
            weighed.append({"start": start, "end": end, "weight": weight})
    return weighed


def save(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Write a `datasets` folder, whole or not at all."""
    from datasets import Dataset

    with replacing_folder(folder, "dataset_info.json") as draft:
        Dataset.from_list(rows).save_to_disk(str(draft))

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
    from segrl.sft.rows import read_selections, reselecting, supervise

    path, out = needed(config, "traces", "out")
    rules = Rules(**plain(config.masking))
    done = supervise(
        load_traces(path, limit=config.limit, require_response=True),
        load_tokenizer(model_path(config)),
        rules,
        config.max_length,
        None if rules.mode == "full" else read_selections(config.selections),
        load_tokenizer(config.attributor_path) if config.attributor_path else None,
        config.template,
        reselecting(config.selections, config.tau, config.beta),
    )
    if not done.rows:
        raise ValueError(f"no row is left to write: {'; '.join(done.notes())}")
    save(Path(out) / "tokens", [token_row(*pair) for pair in zip(done.rows, done.examples, strict=True)])
    save(Path(out) / "messages", [message_row(masked) for masked in done.rows])
    kept = sum(int((one.mask_L > 0).sum()) for one in done.examples)
    total = sum(len(one.ids_L) - one.prompt_tokens for one in done.examples)
    print(f"{len(done.rows)} rows, {kept} of {total} response tokens kept ({kept / total:.1%}) -> {out}")
    for note in done.notes():
        print(f"  {note}")


def token_row(masked: Masked, one: Example) -> dict[str, Any]:
    """What TRL and Transformers read; ``loss_weights`` are those of ``labels``, which are shifted by the model."""
    labels_L = one.ids_L.masked_fill(one.mask_L == 0, IGNORED)
    return {
        "id": masked.trace.id,
        "input_ids": one.ids_L.tolist(),
        "attention_mask": [1] * len(one.ids_L),
        "labels": labels_L.tolist(),
        "loss_weights": one.mask_L.tolist(),
    }


def message_row(masked: Masked) -> dict[str, Any]:
    """The conversation as text; ``spans`` partition the answer's characters by their weight."""
    trace = masked.trace
    answer = {"role": "assistant", "content": trace.response}
    return {"id": trace.id, "messages": [user_message(trace.problem), answer], "spans": spans(masked)}


def spans(masked: Masked) -> list[dict[str, Any]]:
    """Runs of tokens of one segment and weight as ``start``, ``end`` in characters; a character that several tokens
    share goes to the first of them.
    """
    found: list[dict[str, Any]] = []
    rows = zip(masked.trace.offsets_T[:, 1].tolist(), masked.weights_T.tolist(), masked.segment_T.tolist(), strict=True)
    for (weight, _), run in groupby(rows, key=lambda row: row[1:]):
        start, end = found[-1]["end"] if found else 0, [row[0] for row in run][-1]
        if end > start:
            found.append({"start": start, "end": end, "weight": weight})
    return found


def save(folder: Path, rows: list[dict[str, Any]]) -> None:
    """A `datasets` folder, whole or not at all."""
    from datasets import Dataset

    with replacing_folder(folder, "dataset_info.json") as draft:
        Dataset.from_list(rows).save_to_disk(str(draft))

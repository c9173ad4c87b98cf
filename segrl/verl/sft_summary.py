"""What ``segrl sft`` says before it trains: the counts, and the first row with the tokens that count lit."""

from __future__ import annotations

from itertools import groupby

from omegaconf import DictConfig
from rich.text import Text

from segrl.report import draw
from segrl.verl.sft_dataset import SelectiveDataset
from segrl.verl.sft_stages import Stage

SHOWN = 1500  # tokens of a row


def check_rows(dataset: SelectiveDataset, config: DictConfig) -> None:
    """Refuse rows of which nothing would be trained, and one that verl's micro-batches could not hold."""
    notes = "".join(f"; {note}" for note in dataset.notes)
    if not len(dataset):
        raise ValueError(f"no token of any trace is kept: nothing would be trained{notes}")
    longest = max(len(one.ids_L) for one in dataset.examples)
    room = config.data.max_token_len_per_gpu * config.engine.get("ulysses_sequence_parallel_size", 1)
    if config.data.use_dynamic_bsz and longest > room:
        raise ValueError(
            f"the longest row has {longest} tokens, a micro-batch holds {room}; raise data.max_token_len_per_gpu, "
            "or lower data.max_length with segrl.too_long=drop or truncate"
        )


def summary(dataset: SelectiveDataset, steps: int, stage: Stage) -> str:
    head = (
        f"stage {stage.number}, {stage.mode} SFT: {len(dataset)} traces, {dataset.tokens} response tokens, "
        f"{dataset.kept} of them kept ({dataset.kept / dataset.tokens:.1%}), {steps} steps"
    )
    return "\n".join([head, *(f"  {note}" for note in dataset.notes)])


def first_row(dataset: SelectiveDataset) -> None:
    draw(lit(dataset.examples[0], dataset.tokenizer))


def lit(example, tokenizer) -> Text:
    """The row as text; in bold green what counts, soft weights under one in plain green, the rest dimmed."""
    top = float(example.mask_L.max())
    kinds = ["bold green" if weight >= top else "green" if weight > 0 else "dim" for weight in example.mask_L.tolist()]
    text, at = Text(), 0
    for style, run in groupby(kinds[:SHOWN]):
        end = at + len(list(run))
        text.append(tokenizer.decode(example.ids_L[at:end].tolist()), style)
        at = end
    if len(kinds) > SHOWN:
        text.append(f"\n... {len(kinds) - SHOWN} more tokens", "italic")
    return text

"""What ``segrl sft`` says before it trains: the counts, and the first row with the tokens that count lit."""

from __future__ import annotations

from itertools import groupby

from rich.text import Text

from segrl.report import draw
from segrl.verl.sft_dataset import SelectiveDataset
from segrl.verl.sft_stages import Stage

SHOWN = 1500  # tokens of a row


def summary(dataset: SelectiveDataset, steps: int, stage: Stage) -> str:
    if dataset.kept == 0:
        notes = "".join(f"; {note}" for note in dataset.notes)
        raise ValueError(f"no token of {len(dataset)} traces is kept: nothing would be trained{notes}")
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

"""How fast the rows of selective SFT are made and read, beside verl's own dataset on the same texts.

    python scripts/bench_sft.py                     817 traces of about 8,000 tokens, and rows/s of both datasets
    python scripts/bench_sft.py --traces 100 --tokens 2000

start-up   reading traces and selections, tokenising, masking: what `segrl sft` does before its first row where
           selections are given; then the same where these were made on another tokenizer's tokens
rows/s     rows read once, both datasets taking turns: verl tokenises each row when it is read, segrl at the start; so
           segrl's is given twice, without and with the start-up shared out over the rows of one epoch
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import pandas as pd
import torch
from omegaconf import OmegaConf

import segrl
from segrl import toy
from segrl.data import save_traces, write_rows
from segrl.data.records import selection_row
from segrl.importance import from_strength
from segrl.sft.dataset import SelectiveDataset
from segrl.text.prompting import user_message
from segrl.types import Trace


def long_traces(count: int, tokens: int) -> list[Trace]:
    """Traces of toy responses one after another, each of about ``tokens`` tokens."""
    short = toy.sample_traces(64, seed=0)
    thoughts = [trace.response.partition("\n</think>")[0] for trace in short]
    pieces = max(1, round(tokens / 135))  # of the toy's tokens
    answer = "\n</think> So, the final answer is \\boxed{7}"
    return [
        Trace(f"t{i}", short[i % 64].problem, "\n\n".join(thoughts[(i + j) % 64] for j in range(pieces)) + answer, "7")
        for i in range(count)
    ]


def write(folder: Path, traces: list[Trace], tokenizer) -> None:
    """Write the same texts for both datasets: traces with selections, and messages."""
    rows = []
    for trace in traces:
        tokenised = segrl.tokenize(trace, tokenizer)
        segments = segrl.segment(tokenised)
        scores = from_strength(torch.rand(len(segments)), segments)
        rows.append(selection_row(tokenised, segments, scores, segrl.select(scores)))
    save_traces(traces, folder / "traces.jsonl")
    write_rows(folder / "selections.parquet", rows)
    messages = [[user_message(trace.problem), {"role": "assistant", "content": trace.response}] for trace in traces]
    pd.DataFrame({"messages": messages}).to_parquet(folder / "messages.parquet")


def segrl_dataset(folder: Path, tokenizer, max_length: int, maker: str | None = None) -> SelectiveDataset:
    settings = {"mode": "selective", "selections": str(folder / "selections.parquet"), "template": "chat"}
    settings |= {"attributor_path": maker}
    config = OmegaConf.create({"max_length": max_length, "segrl": settings})
    return SelectiveDataset(str(folder / "traces.jsonl"), tokenizer, config)


def verl_dataset(folder: Path, tokenizer, max_length: int):
    from verl.utils.dataset.multiturn_sft_dataset import MultiTurnSFTDataset  # noqa: TID251

    config = OmegaConf.create(
        {"max_length": max_length, "truncation": "right", "pad_mode": "no_padding", "ignore_input_ids_mismatch": True}
    )
    return MultiTurnSFTDataset(str(folder / "messages.parquet"), tokenizer, config)


def other_tokenizer(tokenizer, folder: Path) -> str:
    """The folder of another tokenizer: it has the same words, and one more that no text holds."""
    tokenizer.add_tokens(["<never>"])
    tokenizer.save_pretrained(folder)
    return str(folder)


def started(folder: Path, tokenizer, max_length: int, maker: str | None = None) -> SelectiveDataset:
    """The dataset; prints how long it took on all cores and in processor time."""
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    wall, processor = time.perf_counter(), time.process_time()
    dataset = segrl_dataset(folder, tokenizer, max_length, maker)
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    what = "start-up, selections of another tokenizer" if maker else "start-up"
    print(f"{what}: {wall:.1f} s on {os.cpu_count()} cores, {processor:.1f} s of processor time")
    return dataset


def seconds(action) -> float:
    """Seconds of processor time, which other work on the machine does not lengthen; tokenizers run on one thread."""
    began = time.process_time()
    action()
    return time.process_time() - began


def main() -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--traces", type=int, default=817)
    parser.add_argument("--tokens", type=int, default=8000)
    parser.add_argument("--rows", type=int, default=40, help="rows read in each of the paired runs")
    parser.add_argument("--pairs", type=int, default=3)
    arguments = parser.parse_args()
    tokenizer = toy.load_model()[1]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, long_traces(arguments.traces, arguments.tokens), tokenizer)
        longest = 4 * arguments.tokens
        dataset, verl_rows = started(folder, tokenizer, longest), verl_dataset(folder, tokenizer, longest)
        started(folder, tokenizer, longest, other_tokenizer(toy.load_model()[1], folder / "maker"))
        print(f"{len(dataset)} traces, {dataset.tokens} response tokens")
        start = seconds(lambda: segrl_dataset(folder, tokenizer, longest))
        rows = range(min(arguments.rows, len(dataset)))
        read = [
            (seconds(lambda: [dataset[i] for i in rows]), seconds(lambda: [verl_rows[i] for i in rows]))
            for _ in range(arguments.pairs)
        ]
        shared = start / len(dataset) * len(rows)
        for what, extra in (("without the start-up", 0.0), ("with the start-up over one epoch", shared)):
            ratio = statistics.median(verl_s / (segrl_s + extra) for segrl_s, verl_s in read)
            rate = len(rows) / statistics.median(segrl_s + extra for segrl_s, _ in read)
            print(f"rows/s {what}: {rate:,.0f}, {ratio:.2f} times verl's")


if __name__ == "__main__":
    main()

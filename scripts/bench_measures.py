"""What each measure takes on one long trace: time, evaluations of the model, memory.

    python scripts/bench_measures.py                          16k tokens, 128 segments, vocabulary 4k
    python scripts/bench_measures.py --vocabulary 151936 --only entropy grad_input attention

The model is a random Qwen2 of 2 layers and width 64. It never ends an answer: each answer that it draws has
all its 32 tokens, and hardly two begin alike. Measures that read the same evidence share a row, which has a process of
its own. `gradients` counts the tokens that the model read, in forwards and backwards over the whole trace; a forward
alone is half of one. `--every 4` cuts the trace four times as coarsely for measures that go segment by segment, and
multiplies their cost by four.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import torch
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

import segrl
from segrl import Segments, Trace, toy
from segrl.attribution import PAPER
from segrl.importance import MEASURES
from segrl.importance.gathering import NEEDS

PATH = {**PAPER, "tolerance": None}  # a random model's path says nothing of where more nodes would be needed
KINDS = ("needed", "repeat")
FLAGS = ("tokens", "segments", "vocabulary", "every", "threads")


def rows() -> dict[str, dict]:
    """By name of the row, its measures and options. Measures whose evidence one gatherer makes share a row."""
    together = defaultdict(list)
    for name, measure in MEASURES.items():
        if measure.offline:
            together[tuple(dict.fromkeys(NEEDS[need] for need in measure.needs))].append(name)
    rows_by_name = {", ".join(names): {"measures": names} for names in together.values()}
    pmi = next(name for name in rows_by_name if name.startswith("pmi"))
    rows_by_name[f"{pmi}, shared_prefixes"] = {**rows_by_name[pmi], "options": {"shared_prefixes": True}}
    return rows_by_name


def measured(row: dict, arguments) -> dict[str, float]:
    """The numbers of one row, measured in this process."""
    tokenizer = AutoTokenizer.from_pretrained(toy.MODEL_PATH)
    model = random_model(arguments.vocabulary)
    needs = tuple(dict.fromkeys(need for name in row["measures"] for need in MEASURES[name].needs))
    every = arguments.every if any(need.endswith("_S") for need in needs) else 1
    options = {**(PATH if "ig" in needs else {}), **row.get("options", {})}
    scored(model, tokenizer, *long_trace(tokenizer, 256, 128), row["measures"], needs, options)  # imports, buffers
    trace, segments = long_trace(tokenizer, arguments.tokens, arguments.tokens // arguments.segments * every)
    before, read = resident(), counting(model)
    began = time.process_time()  # of one thread, whatever else runs
    cost = scored(model, tokenizer, trace, segments, row["measures"], needs, options)
    seconds = time.process_time() - began
    return {
        "segments": (len(segments) - 1) * every,
        "CPU seconds": seconds * every,
        "evaluations": sum(cost[need] for need in MEASURES[row["measures"][0]].needs) * every,
        "gradients": sum(read) / trace.tokens * every,
        "MiB above the model": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024,
    }


def scored(model, tokenizer, trace, segments, measures, needs, options) -> dict[str, float]:
    [evidence] = segrl.gather(model, [trace], tokenizer, needs, segments=[segments], **options)
    for name in measures:
        segrl.select(segrl.score(evidence, segments, name))
    return dict(evidence.cost)


def random_model(vocabulary: int):
    torch.manual_seed(0)
    width = {"hidden_size": 64, "intermediate_size": 192, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = Qwen2Config(vocab_size=vocabulary, num_hidden_layers=2, max_position_embeddings=65_536, **width)
    return Qwen2ForCausalLM(config).eval()


def long_trace(tokenizer, tokens: int, each: int) -> tuple[Trace, Segments]:
    """Toy responses one after another, cut every ``each`` tokens; half of the segments are called needed."""
    thoughts = [sample.response.partition("\n</think>")[0] for sample in toy.sample_traces(tokens // 60, seed=0)]
    ids = tokenizer("\n\n".join(thoughts), add_special_tokens=False)["input_ids"][:tokens]
    text = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    trace = Trace("long", "What is x?", f"{text}\n</think> So, the final answer is \\boxed{{7}}", "7")
    trace = segrl.tokenize(trace, tokenizer)
    segments = segrl.segment(trace, "fixed", tokens=each)
    return replace(trace, meta={"kinds": [KINDS[s % 2] for s in range(len(segments))]}), segments


def counting(model) -> list[float]:
    """A list to which each forward adds its number of tokens, halved where no backward follows."""
    read: list[float] = []

    def count(module, args) -> None:
        read.append(args[0].numel() / (1 if torch.is_grad_enabled() else 2))

    model.get_input_embeddings().register_forward_pre_hook(count)
    return read


def resident() -> int:
    """KiB of this process in memory now."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1])


def in_a_process(name: str, arguments: argparse.Namespace) -> dict[str, float]:
    flags = [f"--{flag}={getattr(arguments, flag)}" for flag in FLAGS]
    command = [sys.executable, __file__, "--row", name, *flags]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def table(numbers: dict[str, dict[str, float]]) -> str:
    columns = list(next(iter(numbers.values())))
    lines = [f"| | {' | '.join(columns)} |", "|---|" + "---:|" * len(columns)]
    for name, row in numbers.items():
        lines.append(f"| {name} | {' | '.join(f'{row[column]:,.4g}' for column in columns)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=16_384)
    parser.add_argument("--segments", type=int, default=128)
    parser.add_argument("--vocabulary", type=int, default=4_096)
    parser.add_argument("--every", type=int, default=1, help="of what goes segment by segment, do one in so many")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="*", default=(), help="rows that hold one of these measures")
    parser.add_argument("--row", help="measure this row here, and print it as json")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.row:
        print(json.dumps(measured(rows()[arguments.row], arguments)))
        return
    numbers = {}
    for name, row in rows().items():
        if not arguments.only or set(arguments.only) & set(row["measures"]):
            numbers[name] = in_a_process(name, arguments)
            print(f"{name}: {numbers[name]['CPU seconds']:.1f} s", file=sys.stderr, flush=True)
    print(table(numbers))


if __name__ == "__main__":
    main()

"""Planned against measured peak memory of two SFT steps and one GRPO step, on a CPU, with a random model.

    python scripts/bench_memory.py                  both, of 100 million parameters; 10 minutes on two cores
    python scripts/bench_memory.py sft --layers 4   one of them, smaller

The commands are `segrl sft` and `segrl grpo` with preset=toy_cpu. Every quarter of a second the resident memory (RSS)
of all their processes is added up; a page counts in every process that maps it. What is measured is written to `--out`
and is not measured again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from omegaconf import DictConfig

from segrl import toy
from segrl.commands.config import compose
from segrl.commands.planning import PLANS, hardware_of, read_config
from segrl.cost.hardware import GIB
from segrl.cost.shape import shape_of
from segrl.data import save_traces
from segrl.launch import editable
from segrl.tokenization import tokenize_all

MARK = "SEGRL_BENCH_MEMORY"  # Ray's processes are in sessions of their own; this in their environment finds them
HIDDEN, WIDTH, HEADS = 768, 2048, 12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("steps", nargs="*", default=["sft", "grpo"])
    parser.add_argument("--layers", type=int, default=14)
    parser.add_argument("--out", type=Path, default=Path("runs/bench_memory"))
    arguments = parser.parse_args()
    folder = (arguments.out / f"{arguments.layers}-layers").absolute()
    model = folder / "model"
    if not (model / "config.json").exists():
        save_model(model, arguments.layers)
    for step in arguments.steps:
        file = folder / f"{step}.json"
        if not file.exists():
            file.write_text(json.dumps(measured(step, STEPS[step](folder, model), folder), indent=1))
        print(said(step, json.loads(file.read_text()), STEPS[step](folder, model)))


def save_model(folder: Path, layers: int) -> None:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    _, tokenizer = toy.load_model()
    config = Qwen2Config.from_pretrained(toy.MODEL_PATH)
    config.update({"hidden_size": HIDDEN, "intermediate_size": WIDTH, "num_hidden_layers": layers})
    config.update({"num_attention_heads": HEADS, "num_key_value_heads": HEADS, "max_window_layers": layers})
    config.layer_types = ["full_attention"] * layers
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def sft(folder: Path, model: Path) -> list[str]:
    """Two steps of micro-batches of 2,048 tokens, in rows of one length; Adam has its moments from the second on."""
    traces = folder / "traces.jsonl"
    if not traces.exists():
        _, tokenizer = toy.load_model()
        made = toy.sample_traces(512, seed=0)
        ordered = sorted(zip(tokenize_all(made, tokenizer), made, strict=True), key=lambda pair: pair[0].tokens)
        save_traces([trace for _, trace in ordered[224:288]], traces)
    rows = ["mode=full", "data.train_batch_size=16", "data.max_token_len_per_gpu=2048"]
    return ["sft", "preset=toy_cpu", f"model_path={model}", f"traces={traces}", *rows, "trainer.total_training_steps=2"]


def grpo(folder: Path, model: Path) -> list[str]:
    sizes = ["data.train_batch_size=8", "actor_rollout_ref.actor.ppo_max_token_len_per_gpu=2048"]
    sizes += ["data.max_response_length=256", "segrl.tokens_per_forward=2048", "trainer.total_training_steps=1"]
    return ["grpo", "preset=toy_cpu", "segrl.rule=rank", f"model_path={model}", *sizes]


STEPS: dict[str, Callable[[Path, Path], list[str]]] = {"sft": sft, "grpo": grpo}


def measured(step: str, command: list[str], folder: Path) -> dict:
    """The peak of the command's memory, and what each kind of process had of it then."""
    with tempfile.TemporaryDirectory(prefix="sb") as scratch:
        places = [f"out={scratch}/out"]
        if step == "grpo":
            places.append(f"+ray_kwargs.ray_init._temp_dir={scratch}/ray")
        log = folder / f"{step}.log"
        with log.open("w") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "segrl", *command, *places],
                env=os.environ | {MARK: scratch},
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            peak: Counter[str] = Counter()
            while process.poll() is None:
                now = resident(scratch)
                peak = max(peak, now, key=Counter.total)
                time.sleep(0.25)
    if process.returncode:
        raise SystemExit(f"{step} ended with {process.returncode}: {log}")
    return {"total": peak.total(), "processes": dict(peak.most_common())}


def resident(mark: str) -> Counter[str]:
    """Bytes of each kind of process that has the mark."""
    wanted, sizes = f"{MARK}={mark}".encode(), Counter[str]()
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if wanted not in (place / "environ").read_bytes().split(b"\0"):
                continue
            name = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            sizes[kind(name)] += int((place / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except OSError:  # it has ended
            continue
    return sizes


def kind(command: str) -> str:
    words = command.split()
    if words[0].startswith("ray::"):
        return words[0].partition(".")[0]
    return (
        next((Path(word).name for word in words[1:] if not word.startswith("-")), words[0]) if words[1:] else words[0]
    )


def said(step: str, peak: dict, command: list[str]) -> str:
    config: DictConfig = editable(compose(step, command[1:]))
    details = read_config(config.model_path)
    plan = PLANS[step](config, shape_of(details), hardware_of(config), details)
    planned = max(phase.total for phase in plan.phases)
    ratio = planned / peak["total"]
    head = f"{step}: planned {planned / GIB:.2f} GiB, measured {peak['total'] / GIB:.2f}, ratio {ratio:.2f}"
    return "\n".join([plan.lines(), head, *(f"  {size / GIB:5.2f} {name}" for name, size in peak["processes"].items())])


if __name__ == "__main__":
    main()

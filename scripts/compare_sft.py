"""What selective SFT is worth on the toy world: cells of one arm and one seed, trained by verl, graded, paired by seed.

    python scripts/compare_sft.py OUT --arms training --seeds 10
    python scripts/compare_sft.py OUT --arms measures --seeds 5

training   full, and at the same kept tokens and forced segments: selective and pruned by IG, random segments, and the
           planted needed ones (oracle): where oracle does not beat full, this world cannot rank measures
measures   every measure, masking and (those of segments) pruning, at the same kept tokens
grid       IG at every tau and beta, as the paper's figure 5

A seed is a set of traces, the same for every arm; all cells take the same number of steps from the bundled model and
answer the same problems. What is done is not done again: the same command goes on. All cells are trained in one
process, by verl's own SFTTrainer on the config of ``segrl sft``: starting verl takes longer than a toy training.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import shutil
import statistics
import time
from functools import cache
from pathlib import Path
from typing import NamedTuple

from segrl.data import shards
from segrl.data.files import write_text
from segrl.launch import environment

KEPT = 0.45  # of the thinking's tokens, as the paper's selections
TAUS, BETAS = (0.5, 0.6, 0.7, 0.8, 0.9), (0.6, 0.7, 0.8, 0.9, 1.0)
# Student's t at 97.5%, by degrees of freedom; 1.96 beyond.
T = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26, 14: 2.14, 19: 2.09}


class Arm(NamedTuple):
    mode: str
    measure: str | None = None
    selection: tuple[str, ...] = ()


def matched(mode: str, measure: str) -> Arm:
    """The same kept tokens for every measure; beta judges none of these short segments."""
    return Arm(mode, measure, (f"selection.match_tokens={KEPT}", "selection.beta=1"))


def arms_of(name: str) -> dict[str, Arm]:
    full = {"full": Arm("full")}
    if name == "training":
        found = {"selective": ("selective", "ig"), "pruned": ("pruned", "ig"), "random": ("selective", "random")}
        found["oracle"] = ("selective", "oracle")
        return full | {arm: matched(*how) for arm, how in found.items()}
    if name == "measures":
        from segrl.importance import MEASURES

        offline = {name: measure for name, measure in MEASURES.items() if measure.offline}
        masked = {f"{measure} mask": matched("selective", measure) for measure in offline}
        pruned = {f"{m} prune": matched("pruned", m) for m, one in offline.items() if one.level == "segment"}
        return full | masked | pruned
    if name == "grid":
        grid = [(tau, beta) for tau in TAUS for beta in BETAS]
        cells = {f"tau {t} beta {b}": (f"selection.tau={t}", f"selection.beta={b}") for t, b in grid}
        return full | {arm: Arm("selective", "ig", how) for arm, how in cells.items()}
    raise SystemExit(f"--arms {name}: expected training, measures or grid")


# --- one cell --------------------------------------------------------------------------------------------------------


def segrl_command(*arguments) -> None:
    from segrl.commands.cli import main

    if main([str(argument) for argument in arguments]):
        raise RuntimeError(f"segrl {' '.join(map(str, arguments))} failed")


@cache
def prepare(folder: Path, seed: int, count: int) -> Path:
    """The traces of a seed and their attributions, which all arms share."""
    from segrl import toy
    from segrl.data import save_traces

    traces = folder / "traces.jsonl"
    if not traces.exists():
        save_traces(toy.sample_traces(count, seed=seed), traces)
    segrl_command("attribute", "attribution=paper", f"traces={traces}", f"out={folder / 'attributions'}")
    return folder


def selections(folder: Path, arm: Arm) -> Path:
    """One file for all arms that select alike."""
    options = "-".join(one.partition(".")[2].replace("=", "-") for one in arm.selection)
    out = folder / f"{arm.measure}-{options}.parquet"
    if not out.exists():
        given = [f"traces={folder / 'traces.jsonl'}", f"attributions={folder / 'attributions'}", f"out={out}"]
        segrl_command("select", *given, f"measure={arm.measure}", "attribution=paper", *arm.selection)
    return out


def train(folder: Path, cell: Path, arm: Arm, asked) -> dict:
    """The stage that ``segrl sft`` would run, in this process; what it was trained on."""
    from transformers import AutoTokenizer
    from verl.trainer.sft_trainer import SFTTrainer  # noqa: TID251

    from segrl.commands.config import compose
    from segrl.launch import editable
    from segrl.sft.dataset import SelectiveDataset
    from segrl.sft.export import export
    from segrl.sft.stages import executed_steps, planned_steps, stage_config, stages_of

    given = [f"traces={folder / 'traces.jsonl'}", f"out={cell}", f"mode={arm.mode}", *asked.sft]
    given += [f"optim.lr={asked.lr}", f"trainer.total_epochs={asked.epochs}", "trainer.save_freq=-1"]
    given += [f"selections={selections(folder, arm)}"] if arm.measure else []
    config = editable(compose("sft", ["preset=toy_cpu", *given]))
    stages = stages_of(config)
    one = stage_config(config, stages[0], stages)
    dataset = SelectiveDataset(one.data.train_files, AutoTokenizer.from_pretrained(one.model.path), one.data)
    steps = planned_steps(len(dataset), one)
    shutil.rmtree(cell, ignore_errors=True)
    cell.mkdir(parents=True)
    SFTTrainer(config=one).fit()
    if executed_steps(one) != steps:
        raise RuntimeError(f"{cell}: {steps} steps were planned, {executed_steps(one)} executed")
    export(one, steps, stages[0], dataset)
    shutil.rmtree(one.trainer.default_local_dir)
    gc.collect()
    return {"steps": steps, "kept": dataset.kept, "tokens": dataset.tokens}


def evaluate(model: Path, out: Path, asked) -> dict:
    """Every verdict on the problems that all cells answer, by the grader that rewards."""
    from segrl.evaluation.results import read_samples

    given = [f"model_path={model}", f"data_path={asked.out / 'problems.jsonl'}", f"out={out}"]
    segrl_command("evaluate", *given, "greedy=false", "generation.n=1", "generation.seed=0")
    [samples] = read_samples(str(out)).values()
    return {"accuracy": statistics.mean(one["correct"] for one in samples), "problems": len(samples)}


def run_base(asked) -> None:
    """What all cells start from."""
    from segrl import toy

    result = asked.out / "base.json"
    if not result.exists():
        found = evaluate(toy.MODEL_PATH, asked.out / "base", asked)
        write_text(result, json.dumps(found) + "\n")
        print(f"the bundled model: {found['accuracy']:.1%}", flush=True)


def run_cell(name: str, arm: Arm, seed: int, asked) -> None:
    cell = asked.out / "cells" / f"{name.replace(' ', '_')}-{seed}"
    result = cell.with_name(f"{cell.name}.json")
    if result.exists():
        return
    began = time.perf_counter()
    folder = prepare(asked.out / f"seed-{seed}", seed, asked.traces)
    found = {"arm": name, "seed": seed, **train(folder, cell, arm, asked)}
    found |= evaluate(cell / "model", cell / "evaluation", asked)
    write_text(result, json.dumps(found | {"seconds": round(time.perf_counter() - began, 1)}) + "\n")
    shutil.rmtree(cell)
    print(f"{name}, seed {seed}: {found['accuracy']:.1%}", flush=True)


# --- the table -------------------------------------------------------------------------------------------------------


def interval(values: list[float]) -> str:
    """Mean and 95% interval over seeds, by Student's t."""
    mean = statistics.mean(values)
    if len(values) < 2:
        return f"{100 * mean:+.1f} [one seed]"
    nearest = max(freedom for freedom in T if freedom <= len(values) - 1)
    half = T[nearest] * statistics.stdev(values) / math.sqrt(len(values))
    return f"{100 * mean:+.1f} [{100 * (mean - half):+.1f}, {100 * (mean + half):+.1f}]"


def table(out: Path, arms: dict[str, Arm]) -> str:
    """Accuracy of each arm, and its differences, on the seeds that both have, to full and to as many random tokens."""
    cells = [json.loads(path.read_text()) for path in sorted((out / "cells").glob("*.json"))]
    found = {name: {one["seed"]: one for one in cells if one["arm"] == name} for name in arms}
    lines = [
        "| arm | seeds | steps | kept | accuracy | minus full, points | minus random |",
        "|---|---|---|---|---|---|---|",
    ]
    base = json.loads((out / "base.json").read_text())["accuracy"]
    lines.append(f"| the bundled model | | 0 | | {base:.1%} | | |")
    random = next((name for name in arms if name.startswith("random")), "")
    for name, own in found.items():
        if own:
            rows = list(own.values())
            kept = statistics.mean(one["kept"] / one["tokens"] for one in rows)
            steps = "/".join(sorted({str(one["steps"]) for one in rows}))
            accuracy = statistics.mean(one["accuracy"] for one in rows)
            full = difference(own, found["full"]) if name != "full" else ""
            chance = difference(own, found.get(random, {})) if name not in ("full", random) else ""
            lines.append(f"| {name} | {len(own)} | {steps} | {kept:.0%} | {accuracy:.1%} | {full} | {chance} |")
    return "\n".join([*lines, "", *verdict(found)])


def difference(own: dict[int, dict], other: dict[int, dict]) -> str:
    shared = sorted({*own} & {*other})
    return interval([own[seed]["accuracy"] - other[seed]["accuracy"] for seed in shared]) if shared else ""


def verdict(found: dict[str, dict[int, dict]]) -> list[str]:
    """Whether this world can tell measures apart at all."""
    oracle = next((own for name, own in found.items() if name.startswith("oracle")), {})
    gain = difference(oracle, found["full"])
    if not gain:
        return []
    if "[+" in gain:
        return ["The planted segments beat full SFT: differences between measures mean something here."]
    return ["The planted segments do not beat full SFT beyond chance: this world, so trained, cannot rank measures."]


# --- all of it -------------------------------------------------------------------------------------------------------


def start_verl() -> None:
    """One process as a whole torchrun of one rank."""
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in ranks.items()})
    if os.environ.get("VERL_PLATFORM") == "cpu":
        from segrl.verl.platform import activate  # this process imported the plugin before it was asked for

        activate()
    from verl.utils import distributed  # noqa: TID251

    distributed.initialize_global_process_group()


def main() -> None:
    os.environ.update(environment())
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--arms", default="training")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first", type=int, default=0, help="seed; two processes can share a folder's seeds")
    parser.add_argument("--traces", type=int, default=160)
    parser.add_argument("--problems", type=int, default=300)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("sft", nargs="*", help="further overrides of segrl sft")
    asked = parser.parse_intermixed_args()
    arms = arms_of(asked.arms)
    asked.out = asked.out.absolute()
    (asked.out / "cells").mkdir(parents=True, exist_ok=True)
    claim(asked)
    start_verl()
    run_base(asked)
    for seed in range(asked.first, asked.first + asked.seeds):
        for name, arm in arms.items():
            try:
                run_cell(name, arm, seed, asked)
            except RuntimeError as error:  # a measure that finds nothing ends its own cells alone
                print(f"{name}, seed {seed}: {error}", flush=True)
        write_text(asked.out / "table.md", table(asked.out, arms) + "\n")
    print(table(asked.out, arms))


def claim(asked) -> None:
    """The problems, and a note of the settings; other settings want another folder."""
    from segrl import toy
    from segrl.data import save_traces

    settings = {name: value for name, value in vars(asked).items() if name not in ("out", "seeds", "first")}
    note = asked.out / "settings.json"
    if shards.claim(note, settings):
        raise SystemExit(f"{asked.out} holds a comparison with other settings ({note}); choose another folder")
    if not (asked.out / "problems.jsonl").exists():
        save_traces(toy.sample_problems(asked.problems, seed=100001), asked.out / "problems.jsonl")


if __name__ == "__main__":
    main()

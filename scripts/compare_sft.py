"""What selective SFT is worth on the toy world: cells of one arm and one seed, trained by verl, graded, paired by seed.

    python scripts/compare_sft.py OUT --arms training --seeds 10
    python scripts/compare_sft.py OUT --arms measures --seeds 5
    python scripts/compare_sft.py OUT --arms power --redundancy detours  # sizes: examples/selective_sft.sh

training   full, and at the same kept tokens and forced segments: selective and pruned by IG, random segments, and the
           planted needed ones (oracle): where oracle does not beat full, this world cannot rank measures
measures   every measure, masking and (those of segments) pruning, at the same kept tokens
grid       IG at every tau and beta, as the paper's figure 5
power      on traces of which a third is needed (--redundancy): full, the planted truth, IG, first_and_last, alone,
           contribution, permuted and random scores at as many tokens as are needed, full, planted and IG also
           normalised per trace

A seed is a set of traces, the same for every arm; all cells take the same number of steps from the bundled model and
answer the same problems. Two things are measured of each: the share of right answers, and the mean number of tokens of
a response; with ``--budget`` also the share of right answers that end within that many tokens. The same command goes on
where it stopped. All cells are trained in one process, by verl's own SFTTrainer on the config of ``segrl sft``:
starting verl takes longer than a toy training.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import re
import shutil
import statistics
import time
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

from segrl.data import shards
from segrl.data.files import write_text
from segrl.launch import environment
from segrl.worlds.halves import Sample, fitting

KEPT = 0.45  # of the thinking's tokens, as the paper's selections
NEEDED = 0.36  # of the thinking's tokens, in a world with redundancy
TAUS, BETAS = (0.5, 0.6, 0.7, 0.8, 0.9), (0.6, 0.7, 0.8, 0.9, 1.0)
FREE = ("out", "seeds", "first", "only", "budget")  # what may change between two calls for one folder
# Student's t at 97.5%, by degrees of freedom; 1.96 beyond.
T = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26, 14: 2.14, 19: 2.09}


Seeds = dict[int, dict]  # an arm's cells, by seed


class Arm(NamedTuple):
    mode: str
    measure: str | None = None
    selection: tuple[str, ...] = ()
    attribution: str = "paper"
    normalise: str = "batch"


def matched(mode: str, measure: str, share: float = KEPT, **attribution: str) -> Arm:
    """An arm that keeps ``share`` of the tokens, whatever the measure; beta drops none of these short segments."""
    return Arm(mode, measure, (f"selection.match_tokens={share}", "selection.beta=1"), **attribution)


def power_arms() -> dict[str, Arm]:
    """The arms of ``power``. The planted truth keeps needed thoughts, corrections and the close alone; the others keep
    as many tokens."""
    planted = ("selection.tau=1", "selection.beta=1", "selection.force=[]")
    measures = {"first_and_last": "default", "alone": "default", "contribution": "default", "support": "default"}
    measures |= {"permuted_ig": "paper", "random": "paper"}
    return {
        "full": Arm("full"),
        "planted": Arm("selective", "oracle", planted),
        "ig": matched("selective", "ig", NEEDED),
        **{name: matched("selective", name, NEEDED, attribution=path) for name, path in measures.items()},
        "full per trace": Arm("full", normalise="trace"),
        "planted per trace": Arm("selective", "oracle", planted, normalise="trace"),
        "ig per trace": matched("selective", "ig", NEEDED, normalise="trace"),
    }


def arms_of(name: str) -> dict[str, Arm]:
    full = {"full": Arm("full")}
    if name == "training":
        by_ig = {"selective": matched("selective", "ig"), "pruned": matched("pruned", "ig")}
        controls = {measure: matched("selective", measure) for measure in ("random", "oracle")}
        return full | by_ig | controls
    if name == "measures":
        from segrl.importance import MEASURES

        offline = {name: measure for name, measure in MEASURES.items() if measure.offline}
        masked = {f"{measure} mask": matched("selective", measure) for measure in offline}
        pruned = {f"{name} prune": matched("pruned", name) for name, m in offline.items() if m.level == "segment"}
        return full | masked | pruned
    if name == "grid":
        grid = [(tau, beta) for tau in TAUS for beta in BETAS]
        cells = {f"tau {t} beta {b}": (f"selection.tau={t}", f"selection.beta={b}") for t, b in grid}
        return full | {arm: Arm("selective", "ig", selection) for arm, selection in cells.items()}
    if name == "power":
        return power_arms()
    raise SystemExit(f"--arms {name}: expected training, measures, grid or power")


# --- one cell --------------------------------------------------------------------------------------------------------


def segrl_command(*arguments) -> None:
    from segrl.commands.cli import main

    if main([str(argument) for argument in arguments]):
        raise RuntimeError(f"segrl {' '.join(map(str, arguments))} failed")


def prepare(folder: Path, seed: int, arguments) -> Path:
    """The traces of a seed, which all arms share."""
    from segrl import toy
    from segrl.data import save_traces

    traces = folder / "traces.jsonl"
    if not traces.exists():
        sample = partial(toy.sample_traces, seed=seed, redundancy=arguments.redundancy)
        save_traces(short(sample, arguments.traces, arguments), traces)
    return folder


def short(sample: Sample, count: int, arguments) -> list:
    """The first ``count`` samples that take at most ``--most-steps`` steps."""
    most = arguments.most_steps
    return fitting(sample, count, lambda trace: trace.meta["n_steps"] <= most, f"take at most --most-steps {most}")


@cache
def attributed(folder: Path) -> Path:
    """The paper's attributions of a seed's traces, which all arms share that read them."""
    out = folder / "attributions"
    segrl_command("attribute", "attribution=paper", f"traces={folder / 'traces.jsonl'}", f"out={out}")
    return out


def selections(folder: Path, arm: Arm) -> Path:
    """The file of an arm's selections, which all arms that select alike share."""
    from segrl.importance import measure_of

    options = "-".join(re.sub(r"\W+", "-", key.partition(".")[2]).strip("-") for key in arm.selection)
    out = folder / f"{arm.measure}-{options}.parquet"
    if not out.exists():
        overrides = [f"traces={folder / 'traces.jsonl'}", f"out={out}", f"measure={arm.measure}", *arm.selection]
        overrides += [f"attribution={arm.attribution}"]
        if arm.attribution == "paper" and measure_of(arm.measure).needs == ("ig",):
            overrides += [f"attributions={attributed(folder)}"]
        segrl_command("select", *overrides)
    return out


def train(folder: Path, cell: Path, arm: Arm, arguments) -> dict:
    """Run the stage of ``segrl sft`` in this process; returns its steps and the tokens it was trained on."""
    from transformers import AutoTokenizer
    from verl.trainer.sft_trainer import SFTTrainer  # noqa: TID251

    from segrl.commands.config import compose
    from segrl.launch import editable
    from segrl.sft.dataset import SelectiveDataset
    from segrl.sft.export import export
    from segrl.sft.stages import executed_steps, planned_steps, stage_config, stages_of

    overrides = [f"traces={folder / 'traces.jsonl'}", f"out={cell}", f"mode={arm.mode}"]
    overrides += [f"optim.lr={arguments.lr}", f"trainer.total_epochs={arguments.epochs}", "trainer.save_freq=-1"]
    overrides += [f"segrl.normalise={arm.normalise}", *arguments.sft]
    overrides += [f"selections={selections(folder, arm)}"] if arm.measure else []
    config = editable(compose("sft", ["preset=toy_cpu", *overrides]))
    stages = stages_of(config)
    stage = stage_config(config, stages[0], stages)
    dataset = SelectiveDataset(stage.data.train_files, AutoTokenizer.from_pretrained(stage.model.path), stage.data)
    steps = planned_steps(len(dataset), stage)
    shutil.rmtree(cell, ignore_errors=True)
    cell.mkdir(parents=True)
    SFTTrainer(config=stage).fit()
    if executed_steps(stage) != steps:
        raise RuntimeError(f"{cell}: {steps} steps were planned, {executed_steps(stage)} executed")
    export(stage, steps, stages[0], dataset)
    shutil.rmtree(stage.trainer.default_local_dir)
    gc.collect()
    return {"steps": steps, "kept": dataset.kept, "tokens": dataset.tokens}


def evaluate(model: Path, out: Path, arguments) -> dict:
    """The verdict and the length of each response to the problems that all cells answer, by the grader that rewards."""
    from segrl.data import read_rows

    overrides = [f"model_path={model}", f"data_path={arguments.out / 'problems.jsonl'}", f"out={out}"]
    overrides += ["greedy=false", "generation.n=1", "generation.seed=0"]
    overrides += [f"generation.max_tokens={arguments.max_tokens}"]
    segrl_command("evaluate", *overrides)
    samples = read_rows(out / "samples_problems.jsonl", ("correct", "tokens"))
    right, lengths = [bool(sample["correct"]) for sample in samples], [sample["tokens"] for sample in samples]
    means = {"accuracy": statistics.mean(right), "length": statistics.mean(lengths), "problems": len(samples)}
    return means | {"right": right, "lengths": lengths}


def run_base(arguments) -> None:
    """Evaluate the bundled model, which all cells start from."""
    from segrl import toy

    result = arguments.out / "base.json"
    if not result.exists():
        numbers = evaluate(toy.MODEL_PATH, arguments.out / "base", arguments)
        write_text(result, json.dumps(numbers) + "\n")
        print(f"the bundled model: {numbers['accuracy']:.1%}, {numbers['length']:.0f} tokens", flush=True)


def run_cell(name: str, arm: Arm, seed: int, arguments) -> None:
    cell = arguments.out / "cells" / f"{name.replace(' ', '_')}-{seed}"
    result = cell.with_name(f"{cell.name}.json")
    if result.exists():
        return
    began = time.perf_counter()
    folder = prepare(arguments.out / f"seed-{seed}", seed, arguments)
    numbers = {"arm": name, "seed": seed, **train(folder, cell, arm, arguments)}
    numbers |= evaluate(cell / "model", cell / "evaluation", arguments)
    write_text(result, json.dumps(numbers | {"seconds": round(time.perf_counter() - began, 1)}) + "\n")
    shutil.rmtree(cell)
    print(f"{name}, seed {seed}: {numbers['accuracy']:.1%}, {numbers['length']:.0f} tokens", flush=True)


# --- the table -------------------------------------------------------------------------------------------------------


def interval(values: list[float], scale: float = 100) -> str:
    """Mean and 95% interval over seeds, by Student's t."""
    mean = statistics.mean(values)
    if len(values) < 2:
        return f"{scale * mean:+.1f} [one seed]"
    nearest = max(freedom for freedom in T if freedom <= len(values) - 1)
    half = T[nearest] * statistics.stdev(values) / math.sqrt(len(values))
    return f"{scale * mean:+.1f} [{scale * (mean - half):+.1f}, {scale * (mean + half):+.1f}]"


def table(out: Path, arms: dict[str, Arm], budget: int | None = None) -> str:
    """Accuracy and length of each arm, and how far they stand above those of full; accuracy also above that of random.

    A difference is taken over the seeds that both arms have.
    """
    cells = [json.loads(path.read_text()) for path in sorted((out / "cells").glob("*.json"))]
    base = json.loads((out / "base.json").read_text())
    for cell in (*cells, base):
        cell["within"] = within(cell, budget)
    of_arms = {name: {cell["seed"]: cell for cell in cells if cell["arm"] == name} for name in arms}
    head = ["arm", "seeds", "steps", "kept", "accuracy", "minus full, points", "minus random", "tokens", "minus full"]
    head += [f"right within {budget} tokens", "minus full, points"] if budget else []
    random = next((name for name in arms if name.startswith("random")), "")
    rows = [["the bundled model", "", "0", "", *measured({0: base}, {}, {}, budget)]]
    for name, seeds in of_arms.items():
        if seeds:
            kept = statistics.mean(cell["kept"] / cell["tokens"] for cell in seeds.values())
            steps = "/".join(sorted({str(cell["steps"]) for cell in seeds.values()}))
            full = of_arms["full"] if name != "full" else {}
            chance = of_arms.get(random, {}) if name not in ("full", random) else {}
            rows.append([name, str(len(seeds)), steps, f"{kept:.0%}", *measured(seeds, full, chance, budget)])
    lines = [f"| {' | '.join(row)} |" for row in (head, *rows)]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:], "", *verdict(of_arms)])


def measured(seeds: Seeds, full: Seeds, chance: Seeds, budget: int | None) -> list[str]:
    """The columns from accuracy on."""

    def mean(what: str) -> float:
        return statistics.mean(cell[what] for cell in seeds.values())

    accuracy = [f"{mean('accuracy'):.1%}", difference(seeds, full), difference(seeds, chance)]
    length = [f"{mean('length'):.0f}", difference(seeds, full, "length", 1)]
    return accuracy + length + ([f"{mean('within'):.1%}", difference(seeds, full, "within")] if budget else [])


def within(cell: dict, budget: int | None) -> float:
    """The share of responses that are right and end within ``budget`` tokens."""
    pairs = zip(cell.get("right", ()), cell.get("lengths", ()), strict=True) if budget else ()
    return statistics.mean([right and length <= budget for right, length in pairs] or [0.0])


def difference(seeds: Seeds, others: Seeds, what: str = "accuracy", scale: float = 100) -> str:
    """The mean paired difference of arms on the seeds that both have, with its interval."""
    shared = sorted({*seeds} & {*others})
    return interval([seeds[seed][what] - others[seed][what] for seed in shared], scale) if shared else ""


def verdict(of_arms: dict[str, Seeds]) -> list[str]:
    """Whether this world can tell measures apart at all."""
    oracle = next((seeds for name, seeds in of_arms.items() if name.startswith(("oracle", "planted"))), {})
    gain = difference(oracle, of_arms["full"])
    if not gain:
        return []
    if "[+" in gain:
        return ["The planted segments beat full SFT: differences between measures mean something here."]
    return ["The planted segments do not beat full SFT beyond chance: this world, so trained, cannot rank measures."]


# --- all of it -------------------------------------------------------------------------------------------------------


def start_verl() -> None:
    """Make this process a torchrun of one rank."""
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in ranks.items()})
    if os.environ.get("VERL_PLATFORM") == "cpu":
        from segrl.verl.platform import activate  # this process imported the plugin before VERL_PLATFORM was set

        activate()
    from verl.utils import distributed  # noqa: TID251

    distributed.initialize_global_process_group()


def main() -> None:
    os.environ.update(environment())
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--arms", default="training")
    parser.add_argument("--only", nargs="+", help="these of the arms")
    parser.add_argument("--redundancy", help="of the traces: repeats or detours, see segrl/toy/redundancy.py")
    parser.add_argument("--most-steps", type=int, default=9, help="of a trace and of a problem")
    parser.add_argument("--max-tokens", type=int, default=256, help="of a response")
    parser.add_argument("--budget", type=int, help="a column of the table: right answers within so many tokens")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first", type=int, default=0, help="seed; two processes can share a folder's seeds")
    parser.add_argument("--traces", type=int, default=160)
    parser.add_argument("--problems", type=int, default=300)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("sft", nargs="*", help="further overrides of segrl sft")
    arguments = parser.parse_intermixed_args()
    every = arms_of(arguments.arms)
    arms = {name: arm for name, arm in every.items() if name in (arguments.only or every)}
    arguments.out = arguments.out.absolute()
    os.environ["TENSORBOARD_DIR"] = str(arguments.out / "tensorboard")
    (arguments.out / "cells").mkdir(parents=True, exist_ok=True)
    claim(arguments)
    start_verl()
    run_base(arguments)
    for seed in range(arguments.first, arguments.first + arguments.seeds):
        for name, arm in arms.items():
            try:
                run_cell(name, arm, seed, arguments)
            except RuntimeError as error:  # a measure that finds nothing ends its own cells alone
                print(f"{name}, seed {seed}: {error}", flush=True)
        write_text(arguments.out / "table.md", table(arguments.out, every, arguments.budget) + "\n")
    print(table(arguments.out, every, arguments.budget))


def claim(arguments) -> None:
    """Write the problems and a note of the settings; raise where the folder holds other settings."""
    from segrl import toy
    from segrl.data import save_traces

    settings = {name: value for name, value in vars(arguments).items() if name not in FREE}
    note = arguments.out / "settings.json"
    if shards.claim(note, settings):
        raise SystemExit(f"{arguments.out} holds a comparison with other settings ({note}); choose another folder")
    if not (arguments.out / "problems.jsonl").exists():
        problems = short(partial(toy.sample_problems, seed=100001), arguments.problems, arguments)
        save_traces(problems, arguments.out / "problems.jsonl")


if __name__ == "__main__":
    main()

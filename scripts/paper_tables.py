"""The tables and figures of [IG] that need training, each by its name: what is to run and its cost, then the numbers.

    python scripts/paper_tables.py OUT TRACES table2 figure5 --plan    cells and their cost alone
    python scripts/paper_tables.py OUT TRACES table2 figure5           then all of it, one command after another
    python scripts/paper_tables.py OUT TRACES table2 --toy             the bundled model on a CPU

TRACES are LIMO's, GAIR/LIMO or a file. A cell that several tables share runs once, and what is done is not done again:
the same command goes on. Further key=value go to every `segrl evaluate`.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from segrl.evaluation.statistics import GREEDY

ATTRIBUTOR = "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B"
JUDGE = "Qwen/Qwen3-8B"
# Preset of `segrl sft`, the model, and the hours of full SFT on one GPU: the paper's 8 for its 7B model, by size.
MODELS = {
    "1.5b": ("r1_distill_qwen_1.5b", "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", 8 * 1.5 / 7),
    "7b": ("r1_distill_qwen_7b", ATTRIBUTOR, 8.0),
    "qwen2.5": ("qwen2.5_7b_instruct", "Qwen/Qwen2.5-7B-Instruct", 8.0),
    "llama3.1": ("llama3.1_8b_instruct", "meta-llama/Llama-3.1-8B-Instruct", 8 * 8 / 7),
}
ATTRIBUTION_HOURS = 7  # on one GPU, the paper's (C.4)
# Problems x samples and greedy once (4.1), at the 10,000 tokens that its answers mostly take.
RESPONSES = 7 * (500 + 198 + 272 + 675) + 33 * (40 + 30)
TOKENS = 10_000
TWICE_FULL = "stages=[{mode: full, epochs: 7, lr: 1.5e-5}, {mode: full, epochs: 4, lr: 8e-6}]"
SELECTIONS = {  # name -> keys of `segrl select`
    "ours": ("measure=ig",),
    "high strength": (
        "measure=ig",
        "selection.beta=1",
    ),
    "random": ("measure=random", "selection=third"),
    "abs IG tokens": ("measure=abs_ig_tokens", "selection=matched"),
    "IG tokens": ("measure=ig_tokens", "selection=matched"),
    "first correct": ("measure=first_correct", "selection=positive"),
    "confidence gain": ("measure=confidence_gain", "selection=positive"),
    "perplexity": ("measure=perplexity", "selection=matched"),
    "entropy": ("measure=entropy", "selection=matched"),
    "new keywords": (
        "measure=ig",
        "segmenter=retro_search",
    ),
    # Pruning leaves about 70% of the tokens (4.5).
    "ours 0.7": (
        "measure=ig",
        "selection.match_tokens=0.7",
    ),
    "perplexity 0.7": ("measure=perplexity", "selection.match_tokens=0.7"),
    "entropy 0.7": ("measure=entropy", "selection.match_tokens=0.7"),
    **{f"beta {beta}": ("measure=ig", f"selection.beta={beta}") for beta in (0.7, 0.9)},
    **{f"tau {tau}": ("measure=ig", f"selection.tau={tau}") for tau in (0.6, 0.8, 0.9)},
}


class Cell(NamedTuple):
    """A model as it is (mode ``base``), or trained in a mode of `segrl sft` on a selection."""

    model: str
    mode: str = "selective"
    selection: str | None = None

    def __str__(self) -> str:
        return " ".join(filter(None, self))


def selected(*names: str, mode: str = "selective") -> list[Cell]:
    return [Cell("1.5b", mode, name) for name in names]


def compared(model: str) -> list[Cell]:
    return [Cell(model, "base"), Cell(model, "full"), Cell(model, "selective", "ours")]


FULL = Cell("1.5b", "full")
RIVALS = ("first correct", "confidence gain", "perplexity", "entropy")
TABLES = {
    "table1": compared("1.5b") + compared("7b") + compared("qwen2.5"),
    "table2": [
        FULL,
        *selected("ours 0.7", mode="pruned"),
        *selected("random", "abs IG tokens", "IG tokens", "high strength", "ours"),
    ],
    "table3": [FULL, *selected(*RIVALS, "ours")],
    "table4": [FULL, *selected(*RIVALS[:2], "perplexity 0.7", "entropy 0.7", "ours 0.7", mode="pruned")],
    "table7": [*compared("1.5b"), *selected("new keywords")],
    "table8": compared("llama3.1"),
    "figure2": [],  # the analysis
    "figure3": [],
    "figure4": [],
    "figure5": selected("beta 0.7", "ours", "beta 0.9", "tau 0.6", "tau 0.8", "tau 0.9"),
}


class Step(NamedTuple):
    """A command of segrl, and the file that is there once it has ended well."""

    arguments: tuple[str, ...]
    done: Path


# --- what is to run --------------------------------------------------------------------------------------------------


def steps_of(names: list[str], out: Path, traces: str, toy: bool = False, more: tuple[str, ...] = ()) -> list[Step]:
    """Every step once, in an order in which each finds what it reads."""
    cells = dict.fromkeys(cell for name in names for cell in TABLES[name])
    figures = any(not TABLES[name] for name in names)
    steps: list[Step] = []
    if figures or any(cell.model == "qwen2.5" and cell.mode != "base" for cell in cells):
        steps += harvesting(out, traces, toy)
    if figures:
        steps.append(analysis(out, toy))
    for cell in cells:
        steps += steps_of_cell(cell, out, traces, toy, more)
    return list(dict.fromkeys(steps))


def harvesting(out: Path, traces: str, toy: bool) -> list[Step]:
    """32 candidates a problem; the shortest right and wrong one are looked at, the shortest right one is trained on."""
    sampled, right = out / "harvest", out / "harvest-right"
    options = ("generation.n=8", "generation.max_tokens=384") if toy else ("preset=paper", "keep=both", "backend=vllm")
    model = () if toy else (f"model_path={ATTRIBUTOR}",)
    sample = ("harvest", *options, *model, f"data_path={traces}", f"out={sampled}")
    pick = ("harvest", f"traces={sampled / 'candidates'}", "keep=correct", f"out={right}")
    return [Step(sample, sampled / "traces.parquet"), Step(pick, right / "traces.parquet")]


def analysis(out: Path, toy: bool) -> Step:
    """The analysis that figures 2, 3 and 4 share."""
    options = () if toy else ("preset=paper", "limit=null", f"attributor_path={ATTRIBUTOR}", f"judge_path={JUDGE}")
    place = out / "analysis"
    arguments = ("analyze", *options, f"traces={out / 'harvest' / 'traces.parquet'}", f"out={place}")
    return Step(arguments, place / "analysis.json")


def steps_of_cell(cell: Cell, out: Path, traces: str, toy: bool, more: tuple[str, ...]) -> list[Step]:
    place, (preset, model, _) = place_of(cell, out), MODELS[cell.model]
    harvested = cell.model == "qwen2.5"  # learns from what the attributor answered
    given = str(out / "harvest-right" / "traces.parquet") if harvested else traces
    steps, trained = [], ("null" if toy else model) if cell.mode == "base" else str(place / "model")
    if cell.selection:
        steps += selecting(cell.selection, out, given, "harvested" if harvested else "given", toy)
    if cell.mode != "base":
        arguments = ["sft", f"preset={'toy_cpu' if toy else preset}", f"traces={given}", f"out={place}"]
        if cell.selection:
            arguments.append(f"selections={steps[-1].done}")
        if cell.mode != "selective":
            two_stages = cell.model in ("qwen2.5", "llama3.1") and not toy
            arguments.append(TWICE_FULL if two_stages else f"mode={cell.mode}")
        steps.append(Step(tuple(arguments), place / "model" / "config.json"))
    protocol = "toy_cpu" if toy else "paper"
    scores = ("evaluate", f"preset={protocol}", f"model_path={trained}", f"out={place / 'scores'}", *more)
    return [*steps, Step(scores, place / "scores" / "results.md")]


def selecting(selection: str, out: Path, traces: str, name: str, toy: bool) -> list[Step]:
    keys, place = SELECTIONS[selection], out / "selections" / name / f"{selection.replace(' ', '_')}.parquet"
    attributor = () if toy else (f"attributor_path={ATTRIBUTOR}", "dtype=bfloat16")
    steps, scored = [], ()
    if keys[0] in ("measure=ig", "measure=abs_ig_tokens", "measure=ig_tokens"):
        folder = out / "attributions" / name
        steps = [
            Step(
                ("attribute", "attribution=paper", *attributor, f"traces={traces}", f"out={folder}"),
                folder.with_suffix(".done"),
            )
        ]
        scored = (f"attributions={folder}",)
    select = ("select", "attribution=paper", *attributor, *keys, *scored, f"traces={traces}", f"out={place}")
    return [*steps, Step(select, place)]


def place_of(cell: Cell, out: Path) -> Path:
    return out / "cells" / str(cell).replace(" ", "_")


# --- what it costs, and what came out --------------------------------------------------------------------------------


def plan(names: list[str], steps: list[Step], toy: bool = False) -> str:
    """The cells of each table, the commands that are not done, and, unless ``toy``, their cost on the paper's GPUs."""
    cells = {name: ", ".join(map(str, TABLES[name])) or "one analysis of harvested traces" for name in names}
    ahead = [step for step in steps if not step.done.exists()]
    counts = {command: sum(step.arguments[0] == command for step in ahead) for command in ("sft", "attribute")}
    by_preset = {f"preset={preset}": hours for preset, _, hours in MODELS.values()}
    trained = sum(by_preset.get(step.arguments[1], 0.0) for step in ahead if step.arguments[0] == "sft")
    scored = sum(step.arguments[0] == "evaluate" for step in ahead)
    lines = [f"{name}: {said}" for name, said in cells.items()]
    lines.append(f"{len(ahead)} of {len(steps)} commands are ahead: {counts['sft']} trainings, {scored} evaluations")
    if toy:
        return "\n".join(lines)
    lines.append(
        f"about {trained + ATTRIBUTION_HOURS * counts['attribute']:.0f} GPU hours of training and attribution, as the "
        f"paper's took; {scored * RESPONSES:,} responses, {scored * RESPONSES * TOKENS / 1e9:.1f} billion tokens"
    )
    return "\n".join(lines)


def table(name: str, out: Path) -> str:
    """The paper's columns: accuracy and length, greedy and sampled."""
    lines = [f"## {name}", "", "| | greedy | length | pass@1 | length |", "|---|---|---|---|---|"]
    for cell in TABLES[name]:
        numbers = [number for suffix in (GREEDY, "") for number in scores_of(place_of(cell, out) / "scores", suffix)]
        lines.append(f"| {cell} | {' | '.join(numbers)} |")
    return "\n".join(lines)


def scores_of(folder: Path, suffix: str) -> tuple[str, str]:
    files = [folder / f"results_{name}{suffix}.json" for name in ("average", "problems")]
    file = next((file for file in files if file.exists()), None)
    if file is None:
        return "", ""
    result = json.loads(file.read_text())
    return f"{100 * result['pass@1']['mean']:.1f}", f"{result['tokens']['all']:.0f}"


def run(step: Step) -> None:
    """Run the command unless it is done; a failure ends the script."""
    if step.done.exists():
        return
    print(f"segrl {shlex.join(step.arguments)}", flush=True)
    code = subprocess.run([sys.executable, "-m", "segrl", *step.arguments]).returncode
    if code:
        raise SystemExit(code)
    if step.arguments[0] == "attribute":  # a folder of shards, which does not say that it is whole
        step.done.touch()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("traces")
    parser.add_argument("names", nargs="+", help=f"of {', '.join(TABLES)}; key=value go to segrl evaluate")
    parser.add_argument("--plan", action="store_true", help="print the cells and their cost alone")
    parser.add_argument("--toy", action="store_true", help="the bundled model on a CPU")
    arguments = parser.parse_args()
    names = [name for name in arguments.names if "=" not in name]
    if unknown := [name for name in names if name not in TABLES]:
        parser.error(f"there is no {unknown[0]!r}; there are {', '.join(TABLES)}")
    more = tuple(name for name in arguments.names if "=" in name)
    steps = steps_of(names, arguments.out, arguments.traces, arguments.toy, more)
    print(plan(names, steps, arguments.toy), flush=True)
    if arguments.plan:
        return
    for step in steps:
        run(step)
    for name in filter(TABLES.get, names):
        print(table(name, arguments.out), flush=True)


if __name__ == "__main__":
    main()

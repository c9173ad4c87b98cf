"""Run the arms of a comparison of GRPO runs (``run OUT SPEC [--size short]``), and say how they differ (``compare OUT
SPEC``).

A cell is one arm with one seed, in ``OUT/<arm>/seed-<seed>``; a cell that has ended well is not run again. Differences
to the reference are paired by seed and problem, bootstrapped over both, with Holm's correction over the arms and the
minimal detectable difference beside each. What is left out: any tuning of an arm, and any look at another endpoint.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from omegaconf import OmegaConf

DRAWS = 10_000
DETECTED = 1.96 + 0.84  # standard errors: 5% two-sided, power 80%
LOGGED = ("actor/ppo_kl", "actor/grad_norm", "critic/score/mean")


@dataclass(frozen=True)
class Difference:
    """Of an arm to the reference, in the endpoint."""

    arm: str
    seeds: int
    mean: float
    low: float
    high: float
    p: float
    detectable: float


# --- running ---------------------------------------------------------------------------------------------------------


def run(out: Path, spec: Mapping[str, Any], size: str) -> None:
    """Every cell that is missing, seed by seed, so that an interrupted grid is balanced."""
    if size not in spec["sizes"]:
        raise ValueError(f"STEPS={size}, expected one of {', '.join(spec['sizes'])}")
    grid = spec["sizes"][size]
    for seed in grid["seeds"]:
        for arm in grid["arms"] or spec["arms"]:
            cell = out / arm / f"seed-{seed}"
            if (cell / "done").exists():
                continue
            cell.mkdir(parents=True, exist_ok=True)
            run_cell(cell, [*spec["common"], *grid.get("overrides", []), *spec["arms"][arm]], seed, grid["steps"])


def run_cell(cell: Path, overrides: Sequence[str], seed: int, steps: int) -> None:
    settings = {
        "out": cell,
        "trainer.total_training_steps": steps,
        "trainer.test_freq": steps,
        "trainer.save_freq": -1,
        "trainer.resume_mode": "disable",
        "trainer.logger": "[console,file]",
        "trainer.validation_data_dir": cell / "validation",
        "data.seed": seed,
        "actor_rollout_ref.rollout.seed": seed,
        "actor_rollout_ref.actor.data_loader_seed": seed,
    }
    command = [
        sys.executable,
        "-m",
        "segrl",
        "grpo",
        *overrides,
        *(f"{key}={value}" for key, value in settings.items()),
    ]
    print(f"{cell}: {steps} steps", flush=True)
    with (cell / "log").open("w") as log:
        env = os.environ | {"VERL_FILE_LOGGER_PATH": str(cell.absolute() / "metrics.jsonl")}
        done = subprocess.run(command, env=env, stdout=log, stderr=subprocess.STDOUT)
    if done.returncode:
        tail = "\n".join((cell / "log").read_text(errors="replace").splitlines()[-5:])
        raise SystemExit(f"{cell} ended with exit code {done.returncode}; the end of its log:\n{tail}")
    (cell / "done").write_text(f"{steps}\n")


# --- comparing -------------------------------------------------------------------------------------------------------


def compare(out: Path, spec: Mapping[str, Any]) -> None:
    """``comparison.md`` and ``curves.png`` from whatever cells are done."""
    cells = {arm: finished(out / arm) for arm in spec["arms"]}
    cells = {arm: found for arm, found in cells.items() if found}
    if spec["reference"] not in cells:
        raise SystemExit(f"{out} has no finished cell of {spec['reference']}, which the others are compared with")
    outcomes = {arm: {seed: problems(cell) for seed, cell in found.items()} for arm, found in cells.items()}
    reference = outcomes[spec["reference"]]
    found = [difference(arm, outcomes[arm], reference) for arm in cells if arm != spec["reference"]]
    logs = {arm: [metrics(cell) for cell in one.values()] for arm, one in cells.items()}
    page = report(spec, found, outcomes, logs)
    (out / "comparison.md").write_text(page)
    draw(logs, out / "curves.png")
    print(page, end="")


def finished(folder: Path) -> dict[int, Path]:
    return {int(done.parent.name.rpartition("-")[2]): done.parent for done in sorted(folder.glob("seed-*/done"))}


def problems(cell: Path) -> dict[str, float]:
    """Problem -> the share of its samples that are right, at the last validation."""
    last = max((cell / "validation").glob("*.jsonl"), key=lambda path: int(path.stem))
    samples = defaultdict(list)
    for row in map(json.loads, last.read_text().splitlines()):
        samples[row["input"]].append(float(row["acc"]))
    return {problem: fmean(found) for problem, found in samples.items()}


def metrics(cell: Path) -> list[dict[str, float]]:
    return [json.loads(line)["data"] for line in (cell / "metrics.jsonl").read_text().splitlines()]


def difference(
    arm: str, ours: Mapping[int, Mapping[str, float]], theirs: Mapping[int, Mapping[str, float]]
) -> Difference:
    """Paired by seed and problem; seeds and problems are both drawn anew. One seed says nothing about other seeds."""
    seeds = sorted(set(ours) & set(theirs))
    names = sorted(set.intersection(*(set(one[seed]) for one in (ours, theirs) for seed in seeds))) if seeds else []
    if not names:
        raise SystemExit(f"{arm} shares no seed, or no problem, with the reference")
    table = np.array([[ours[seed][name] - theirs[seed][name] for name in names] for seed in seeds])
    drawn = bootstrap(table, np.random.default_rng(0))
    low, high = np.quantile(drawn, [0.025, 0.975])
    p = min(1.0, 2 * (1 + min((drawn <= 0).sum(), (drawn >= 0).sum())) / (1 + len(drawn)))
    return Difference(arm, len(seeds), table.mean(), low, high, p, DETECTED * drawn.std())


def bootstrap(table: np.ndarray, generator: np.random.Generator, draws: int = DRAWS) -> np.ndarray:
    """Means of tables whose rows and columns are drawn with replacement."""
    rows, columns = table.shape
    row_weights = generator.multinomial(rows, np.full(rows, 1 / rows), draws) / rows
    column_weights = generator.multinomial(columns, np.full(columns, 1 / columns), draws) / columns
    return np.einsum("dr,rc,dc->d", row_weights, table, column_weights, optimize=True)


def holm(ps: Sequence[float]) -> list[float]:
    """Adjusted p-values, in the order given."""
    order = sorted(range(len(ps)), key=lambda i: ps[i])
    adjusted, running = [0.0] * len(ps), 0.0
    for place, i in enumerate(order):
        running = max(running, min(1.0, (len(ps) - place) * ps[i]))
        adjusted[i] = running
    return adjusted


def report(spec, found: Sequence[Difference], outcomes, logs) -> str:
    adjusted = dict(zip([one.arm for one in found], holm([one.p for one in found]), strict=True))
    by_arm = {one.arm: one for one in found}
    lines = [
        f"# {spec['endpoint']}, difference to {spec['reference']}",
        "",
        verdict(spec, by_arm.get(spec["positive_control"])),
    ]
    columns = [
        "arm",
        "seeds",
        "endpoint",
        "difference (95%)",
        "p",
        "p, Holm",
        "detectable",
        "KL a step",
        "gradient norm",
    ]
    lines += ["", "| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for arm, cells in outcomes.items():
        endpoint = np.mean([np.mean(list(cell.values())) for cell in cells.values()])
        row = [arm, str(len(cells)), f"{100 * endpoint:.1f}%"]
        if (one := by_arm.get(arm)) is None:
            row += ["–"] * 4
        else:
            interval = f"{100 * one.mean:+.1f} ({100 * one.low:+.1f} to {100 * one.high:+.1f})"
            row += [interval, f"{one.p:.3f}", f"{adjusted[arm]:.3f}", f"{100 * one.detectable:.1f}"]
        row += [f"{average(logs[arm], name):.2g}" for name in ("actor/ppo_kl", "actor/grad_norm")]
        lines.append("| " + " | ".join(row) + " |")
    lines += [
        "",
        "Differences in points. Paired by seed and problem, bootstrapped over both; `detectable` is found with 80%",
    ]
    lines += ["power at 5%. With one seed the interval is over problems alone and says nothing about other seeds."]
    return "\n".join(lines) + "\n"


def verdict(spec, control: Difference | None) -> str:
    name, reference = spec["positive_control"], spec["reference"]
    if control is None:
        return f"**{name} has not run: nothing says whether this world can rank measures.**"
    if control.seeds == 1:
        return f"**One seed: another may rank {name} and {reference} the other way round.**"
    if control.low > 0:
        return f"{name} beats {reference}: this world can rank measures."
    return f"**{name} and {reference} do not differ: this world cannot rank measures, and a null says nothing.**"


def average(logs: Sequence[Sequence[Mapping[str, float]]], name: str) -> float:
    values = [step[name] for log in logs for step in log if name in step]
    return float(np.mean(values)) if values else float("nan")


def draw(logs: Mapping[str, Sequence], path: Path) -> None:
    """Learning curves: the training reward by step, mean over seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(LOGGED)), LOGGED, strict=True):
        for arm, cells in logs.items():
            steps = min(len(cell) for cell in cells)
            curve = [np.mean([cell[step].get(name, np.nan) for cell in cells]) for step in range(steps)]
            axes.plot(range(1, steps + 1), curve, label=arm, linewidth=1)
        axes.set(title=name, xlabel="step")
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=7)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("action", choices=("run", "compare"))
    parser.add_argument("out", type=Path)
    parser.add_argument("spec", type=Path)
    parser.add_argument("--size", default="full")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # whoever ends this ends the running cell too
    spec = OmegaConf.to_container(OmegaConf.load(given.spec))
    if given.action == "run":
        run(given.out, spec, given.size)
    else:
        compare(given.out, spec)


if __name__ == "__main__":
    main()

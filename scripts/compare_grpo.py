"""Run the arms of a comparison of GRPO runs, and say how they differ.

    python scripts/compare_grpo.py run OUT SPEC --size pilot    the cells of a size that are missing
    python scripts/compare_grpo.py power OUT SPEC               OUT/power.md: what all seeds can show, by the pilot's
    python scripts/compare_grpo.py compare OUT SPEC             OUT/comparison.md and OUT/curves.png

A cell is one arm with one seed, in ``OUT/<arm>/seed-<seed>``. A cell that has ended well is not run again, one that was
interrupted is begun anew. The same command may run several times at once, on a core each: a cell belongs to the process
that holds its lock, and a lock ends with its process. Beside the cells lie ``OUT/problems``, the same rows for all, and
``OUT/base``, the validation of the model that all begin with.

The endpoint is taken at equal rollout tokens: of a cell it is known at no tokens (the base), at the validations of its
run, and in between by a line for each problem; two cells of a seed are compared where the shorter one ended. Left out:
any tuning of an arm, and any look at another endpoint.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import IO, Any, NamedTuple

import numpy as np
from omegaconf import OmegaConf

from segrl import toy
from segrl.commands.generating import HELD_OUT
from segrl.data import shards, write_verl_parquet
from segrl.data.files import write_text
from segrl.evaluation.crossed import Crossed, crossed, pooled, sd_range
from segrl.evaluation.results import markdown
from segrl.types import Trace

BASE = "base"
LOGGED = ("critic/score/mean", "response_length/mean", "actor/grad_norm")
METHOD = """\
Differences in points, two cells of a seed at the tokens of the one that sampled fewer; intervals of 95% by Student's t
over seeds and problems, which are crossed. `found`: the true difference that so many seeds find in 80% of repetitions
at 5%, before Holm's correction."""
PILOT = """\
Written before the rest ran; the differences themselves are not looked at. Standard deviations in points, of the
difference of two arms, paired by seed and problem. `by chance` is what samples and problems alone make of seeds that
are all alike. `found`: the true difference that {seeds} seeds find in 80% of repetitions, two-sided at 5%, by
Student's t over seeds and problems, before Holm's correction."""
PAUSE = 20  # seconds between two looks at the cells that other processes hold


@dataclass(frozen=True)
class Cell:
    """A run, its folder, and the overrides of ``segrl grpo`` that make it what it is."""

    folder: Path
    overrides: tuple[str, ...]

    @property
    def done(self) -> bool:
        """Whether it has ended well; what ended well in its folder must be this cell and no other."""
        note = self.folder / "done"
        if not note.exists():
            return False
        there = note.read_text().split("\n")[:-1]
        if there != [*self.overrides]:
            gone, new = ({*one} - {*other} for one, other in ((there, self.overrides), (self.overrides, there)))
            raise SystemExit(
                f"{self.folder} holds another cell: it has {sorted(gone)}, this one {sorted(new)}; choose another OUT"
            )
        return True


# --- running ---------------------------------------------------------------------------------------------------------


def run(out: Path, spec: Mapping[str, Any], size: str, seeds: Sequence[int] | None = None) -> None:
    """Every cell that is missing, seed by seed, so that an interrupted grid is balanced. One that fails is left for the
    next call."""
    grid = size_of(spec, size)
    if (needed := grid.get("after")) and not (out / needed).exists():
        raise SystemExit(f"the size {size} runs once {out / needed} is written: compare_grpo.py power OUT SPEC")
    write_problems(out, spec["problems"])
    failed: list[Cell] = []
    cells = [base_of(out, spec, grid), *cells_of(out, spec, size, seeds)]
    while left := [cell for cell in cells if not cell.done and cell not in failed]:
        for cell in left:
            with held(cell) as lock:
                if lock and not cell.done:
                    failed += [cell] if run_cell(cell, out, lock) else []
                    break
        else:
            time.sleep(PAUSE)  # the others are at all that is left
    if failed:
        raise SystemExit(f"failed: {', '.join(str(cell.folder) for cell in failed)}; the same command tries them again")


def size_of(spec: Mapping[str, Any], size: str) -> Mapping[str, Any]:
    if size not in spec["sizes"]:
        raise SystemExit(f"there is no size {size!r}; expected one of {', '.join(spec['sizes'])}")
    return spec["sizes"][size]


def cells_of(out: Path, spec: Mapping[str, Any], size: str, seeds: Sequence[int] | None = None) -> list[Cell]:
    """The cells of a size, of these seeds alone where some are given."""
    grid = size_of(spec, size)
    common = [*spec["common"], *grid.get("overrides", []), f"trainer.total_training_steps={grid['steps']}"]
    common += [f"trainer.test_freq={grid['validate_every']}", "trainer.val_before_train=false"]
    return [
        Cell(out / arm / f"seed-{seed}", (*common, *spec["arms"][arm], *seeded(seed)))
        for seed in grid["seeds"]
        if seeds is None or seed in seeds
        for arm in grid["arms"]
    ]


def base_of(out: Path, spec: Mapping[str, Any], grid: Mapping[str, Any]) -> Cell:
    """The validation of the model that all cells begin with."""
    alone = ["trainer.val_before_train=true", "trainer.val_only=true", "segrl.rule=uniform"]
    return Cell(out / BASE / "seed-0", (*spec["common"], *grid.get("overrides", []), *alone, *seeded(0)))


def seeded(seed: int) -> list[str]:
    keys = ("data.seed", "actor_rollout_ref.rollout.seed", "actor_rollout_ref.actor.data_loader_seed")
    return [f"{key}={seed}" for key in keys]


def write_problems(out: Path, wanted: Mapping[str, Any]) -> None:
    """Problems to learn from, and others of the same lengths to be evaluated on; the same for every cell."""
    for name, (was, now) in shards.claim(out / "problems" / "settings.json", wanted).items():
        raise SystemExit(f"{out} has problems of another kind: {name} was {was!r}, now {now!r}; choose another OUT")
    held_out = sampled(wanted["held_out"], HELD_OUT, wanted)
    train = sampled(wanted["train"], 0, wanted, without={problem.problem for problem in held_out})
    for split, problems in (("train", train), ("held_out", held_out)):
        if not (file := rows_of(out, split)).exists():
            write_verl_parquet(problems, file, "toy", split)


def sampled(count: int, seed: int, wanted: Mapping[str, Any], without: Collection[str] = ()) -> list[Trace]:
    """The first toy problems of the seed that ask what is wanted, in as many steps, and are not among ``without``."""
    least, most = wanted["steps"]
    drawn = count
    while True:
        problems = [
            problem
            for problem in toy.sample_problems(drawn, seed, wanted["ask"])
            if least <= problem.meta["n_steps"] <= most and problem.problem not in without
        ]
        if len(problems) >= count:
            return problems[:count]
        drawn *= 2


def rows_of(out: Path, split: str) -> Path:
    return out / "problems" / f"{split}.parquet"


@contextmanager
def held(cell: Cell) -> Iterator[IO | None]:
    """The cell's lock, or None where another process has it. It is also the run's, which may outlive this process."""
    cell.folder.parent.mkdir(parents=True, exist_ok=True)
    with cell.folder.with_suffix(".lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            yield lock


def run_cell(cell: Cell, out: Path, lock: IO) -> int:
    """Run the cell from its beginning; its exit code."""
    shutil.rmtree(cell.folder, ignore_errors=True)
    cell.folder.mkdir(parents=True)
    print(f"{time.strftime('%H:%M')} {cell.folder}", flush=True)
    # A Ray of its own; its sockets lie here, and their paths may have 107 characters.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as ray:
        code = logged([*command(out, cell), f"+ray_kwargs.ray_init._temp_dir={ray}"], cell.folder, lock)
    if code:
        tail = (cell.folder / "log").read_text(errors="replace").splitlines()[-5:]
        print(f"{cell.folder} ended with exit code {code}; the end of its log:", *tail, sep="\n", flush=True)
    else:
        write_text(cell.folder / "done", "".join(f"{one}\n" for one in cell.overrides))
    return code


def command(out: Path, cell: Cell) -> list[str]:
    settings = {
        "out": cell.folder,
        "data_path": rows_of(out, "train"),
        "val_path": rows_of(out, "held_out"),
        "trainer.save_freq": -1,
        "trainer.resume_mode": "disable",
        "trainer.logger": "[console,file]",
        "trainer.validation_data_dir": cell.folder / "validation",
    }
    entry = [sys.executable, "-m", "segrl", "grpo"]
    return [*entry, *cell.overrides, *(f"{key}={value}" for key, value in settings.items())]


def logged(command: Sequence[str], folder: Path, lock: IO) -> int:
    """Run the command with its output in the folder's log; its exit code."""
    env = os.environ | {"VERL_FILE_LOGGER_PATH": str((folder / "metrics.jsonl").absolute())}
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT, pass_fds=[lock.fileno()]) as process,
    ):
        try:
            process.wait()
        except KeyboardInterrupt:
            process.terminate()
            process.wait()  # nothing may still write where the next start begins
            raise
    return process.returncode


# --- what a cell came to ---------------------------------------------------------------------------------------------


class Course(NamedTuple):
    """The share of a problem's samples that are right, after so many rollout tokens."""

    tokens: Sequence[float]  # rising from 0, the base's
    right: Mapping[str, Sequence[float]]  # problem -> at each of them

    def at(self, tokens: float) -> dict[str, float]:
        """Each problem's share, on the line between the two validations around."""
        return {problem: float(np.interp(tokens, self.tokens, shares)) for problem, shares in self.right.items()}

    @property
    def end(self) -> dict[str, float]:
        return self.at(self.tokens[-1])


def courses(out: Path, arm: str) -> dict[int, Course]:
    """Of the arm's finished cells, by seed."""
    [(_, base)] = validations(out / BASE / "seed-0")
    return {seed: course(folder, base) for seed, folder in finished(out / arm).items()}


def course(folder: Path, base: Mapping[str, float]) -> Course:
    tokens, known = rollout_tokens(metrics(folder)), validations(folder)
    shares = [base, *(right for _, right in known)]
    if any(one.keys() != base.keys() for one in shares):
        raise SystemExit(f"{folder} was validated on other problems than the base")
    return Course([0.0, *(tokens[step] for step, _ in known)], {name: [one[name] for one in shares] for name in base})


def validations(folder: Path) -> list[tuple[int, dict[str, float]]]:
    """Step, and problem -> the share of its samples that are right, of every validation in order."""
    files = sorted((int(file.stem), file) for file in (folder / "validation").glob("*.jsonl"))
    found = []
    for step, file in files:
        samples = defaultdict(list)
        for row in map(json.loads, file.read_text().splitlines()):
            samples[row["input"]].append(float(row["acc"]))
        found.append((step, {problem: fmean(right) for problem, right in samples.items()}))
    return found


def rollout_tokens(logs: Mapping[int, Mapping[str, float]]) -> dict[int, float]:
    """Step -> all tokens sampled until then; verl logs those of prompt and response together, and both mean lengths."""
    total, found = 0.0, {}
    for step, log in sorted(logs.items()):
        response, prompt = log["response_length/mean"], log["prompt_length/mean"]
        total += log["perf/total_num_tokens"] * response / (response + prompt)
        found[step] = total
    return found


def metrics(folder: Path) -> dict[int, dict[str, float]]:
    """Step -> what verl logged of it."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["data"] for line in lines}


def finished(folder: Path) -> dict[int, Path]:
    """Seed -> folder of the cells that have ended well."""
    return {int(done.parent.name.rpartition("-")[2]): done.parent for done in sorted(folder.glob("seed-*/done"))}


# --- comparing -------------------------------------------------------------------------------------------------------


def difference(ours: Mapping[int, Course], theirs: Mapping[int, Course]) -> np.ndarray | None:
    """Ours less theirs at equal tokens, a row for each seed that both have, a column for each problem."""
    rows = []
    for seed in sorted(ours.keys() & theirs.keys()):
        tokens = min(ours[seed].tokens[-1], theirs[seed].tokens[-1])
        mine, other = ours[seed].at(tokens), theirs[seed].at(tokens)
        rows.append([mine[name] - other[name] for name in sorted(mine)])
    return np.array(rows) if rows else None


def tables(found: Mapping[str, Mapping[int, Course]], pairs: Sequence[Sequence[str]]) -> dict[str, np.ndarray]:
    """The differences of those pairs of arms that share a seed, under the name ``one - other``."""
    named = {f"{one} - {other}": difference(found.get(one, {}), found.get(other, {})) for one, other in pairs}
    return {name: table for name, table in named.items() if table is not None}


def holm(ps: Sequence[float]) -> list[float]:
    """Adjusted p-values, in the order given."""
    order = sorted(range(len(ps)), key=lambda i: ps[i])
    adjusted, running = [0.0] * len(ps), 0.0
    for place, i in enumerate(order):
        running = max(running, min(1.0, (len(ps) - place) * ps[i]))
        adjusted[i] = running
    return adjusted


def compare(out: Path, spec: Mapping[str, Any]) -> None:
    """``comparison.md`` and ``curves.png`` from whatever cells are done."""
    if not finished(out / BASE):
        raise SystemExit(f"{out} has no validation of the base, which every run makes first")
    found = {arm: one for arm in spec["arms"] if (one := courses(out, arm))}
    if spec["reference"] not in found:
        raise SystemExit(f"{out} has no finished cell of {spec['reference']}, which the others are compared with")
    logs = {arm: [metrics(folder) for folder in finished(out / arm).values()] for arm in found}
    page = report(spec, found, logs)
    write_text(out / "comparison.md", page)
    draw(logs, out / "curves.png")
    print(page, end="")


def report(spec: Mapping[str, Any], found: Mapping[str, Mapping[int, Course]], logs: Mapping[str, Sequence]) -> str:
    reference = spec["reference"]
    main = {name: crossed(table) for name, table in tables(found, spec["comparisons"]).items()}
    compared = {arm for pair in spec["comparisons"] for arm in pair}
    others = [(arm, reference) for arm in found if arm not in compared]
    explored = {name: crossed(table) for name, table in tables(found, others).items()}
    parts = [
        f"# {spec['endpoint']}",
        "\n".join(seen(main | explored, control, reference) for control in spec["controls"]),
        METHOD,
        main_table(main),
    ]
    if explored:
        parts += [
            "Exploratory. Of one seed the interval is over problems alone: another seed may turn the order round.",
            markdown("arms", ["seeds", "difference"], {name: short(one) for name, one in explored.items()}),
        ]
    return "\n\n".join([*parts, arms_table(found, logs)]) + "\n"


def main_table(main: Mapping[str, Crossed]) -> str:
    several = {name: one for name, one in main.items() if one.seeds > 1}
    adjusted = dict(zip(several, holm([one.p for one in several.values()]), strict=True))
    lines = {}
    for name, one in main.items():
        more = {"p": "", "p, Holm": "", "found": ""}
        if name in several:
            more = {"p": f"{one.p:.3f}", "p, Holm": f"{adjusted[name]:.3f}", "found": points(one.detectable)}
        lines[name] = short(one) | more
    return markdown("arms", ["seeds", "difference", "p", "p, Holm", "found"], lines)


def short(one: Crossed) -> dict[str, str]:
    low, high = one.interval
    return {"seeds": str(one.seeds), "difference": f"{100 * one.mean:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"}


def points(share: float) -> str:
    return f"{100 * share:.1f}"


def seen(found: Mapping[str, Crossed], control: str, reference: str) -> str:
    """Whether the grid tells a control from the reference."""
    one = found.get(f"{control} - {reference}")
    if one is None:
        return f"- **{control} has not run**, which could show that this grid sees a difference."
    said, (low, high) = f"{control} - {reference}: {short(one)['difference']}", one.interval
    if one.seeds == 1:
        return f"- {said}. **One seed: another may turn it round.**"
    if low > 0 or high < 0:
        return f"- {said}. This grid sees a difference of that size."
    return f"- **{said}. This grid does not tell them apart, so that it does not tell others apart says little.**"


def arms_table(found: Mapping[str, Mapping[int, Course]], logs: Mapping[str, Sequence]) -> str:
    columns = ["seeds", "rollout tokens, millions", "pass@1 at the end", "minus base", "gradient norm"]
    lines = {}
    for arm, one in found.items():
        gained = crossed(np.array([[shares[-1] - shares[0] for shares in c.right.values()] for c in one.values()]))
        lines[arm] = {
            "seeds": str(len(one)),
            "rollout tokens, millions": f"{fmean(c.tokens[-1] for c in one.values()) / 1e6:.3f}",
            "pass@1 at the end": f"{100 * fmean(fmean(c.end.values()) for c in one.values()):.1f}%",
            "minus base": short(gained)["difference"],
            "gradient norm": f"{average(logs[arm], 'actor/grad_norm'):.2g}",
        }
    return markdown("arm", columns, lines)


def average(logs: Sequence[Mapping[int, Mapping[str, float]]], name: str) -> float:
    values = [step[name] for log in logs for step in log.values() if name in step]
    return float(np.mean(values)) if values else float("nan")


def draw(logs: Mapping[str, Sequence[Mapping[int, Mapping[str, float]]]], path: Path) -> None:
    """What verl logs of each step, mean over seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(LOGGED)), LOGGED, strict=True):
        for arm, cells in logs.items():
            steps = sorted(set.intersection(*(set(cell) for cell in cells)))
            curve = [np.mean([cell[step].get(name, np.nan) for cell in cells]) for step in steps]
            axes.plot(steps, curve, label=arm, linewidth=1)
        axes.set(title=name, xlabel="step")
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=7)
    figure.savefig(path, dpi=150)


# --- what the pilot lets the rest show -------------------------------------------------------------------------------


def power(out: Path, spec: Mapping[str, Any]) -> None:
    """``power.md``, from the pilot's cells; what has been said before the rest ran is not said anew."""
    page = out / "power.md"
    if not page.exists():
        missing = [cell.folder for cell in cells_of(out, spec, "pilot") if not cell.done]
        if missing:
            raise SystemExit(f"the pilot is not done: {', '.join(map(str, missing))} are missing")
        found = {arm: courses(out, arm) for pair in spec["comparisons"] for arm in pair}
        pilot = {arm: {seed: one[seed] for seed in spec["sizes"]["pilot"]["seeds"]} for arm, one in found.items()}
        write_text(
            page, power_page(tables(pilot, spec["comparisons"]), len(spec["sizes"]["full"]["seeds"]), len(pilot))
        )
    print(page.read_text(), end="")


def power_page(differences: Mapping[str, np.ndarray], planned: int, arms: int) -> str:
    """What ``planned`` seeds can show, from the spread of the differences between all of so many arms; their means are
    kept back, so that nobody chooses by them.
    """
    found = {name: crossed(table) for name, table in differences.items()}
    together = pooled(list(found.values()))
    freedom = (together.seeds - 1) * (arms - 1)  # of all pairs, those with one arm are free
    sd, chance = together.of_seeds**0.5, (together.interaction / together.problems) ** 0.5
    low, high = sd_range(sd, freedom)

    def shown(sd: float) -> str:
        return f"{points(replace(together, of_seeds=sd**2).with_seeds(planned).detectable)} points"

    lines = {}
    for name, one in (*found.items(), ("together", together)):
        within = [differences[name]] if name in differences else list(differences.values())
        lines[name] = {
            "seeds": str(one.seeds),
            "between seeds": points(one.of_seeds**0.5),
            "of that, by chance": points((one.interaction / one.problems) ** 0.5),
            "over problems, within a seed": points(fmean(table.var(1, ddof=1).mean() for table in within) ** 0.5),
            "found": points(one.with_seeds(planned).detectable),
        }
    return "\n\n".join(
        [
            f"# What {planned} seeds can show",
            PILOT.format(seeds=planned),
            markdown("arms", list(lines["together"]), lines),
            f"**If seeds go on to vary as these {together.seeds} did, {planned} seeds find a true difference of "
            f"{shown(sd)} in 80% of repetitions; a smaller one may be there and not be seen.**",
            f"{together.seeds} seeds hardly say how seeds vary: {points(sd)} has {freedom} degrees of freedom, and an "
            f"interval of {points(low)} to {points(high)}. At the least that it and chance allow, {planned} seeds find "
            f"{shown(max(low, chance))}; at the most, {shown(high)}.\n",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("run", "power", "compare"))
    parser.add_argument("out", type=Path)
    parser.add_argument("spec", type=Path)
    parser.add_argument("--size", default="full")
    parser.add_argument("--seeds", help="some of the size's seeds, as 0,2,4")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # whoever ends this ends the running cell too
    spec = OmegaConf.to_container(OmegaConf.load(given.spec), resolve=True)
    if given.action == "run":
        run(given.out, spec, given.size, [int(seed) for seed in given.seeds.split(",")] if given.seeds else None)
    elif given.action == "power":
        power(given.out, spec)
    else:
        compare(given.out, spec)


if __name__ == "__main__":
    main()

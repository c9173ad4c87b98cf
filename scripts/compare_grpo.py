"""Run the arms of a comparison of GRPO runs, and say how they differ.

    python scripts/compare_grpo.py run OUT SPEC --size pilot    the cells of a size that are missing
    python scripts/compare_grpo.py power OUT SPEC               OUT/power.md, from the pilot: what all seeds can show
    python scripts/compare_grpo.py compare OUT SPEC             OUT/comparison.md, differences.png, curves.png

A cell is one arm with one seed, in ``OUT/<arm>/seed-<seed>``. A cell that has ended well is not run again; one that was
interrupted begins again. The same command may run several times at once, on a core each. Beside the cells lie
``OUT/problems``, the same rows for all, and ``OUT/base``, the validation of the model that all begin with. How cells
are run is in grpo_cells.py.

The endpoint is compared at equal rollout tokens. For a cell it is known at zero tokens (the base) and at the
validations of its run; in between it is interpolated, a line for each problem. Two cells of a seed are compared where
the shorter one ended. Left out: any tuning of an arm, and any look at another endpoint.
"""

from __future__ import annotations

import argparse
import json
import signal
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
from grpo_cells import BASE, cells_of, finished, run
from omegaconf import OmegaConf

from segrl.data.files import write_text
from segrl.evaluation.crossed import Crossed, crossed, pooled, sd_range
from segrl.evaluation.results import markdown

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


# --- what a cell came to ---------------------------------------------------------------------------------------------


class Course(NamedTuple):
    """The share of each problem's samples that are right, by the rollout tokens spent."""

    tokens: Sequence[float]  # rising from 0, the base's
    right: Mapping[str, Sequence[float]]  # problem -> its share at each of ``tokens``

    def at(self, tokens: float) -> dict[str, float]:
        """Each problem's share at ``tokens``, on the line between the two validations around."""
        return {problem: float(np.interp(tokens, self.tokens, shares)) for problem, shares in self.right.items()}

    @property
    def end(self) -> dict[str, float]:
        return self.at(self.tokens[-1])


def courses(out: Path, cells: Mapping[str, Mapping[int, Path]]) -> dict[str, dict[int, Course]]:
    """Arm -> seed -> the course of the cell in that folder."""
    if not (out / BASE / "seed-0" / "done").exists():
        raise SystemExit(f"{out} has no validation of the base, which every run makes first")
    [(_, base)] = validations(out / BASE / "seed-0")
    return {arm: {seed: course(folder, base) for seed, folder in seeds.items()} for arm, seeds in cells.items()}


def course(folder: Path, base: Mapping[str, float]) -> Course:
    tokens, known = rollout_tokens(metrics(folder)), validations(folder)
    shares = [base, *(right for _, right in known)]
    if any(by_problem.keys() != base.keys() for by_problem in shares):
        raise SystemExit(f"{folder} was validated on other problems than the base")
    right = {problem: [by_problem[problem] for by_problem in shares] for problem in base}
    return Course([0.0, *(tokens[step] for step, _ in known)], right)


def validations(folder: Path) -> list[tuple[int, dict[str, float]]]:
    """Step, and problem -> the share of its samples that are right, of every validation in order."""
    files = sorted((int(file.stem), file) for file in (folder / "validation").glob("*.jsonl"))
    shares = []
    for step, file in files:
        samples = defaultdict(list)
        for row in map(json.loads, file.read_text().splitlines()):
            samples[row["input"]].append(float(row["acc"]))
        shares.append((step, {problem: fmean(right) for problem, right in samples.items()}))
    return shares


def rollout_tokens(logs: Mapping[int, Mapping[str, float]]) -> dict[int, float]:
    """Step -> all tokens sampled until then. verl logs prompt and response tokens together, and both mean lengths."""
    total, until = 0.0, {}
    for step, log in sorted(logs.items()):
        response, prompt = log["response_length/mean"], log["prompt_length/mean"]
        total += log["perf/total_num_tokens"] * response / (response + prompt)
        until[step] = total
    return until


def metrics(folder: Path) -> dict[int, dict[str, float]]:
    """Step -> what verl logged of it."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["data"] for line in lines}


# --- comparing -------------------------------------------------------------------------------------------------------


def difference(first: Mapping[int, Course], second: Mapping[int, Course]) -> np.ndarray | None:
    """The first arm less the second at equal tokens, a row for each seed that both have, a column for each problem."""
    rows = []
    for seed in sorted(first.keys() & second.keys()):
        tokens = min(first[seed].tokens[-1], second[seed].tokens[-1])
        shares, others = first[seed].at(tokens), second[seed].at(tokens)
        rows.append([shares[problem] - others[problem] for problem in sorted(shares)])
    return np.array(rows) if rows else None


def tables(by_arm: Mapping[str, Mapping[int, Course]], pairs: Sequence[Sequence[str]]) -> dict[str, np.ndarray]:
    """The differences of those pairs of arms that share a seed, under the name ``first - second``."""
    named = {" - ".join(pair): difference(*(by_arm.get(arm, {}) for arm in pair)) for pair in pairs}
    return {name: table for name, table in named.items() if table is not None}


def differences(by_arm: Mapping[str, Mapping[int, Course]], pairs: Sequence[Sequence[str]]) -> dict[str, Crossed]:
    return {name: crossed(table) for name, table in tables(by_arm, pairs).items()}


def beyond_validations(by_arm: Mapping[str, Mapping[int, Course]], pairs: Sequence[Sequence[str]]) -> list[str]:
    """A sentence for each pair of cells of which one ended before the other was first validated."""
    said = []
    for pair in pairs:
        first, second = (by_arm.get(arm, {}) for arm in pair)
        for seed in sorted(first.keys() & second.keys()):
            short, long = sorted(pair, key=lambda arm: by_arm[arm][seed].tokens[-1])
            if by_arm[long][seed].tokens[1] > by_arm[short][seed].tokens[-1]:
                said.append(
                    f"- **{' - '.join(pair)}, seed {seed}: {long} was first validated after the tokens that {short} "
                    f"ended at**, and is read there on the line from the base. A curve that flattens lies "
                    f"above that line, so {long} may be better there than this page says."
                )
    return said


def holm(ps: Sequence[float], family: int) -> list[float]:
    """Holm's adjusted p-values, in the order given, for a family of ``family`` tests; tests without a p count as 1."""
    order = sorted(range(len(ps)), key=lambda i: ps[i])
    adjusted, running = [0.0] * len(ps), 0.0
    for place, i in enumerate(order):
        running = max(running, min(1.0, (family - place) * ps[i]))
        adjusted[i] = running
    return adjusted


def compare(out: Path, spec: Mapping[str, Any]) -> None:
    """Write ``comparison.md``, ``differences.png`` and ``curves.png`` from the cells that are done."""
    cells = finished(out, spec)
    by_arm = courses(out, cells)
    if spec["reference"] not in by_arm:
        raise SystemExit(f"{out} has no finished cell of {spec['reference']}, which the others are compared with")
    logs = {arm: [metrics(folder) for folder in seeds.values()] for arm, seeds in cells.items()}
    planned, explored = spec["comparisons"], others(spec, by_arm)
    main, more = differences(by_arm, planned), differences(by_arm, explored)
    page = report(spec, main, more, beyond_validations(by_arm, [*planned, *explored]), arms_table(by_arm, logs))
    write_text(out / "comparison.md", page)
    draw_differences(main, more, out / "differences.png")
    draw(logs, out / "curves.png")
    print(page, end="")


def others(spec: Mapping[str, Any], by_arm: Mapping[str, Mapping[int, Course]]) -> list[tuple[str, str]]:
    """The pairs that are explored: every arm that is in no comparison, with the reference."""
    compared = {arm for pair in spec["comparisons"] for arm in pair}
    return [(arm, spec["reference"]) for arm in by_arm if arm not in compared]


def report(
    spec: Mapping[str, Any],
    main: Mapping[str, Crossed],
    explored: Mapping[str, Crossed],
    said: Sequence[str],
    of_arms: str,
) -> str:
    """The page, from the differences, what is said of cells that are hard to compare, and the table of arms."""
    parts = [
        f"# {spec['endpoint']}",
        "\n".join(seen({**main, **explored}, control, spec["reference"]) for control in spec["controls"]),
        METHOD,
        *(["\n".join(said)] if said else []),
        main_table(main, len(spec["comparisons"])),
    ]
    if explored:
        parts += [
            "Exploratory. Of one seed the interval is over problems alone: another seed may turn the order round.",
            markdown("arms", ["seeds", "difference"], {name: short(compared) for name, compared in explored.items()}),
        ]
    return "\n\n".join([*parts, of_arms]) + "\n"


def main_table(main: Mapping[str, Crossed], family: int) -> str:
    several = {name: compared for name, compared in main.items() if compared.seeds > 1}
    adjusted = dict(zip(several, holm([compared.p for compared in several.values()], family), strict=True))
    lines = {}
    for name, compared in main.items():
        more = {"p": "", "p, Holm": "", "found": ""}
        if name in several:
            more = {"p": f"{compared.p:.3f}", "p, Holm": f"{adjusted[name]:.3f}", "found": points(compared.detectable)}
        lines[name] = short(compared) | more
    return markdown("arms", ["seeds", "difference", "p", "p, Holm", "found"], lines)


def short(compared: Crossed) -> dict[str, str]:
    mean, low, high = (f"{100 * share:+.1f}" for share in (compared.mean, *compared.interval))
    return {"seeds": str(compared.seeds), "difference": f"{mean} [{low}, {high}]"}


def points(share: float) -> str:
    return f"{100 * share:.1f}"


def seen(by_pair: Mapping[str, Crossed], control: str, reference: str) -> str:
    """A sentence on whether the grid tells a control from the reference."""
    compared = by_pair.get(f"{control} - {reference}")
    if compared is None:
        return f"- **{control} has not run**, which could show that this grid sees a difference."
    said, (low, high) = f"{control} - {reference}: {short(compared)['difference']}", compared.interval
    if compared.seeds == 1:
        return f"- {said}. **One seed: another may turn it round.**"
    if low > 0 or high < 0:
        return f"- {said}. This grid sees a difference of that size."
    return f"- **{said}. This grid does not tell them apart, so that it does not tell others apart says little.**"


def arms_table(by_arm: Mapping[str, Mapping[int, Course]], logs: Mapping[str, Sequence]) -> str:
    columns = ["seeds", "rollout tokens, millions", "pass@1 at the end", "minus base", "gradient norm"]
    lines = {}
    for arm, seeds in by_arm.items():
        cells = list(seeds.values())
        gained = crossed(np.array([[shares[-1] - shares[0] for shares in cell.right.values()] for cell in cells]))
        lines[arm] = {
            "seeds": str(len(cells)),
            "rollout tokens, millions": f"{fmean(cell.tokens[-1] for cell in cells) / 1e6:.3f}",
            "pass@1 at the end": f"{100 * fmean(fmean(cell.end.values()) for cell in cells):.1f}%",
            "minus base": short(gained)["difference"],
            "gradient norm": f"{average(logs[arm], 'actor/grad_norm'):.2g}",
        }
    return markdown("arm", columns, lines)


def average(logs: Sequence[Mapping[int, Mapping[str, float]]], name: str) -> float:
    values = [step[name] for log in logs for step in log.values() if name in step]
    return float(np.mean(values)) if values else float("nan")


def draw_differences(main: Mapping[str, Crossed], explored: Mapping[str, Crossed], path: Path) -> None:
    """Draw each difference in points with its interval: explored ones in grey, those of one seed hollow."""
    all_of_them = {**main, **explored}
    figure, [axes] = new_figure(7, 0.8 + 0.3 * len(all_of_them))
    for row, (name, compared) in enumerate(all_of_them.items()):
        (low, high), several, colour = compared.interval, compared.seeds > 1, "C0" if name in main else "grey"
        axes.plot([100 * low, 100 * high], [row, row], color=colour, linewidth=2 if several else 1)
        axes.plot(100 * compared.mean, row, "o", color=colour, markerfacecolor=colour if several else "white")
    names = [f"{name} ({compared.seeds} seed{'s' * (compared.seeds > 1)})" for name, compared in all_of_them.items()]
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(all_of_them) - 0.5, -0.5)
    axes.axvline(0, color="grey", linewidth=0.8)
    axes.set_xlabel("difference in points; intervals of 95%, each by itself")
    figure.savefig(path)


def draw(logs: Mapping[str, Sequence[Mapping[int, Mapping[str, float]]]], path: Path) -> None:
    """Draw what verl logs of each step, as the mean over seeds."""
    figure, panels = new_figure(9, 3, len(LOGGED))
    for axes, name in zip(panels, LOGGED, strict=True):
        for arm, cells in logs.items():
            steps = sorted(set.intersection(*(set(cell) for cell in cells)))
            curve = [np.mean([cell[step].get(name, np.nan) for cell in cells]) for step in steps]
            axes.plot(steps, curve, label=arm, linewidth=1)
        axes.set(title=name, xlabel="step")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=7)
    figure.savefig(path)


def new_figure(width: float, height: float, panels: int = 1) -> tuple[Any, Sequence[Any]]:
    """A figure and its panels, side by side, each without lines at the top and on the right."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    for panel in axes:
        panel.spines[["top", "right"]].set_visible(False)
    return figure, axes


# --- what the pilot lets the rest show -------------------------------------------------------------------------------


def power(out: Path, spec: Mapping[str, Any]) -> None:
    """Write ``power.md`` from the pilot's cells, once: a page from before the rest ran is not written again."""
    page = out / "power.md"
    if not page.exists():
        pilot = cells_of(out, spec, "pilot")
        if missing := [cell.folder for cell in pilot if not cell.done]:
            raise SystemExit(f"the pilot is not done: {', '.join(map(str, missing))} are missing")
        compared = {arm for pair in spec["comparisons"] for arm in pair}
        seeds = spec["sizes"]["pilot"]["seeds"]
        cells = {
            arm: {seed: done[seed] for seed in seeds} for arm, done in finished(out, spec).items() if arm in compared
        }
        differences = tables(courses(out, cells), spec["comparisons"])
        write_text(page, power_page(differences, len(spec["sizes"]["full"]["seeds"]), len(cells)))
    print(page.read_text(), end="")


def power_page(differences: Mapping[str, np.ndarray], planned: int, arms: int) -> str:
    """The page on what ``planned`` seeds can show, from the spread of the differences between ``arms`` arms. The means
    are left out, so that nobody chooses by them.
    """
    if least := [name for name, table in differences.items() if len(table) < 2]:
        raise SystemExit(f"the pilot has one seed of {least[0]}; two or more say how seeds vary: add to its seeds")
    differing = {name: crossed(table) for name, table in differences.items()}
    together = pooled(list(differing.values()))
    freedom = (together.seeds - 1) * (arms - 1)  # only the pairs with one given arm are independent
    sd, chance = together.of_seeds**0.5, (together.interaction / together.problems) ** 0.5
    low, high = sd_range(sd, freedom)

    def shown(sd: float) -> str:
        return f"{points(replace(together, of_seeds=sd**2).with_seeds(planned).detectable)} points"

    lines = {}
    for name, compared in (*differing.items(), ("together", together)):
        within = [differences[name]] if name in differences else list(differences.values())
        lines[name] = {
            "seeds": str(compared.seeds),
            "between seeds": points(compared.of_seeds**0.5),
            "of that, by chance": points((compared.interaction / compared.problems) ** 0.5),
            "over problems, within a seed": points(fmean(table.var(1, ddof=1).mean() for table in within) ** 0.5),
            "found": points(compared.with_seeds(planned).detectable),
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
    parser.add_argument("changes", nargs="*", help="keys of the specification to change, as best=grail")
    parser.add_argument("--size", default="full")
    parser.add_argument("--seeds", help="some of the size's seeds, as 0,2,4")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a SIGTERM ends the running cell too
    changed = OmegaConf.merge(OmegaConf.load(given.spec), OmegaConf.from_dotlist(given.changes))
    spec = OmegaConf.to_container(changed, resolve=True)
    if given.action == "run":
        run(given.out, spec, given.size, [int(seed) for seed in given.seeds.split(",")] if given.seeds else None)
    elif given.action == "power":
        power(given.out, spec)
    else:
        compare(given.out, spec)


if __name__ == "__main__":
    main()

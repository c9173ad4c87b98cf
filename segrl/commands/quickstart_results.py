"""What the quickstart came to: a table of its models, two pictures, and how to go on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segrl.commands.quickstart_stages import FINDS, SCORES

if TYPE_CHECKING:
    from segrl.evaluation.statistics import Estimate

REWARD = "critic/score/mean"
BENCHMARK = "problems"  # what `segrl evaluate` calls the rows of a file
NAMES = {"base": "as it is", "sft": "after SFT", "grpo": "after GRPO"}
GO_ON = """With a model and problems of your own:
  segrl explain model_path=MODEL problem="..." answer=...
  segrl sft model_path=MODEL traces=TRACES.jsonl out=runs/sft
  segrl grpo model_path=runs/sft/model data_path=PROBLEMS.jsonl out=runs/grpo"""


def conclude(out: Path, rewards: Sequence[float]) -> str:
    """The results as text, which also lie in ``out/results.md``; draws the learning curve beside it."""
    from segrl.data.files import write_text

    right = {name: shares(out / "scores" / name) for name in SCORES if (out / "scores" / name).is_dir()}
    parts = [table(right), *mistakes(out / "mistakes" / "truth.json")]
    write_text(out / "results.md", "\n\n".join(parts) + "\n")
    draw(right, rewards, out / "learning")
    look = f"Pictures: {out / 'learning.png'}, {out / 'trace.svg'}. The page to open: {out / 'report.html'}."
    return "\n\n".join([*parts, look, GO_ON])


def shares(folder: Path) -> list[float]:
    """The share of right samples of each problem, in the order of their ids."""
    from segrl.evaluation.results import read_samples
    from segrl.evaluation.statistics import by_problem, share_right

    groups = by_problem(read_samples(str(folder))[BENCHMARK])
    return [share_right(groups[id]) for id in sorted(groups)]


def table(right: Mapping[str, Sequence[float]]) -> str:
    """pass@1 of each model, and the difference from the first and from the one before, paired by problem."""
    from segrl.evaluation.results import markdown
    from segrl.evaluation.statistics import bootstrap

    problems, rows, before = len(right["base"]), {}, None
    columns = [f"pass@1 of {problems} problems", "minus as it is", "minus the row above"]
    for name, values in right.items():
        row: dict[str, Any] = {columns[0]: bootstrap(values)}
        if before:
            row |= {columns[1]: difference(values, right["base"]), columns[2]: difference(values, before)}
        rows[NAMES[name]], before = row, values
    return markdown("the model", columns, rows)


def difference(values: Sequence[float], others: Sequence[float]) -> str:
    from segrl.evaluation.statistics import paired

    return paired([[a - b for a, b in zip(values, others, strict=True)]]).points


def mistakes(file: Path) -> list[str]:
    """How many planted mistakes were found, and where this holds; nothing where they were not looked for."""
    if not file.exists():
        return []
    arms = json.loads(file.read_text())["table"]
    found, chance = (arms[name]["mistake_top1"]["mean"] for name in (FINDS, "random"))
    return [
        f"Of planted mistakes attribution finds {found:.0%} at its first guess, a random guess {chance:.0%}. Here each "
        "step is a digit of the answer; where the last step alone states the answer, attribution finds no more than a "
        "random guess (docs/truth.md)."
    ]


# --- the learning curve ----------------------------------------------------------------------------------------------


def draw(right: Mapping[str, Sequence[float]], rewards: Sequence[float], path: Path) -> None:
    """Write the picture: pass@1 on the test problems with intervals, and the mean reward of each step between."""
    from segrl.evaluation.pictures import save
    from segrl.evaluation.statistics import bootstrap

    save(learning_curve, path, (5.6, 3.2), {name: bootstrap(values) for name, values in right.items()}, rewards)


def learning_curve(figure, accuracies: Mapping[str, Estimate], rewards: Sequence[float]) -> None:
    from segrl.evaluation.pictures import BLUE, GREY

    axes = figure.add_subplot()
    places = {"base": -1, "sft": 0, "grpo": len(rewards)}
    steps = range(1, len(rewards) + 1)
    axes.plot(steps, [100 * reward for reward in rewards], ".-", color=GREY, label="reward of a GRPO step")
    for name, accuracy in accuracies.items():
        below, above = accuracy.mean - accuracy.low, accuracy.high - accuracy.mean
        spread = [[100 * below], [100 * above]]
        label = "pass@1, test problems" if name == "base" else None
        axes.errorbar(places[name], 100 * accuracy.mean, spread, fmt="o", color=BLUE, capsize=3, label=label)
    axes.set_xticks([-1, 0, *steps], [NAMES["base"], "SFT", *map(str, steps)])
    axes.set(xlabel="stage, then step of GRPO", ylabel="% right")
    axes.legend(frameon=False)

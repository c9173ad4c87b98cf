"""What an evaluation leaves in its folder, and what a comparison reads there.

``samples_<benchmark>.jsonl`` every verdict, ``results_<benchmark>.json`` what they come to, ``results.md`` the tables,
``results.png`` and ``results.svg`` the figure.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from segrl.data import read_rows, write_rows
from segrl.data.files import write_text
from segrl.evaluation.statistics import GREEDY, Estimate

Summary = Mapping[str, Any]
NONE = "–"
COLOURS = ("#555555", "#0072b2", "#56b4e9", "#e69f00", "#009e73", "#cc79a7")  # told apart by all eyes


def write_result(folder: Path, name: str, samples: Sequence[dict], summary: Summary) -> None:
    write_rows(folder / f"samples_{name}.jsonl", samples)
    write_json(folder / f"results_{name}.json", summary)


def write_json(path: Path, found: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(found, indent=1, ensure_ascii=False, default=asdict) + "\n")


def read_samples(place: str) -> dict[str, list[dict]]:
    """The verdicts of each benchmark in an evaluation's folder, or of one such file."""
    path = Path(place).expanduser()
    files = sorted(path.glob("samples_*.jsonl")) if path.is_dir() else [path]
    if not files:
        raise FileNotFoundError(f"{path} holds no samples_*.jsonl; give the out= of an evaluate or a grade")
    columns = ["problem_id", "correct", "gold"]
    return {file.stem.removeprefix("samples_"): read_rows(file, columns) for file in files}


# --- tables ----------------------------------------------------------------------------------------------------------


def table(summaries: Mapping[str, Summary]) -> str:
    """Markdown: a row for each benchmark, a column for each metric, means with 95% intervals over problems."""
    rows = {
        name: {
            "problems": one["problems"],
            "samples": one["samples"],
            **{metric: value for metric, value in one.items() if isinstance(value, Estimate)},
            "tokens": _count(one["tokens"]["all"]),
            "truncated": _percent(one["truncated"]["all"]),
        }
        for name, one in summaries.items()
    }
    metrics = _metrics(summaries)
    return markdown("benchmark", ["problems", "samples", *metrics, "tokens", "truncated"], rows)


def page(summaries: Mapping[str, Summary]) -> str:
    """All that ``results.md`` says."""
    single = {name: one for name, one in summaries.items() if "statuses" in one}
    cut = {
        name: {
            **{f"truncated, {group}": _percent(one["truncated"][group]) for group in ("right", "wrong")},
            "accuracy of finished": _percent(one["accuracy_finished"]),
            **{f"tokens, {group}": _count(one["tokens"][group]) for group in ("right", "wrong")},
        }
        for name, one in single.items()
    }
    levels = {f"{name}, level {level}": found for name, one in single.items() for level, found in one["levels"].items()}
    statuses = {name: one["statuses"] for name, one in single.items()}
    parts = [
        ("Results", table(summaries)),
        ("Length and truncation", markdown("benchmark", list(next(iter(cut.values()))), cut)),
        ("Levels", markdown("level", ["problems", "accuracy"], levels) if levels else ""),
        ("Verdicts", markdown("benchmark", sorted({one for each in statuses.values() for one in each}), statuses)),
        ("Golds that fail against themselves", "\n".join(_failing(single))),
    ]
    return "\n\n".join(f"## {title}\n\n{text}" for title, text in parts if text) + "\n"


def markdown(corner: str, columns: Sequence[str], rows: Mapping[str, Mapping[str, Any]]) -> str:
    lines = [[corner, *columns], ["---", *["---:"] * len(columns)]]
    lines += [[name, *(_cell(row.get(column)) for column in columns)] for name, row in rows.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _failing(summaries: Mapping[str, Summary]) -> list[str]:
    return [
        f"- {name}: {len(ids)}, {', '.join(ids)}" for name, one in summaries.items() if (ids := one.get("gold_failing"))
    ]


def _metrics(summaries: Mapping[str, Summary]) -> list[str]:
    """pass@1, pass@6, maj@6: by kind, then by k."""
    found = {name for one in summaries.values() for name, value in one.items() if isinstance(value, Estimate)}
    return sorted(found, key=lambda name: (name.startswith("maj"), int(name.partition("@")[2])))


def _cell(value: Any) -> str:
    return NONE if value is None else str(value)


def _percent(share: float | None) -> str | None:
    return None if share is None else f"{100 * share:.1f}%"


def _count(number: float | None) -> str | None:
    return None if number is None else f"{number:,.0f}"


# --- the figure ------------------------------------------------------------------------------------------------------


def draw(summaries: Mapping[str, Summary], path: Path) -> None:
    """A group of bars for each benchmark, a colour for each metric, with intervals; PNG, and SVG beside it."""
    import matplotlib
    from matplotlib.figure import Figure

    groups = _bars(summaries)
    series = list(dict.fromkeys(metric for bars in groups.values() for metric in bars))
    figure = Figure(figsize=(2 + 0.22 * len(groups) * (len(series) + 1), 3.6), layout="constrained")
    axes = figure.add_subplot()
    width = 0.8 / len(series)
    for m, metric in enumerate(series):
        found = [(g, bars[metric]) for g, bars in enumerate(groups.values()) if metric in bars]
        left = [g + (m + 0.5) * width - 0.4 for g, _ in found]
        errors = [[100 * (one.mean - one.low) for _, one in found], [100 * (one.high - one.mean) for _, one in found]]
        axes.bar(left, [100 * one.mean for _, one in found], width, label=metric, color=COLOURS[m % len(COLOURS)])
        axes.errorbar(left, [100 * one.mean for _, one in found], errors, fmt="none", ecolor="black", elinewidth=0.8)
    axes.set_xticks(range(len(groups)), list(groups))
    axes.set(ylim=(0, 100), ylabel="% (95% interval over problems)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, ncols=len(series), loc="outside upper center", columnspacing=1, handlelength=1)
    figure.savefig(path.with_suffix(".png"), dpi=150)
    with matplotlib.rc_context({"svg.hashsalt": "segrl"}):  # the same figure, the same bytes
        figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})


def _bars(summaries: Mapping[str, Summary]) -> dict[str, dict[str, Estimate]]:
    """benchmark -> metric -> estimate; a greedy pass is one more metric of its benchmark, and comes first."""
    groups: dict[str, dict[str, Estimate]] = {}
    for name, one in summaries.items():
        metrics = {metric: one[metric] for metric in _metrics({name: one})}
        if name.endswith(GREEDY):
            benchmark = name.removesuffix(GREEDY)
            groups[benchmark] = {"greedy": metrics["pass@1"], **groups.get(benchmark, {})}
        else:
            groups[name] = metrics
    return groups

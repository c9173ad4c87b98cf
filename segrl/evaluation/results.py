"""The files that an evaluation writes into its folder, and that a comparison reads.

``samples_<benchmark>.jsonl`` has every verdict, ``results_<benchmark>.json`` their summary, ``results.md`` the tables,
``results.png`` and ``results.svg`` the figure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from segrl.data import read_rows, write_rows
from segrl.data.files import write_json
from segrl.evaluation.pictures import BLUE, GREEN, ORANGE, save
from segrl.evaluation.statistics import GREEDY, Estimate

Summary = Mapping[str, Any]
NONE = "–"
COLOURS = ("#555555", BLUE, "#56b4e9", ORANGE, GREEN, "#cc79a7")


def write_result(folder: Path, name: str, samples: Sequence[dict], summary: Summary) -> None:
    write_rows(folder / f"samples_{name}.jsonl", samples)
    write_json(folder / f"results_{name}.json", summary)


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
    """A markdown table: a row for each benchmark, a column for each metric, with 95% intervals over problems."""
    rows = {
        name: {
            "problems": summary["problems"],
            "samples": summary["samples"],
            **{metric: value for metric, value in summary.items() if isinstance(value, Estimate)},
            "tokens": _count(summary["tokens"]["all"]),
            "truncated": _percent(summary["truncated"]["all"]),
        }
        for name, summary in summaries.items()
    }
    metrics = _metrics(summaries)
    return markdown("benchmark", ["problems", "samples", *metrics, "tokens", "truncated"], rows)


def page(summaries: Mapping[str, Summary]) -> str:
    """The text of ``results.md``."""
    single = {name: summary for name, summary in summaries.items() if "statuses" in summary}
    cut = {
        name: {
            **{f"truncated, {group}": _percent(summary["truncated"][group]) for group in ("right", "wrong")},
            "accuracy of finished": _percent(summary["accuracy_finished"]),
            **{f"tokens, {group}": _count(summary["tokens"][group]) for group in ("right", "wrong")},
        }
        for name, summary in single.items()
    }
    levels = {
        f"{name}, level {level}": accuracy
        for name, summary in single.items()
        for level, accuracy in summary["levels"].items()
    }
    statuses = {name: summary["statuses"] for name, summary in single.items()}
    verdicts = sorted({status for counts in statuses.values() for status in counts})
    parts = [
        ("Results", table(summaries)),
        ("Length and truncation", markdown("benchmark", list(next(iter(cut.values()))), cut)),
        ("Levels", markdown("level", ["problems", "accuracy"], levels) if levels else ""),
        ("Verdicts", markdown("benchmark", verdicts, statuses)),
        ("Golds that fail against themselves", "\n".join(_failing(single))),
    ]
    return "\n\n".join(f"## {title}\n\n{text}" for title, text in parts if text) + "\n"


def markdown(corner: str, columns: Sequence[str], rows: Mapping[str, Mapping[str, Any]]) -> str:
    """A markdown table; ``corner`` heads the column of row names."""
    lines = [[corner, *columns], ["---", *["---:"] * len(columns)]]
    lines += [[name, *(_cell(row.get(column)) for column in columns)] for name, row in rows.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _failing(summaries: Mapping[str, Summary]) -> list[str]:
    return [
        f"- {name}: {len(ids)}, {', '.join(ids)}"
        for name, summary in summaries.items()
        if (ids := summary.get("gold_failing"))
    ]


def _metrics(summaries: Mapping[str, Summary]) -> list[str]:
    """The metrics of all benchmarks by kind, then by k: pass@1, pass@6, maj@6."""
    names = {name for summary in summaries.values() for name, value in summary.items() if isinstance(value, Estimate)}
    return sorted(names, key=lambda name: (name.startswith("maj"), int(name.partition("@")[2])))


def _cell(value: Any) -> str:
    return NONE if value is None else str(value)


def _percent(share: float | None) -> str | None:
    return None if share is None else f"{100 * share:.1f}%"


def _count(number: float | None) -> str | None:
    return None if number is None else f"{number:,.0f}"


# --- the figure ------------------------------------------------------------------------------------------------------


def draw(summaries: Mapping[str, Summary], path: Path) -> None:
    """Write PNG, and SVG beside it: a group of bars for each benchmark, a colour for each metric, with intervals."""
    groups = _bars(summaries)
    series = list(dict.fromkeys(metric for bars in groups.values() for metric in bars))
    save(_draw_bars, path, (2 + 0.22 * len(groups) * (len(series) + 1), 3.6), groups, series)


def _draw_bars(figure, groups: Mapping[str, Mapping[str, Estimate]], series: Sequence[str]) -> None:
    axes = figure.add_subplot()
    width = 0.8 / len(series)
    for m, metric in enumerate(series):
        estimates = {g: bars[metric] for g, bars in enumerate(groups.values()) if metric in bars}
        left = [g + (m + 0.5) * width - 0.4 for g in estimates]
        heights = [100 * estimate.mean for estimate in estimates.values()]
        below = [100 * (estimate.mean - estimate.low) for estimate in estimates.values()]
        above = [100 * (estimate.high - estimate.mean) for estimate in estimates.values()]
        axes.bar(left, heights, width, label=metric, color=COLOURS[m % len(COLOURS)])
        axes.errorbar(left, heights, [below, above], fmt="none", ecolor="black", elinewidth=0.8)
    axes.set_xticks(range(len(groups)), list(groups))
    axes.set(ylim=(0, 100), ylabel="% (95% interval over problems)")
    figure.legend(frameon=False, ncols=len(series), loc="outside upper center", columnspacing=1, handlelength=1)


def _bars(summaries: Mapping[str, Summary]) -> dict[str, dict[str, Estimate]]:
    """The estimate of each metric of each benchmark; a greedy pass is a metric of its benchmark, and comes first."""
    groups: dict[str, dict[str, Estimate]] = {}
    for name, summary in summaries.items():
        metrics = {metric: summary[metric] for metric in _metrics({name: summary})}
        if name.endswith(GREEDY):
            benchmark = name.removesuffix(GREEDY)
            groups[benchmark] = {"greedy": metrics["pass@1"], **groups.get(benchmark, {})}
        else:
            groups[name] = metrics
    return groups

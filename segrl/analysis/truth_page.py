"""The table of truth as a page and as a picture: what each arm costs, and how well it agrees with what is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from segrl.analysis.agreement import WHAT, Row
from segrl.evaluation.pictures import BLUE, GREY, ORANGE
from segrl.evaluation.results import markdown
from segrl.evaluation.statistics import Estimate

ORACLE = "oracle"  # reads the truth
FREE = 0.02  # evaluations at which the picture puts an arm that takes none
# What the picture and the columns "above" show: the first of these pairs that the table has.
DRAWN = (
    ("mistake_auroc", "mistake_top1"),
    ("planted_auroc", "shapley_auroc"),
    ("shapley_spearman", "shapley_spearman_but_last"),
)
APART = 1.12  # factor between the places of arms of about the same cost
CHANCE = {
    **dict.fromkeys(("planted_auroc", "shapley_auroc", "mistake_auroc"), 0.5),
    **dict.fromkeys(("shapley_spearman", "shapley_spearman_but_last"), 0.0),
}


def truth_page(world: str, table: Mapping[str, Row], traces: int, reference: str) -> str:
    """The agreement and cost of each arm, the gaps of attributions, what is marked, and the agreement by the answer's
    length and by kind, as markdown."""
    known = known_of(table)
    parts = [
        f"## {world}",
        f"{traces} traces; means over traces with 95% intervals. Above: how much better than {reference!r} on the same "
        "traces. An evaluation is a forward over the trace, with its backward where there is one; seconds are of this "
        "machine, and only their ratios mean something.",
        markdown("arm", _columns(known), _lines(table, known)),
        _not_counted(table, known, traces),
        _gaps(table),
        _marked(table),
        _by_length(table, known),
        _by_kind(table),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def known_of(table: Mapping[str, Row]) -> list[str]:
    """The kinds of agreement that the table has."""
    return [what for what in WHAT if any(what in line for line in table.values())]


def drawn_of(known: Sequence[str]) -> list[str]:
    """The two kinds of agreement that a table is about."""
    return next([what for what in drawn if what in known] for drawn in DRAWN if drawn[0] in known)


def _columns(known: Sequence[str]) -> list[str]:
    return [*(WHAT[what] for what in known), *map(_above, drawn_of(known)), "evaluations", "seconds"]


def _above(what: str) -> str:
    return f"above, {WHAT[what]}"


def _lines(table: Mapping[str, Row], known: Sequence[str]) -> dict[str, dict[str, str | None]]:
    return {
        name: {
            **{WHAT[what]: _interval(line[what]) for what in known},
            **{_above(what): _interval(line["above"].get(what)) for what in drawn_of(known)},
            "evaluations": f"{line['evaluations']:.1f}",
            "seconds": f"{line['seconds']:.3f}",
        }
        for name, line in table.items()
    }


def _not_counted(table: Mapping[str, Row], known: Sequence[str], traces: int) -> str:
    """A sentence for each kind of agreement that not every trace has."""
    counts = next(iter(table.values()))["traces"]
    short = [f"{WHAT[what]}: {counts[what]} of {traces} traces" for what in known if counts[what] < traces]
    return f"Where a trace has nothing to tell apart it is not counted. {'; '.join(short)}." if short else ""


def _gaps(table: Mapping[str, Row]) -> str:
    rows = {
        name: {"median": f"{gap['median']:.3f}", "p90": f"{gap['p90']:.3f}", "traces": gap["traces"]}
        for name, line in table.items()
        if (gap := line["gap"])
    }
    if not rows:
        return ""
    title = "### Completeness gap: how far the sum of an attribution misses the change along its path, as a share"
    return f"{title}\n\n{markdown('arm', ['median', 'p90', 'traces'], rows)}"


def _marked(table: Mapping[str, Row]) -> str:
    rows = {
        name: {column: _interval(estimate) for column, estimate in line["marked"].items()}
        for name, line in table.items()
        if line["marked"]
    }
    if not rows:
        return ""
    title = "### The share of responses in which a thought is marked as the one that misled, and what the marked are"
    return f"{title}\n\n{markdown('arm', list(next(iter(rows.values()))), rows)}"


def _by_length(table: Mapping[str, Row], known: Sequence[str]) -> str:
    labels = list(dict.fromkeys(label for line in table.values() for label in line["by_length"]))
    if len(labels) < 2:
        return ""
    rows = {
        name: {label: f"{mean:.2f} ({count})" for label, (mean, count) in line["by_length"].items()}
        for name, line in table.items()
    }
    return f"### {WHAT[known[0]]}, by the tokens of the answer (traces)\n\n{markdown('arm', labels, rows)}"


def _by_kind(table: Mapping[str, Row]) -> str:
    kinds = sorted({kind for line in table.values() for kind in line["by_kind"]})
    if not kinds:
        return ""
    rows = {
        name: {kind: f"{share.mean:.2f}" for kind, share in line["by_kind"].items()} for name, line in table.items()
    }
    return "### The share of its trace's other thoughts that a thought outranks; 0.5 is chance\n\n" + markdown(
        "arm", kinds, rows
    )


def _interval(estimate: Estimate | None) -> str | None:
    return None if estimate is None else f"{estimate.mean:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"


# --- the picture -----------------------------------------------------------------------------------------------------


def draw_table(figure, table: Mapping[str, Row], reference: str) -> None:
    """Draw agreement over evaluations. The reference has a label, and so has each arm that no cheaper arm reaches."""
    known = known_of(table)
    drawn = drawn_of(known)
    for axes, what in zip(figure.subplots(1, len(drawn), squeeze=False)[0], drawn, strict=True):
        values = {name: line[what] for name, line in table.items() if line[what]}
        costs = {name: table[name]["evaluations"] for name in values}
        points = {name: (costs[name], value.mean) for name, value in values.items() if name != ORACLE}
        named = {*frontier(points), reference}
        places = side_by_side(costs)
        lower = sorted(named & {*places}, key=lambda name: places[name])[1::2]  # so that names do not overlap
        for name, x in places.items():
            colour = ORANGE if name == reference else BLUE if name in named else GREY
            axes.plot([x, x], [values[name].low, values[name].high], color=colour, linewidth=1.2)
            axes.plot([x], [values[name].mean], "o", color=colour, markersize=4.5 if name in named else 3)
            if name in named:
                below = name in lower
                at = {"xy": (x, values[name].mean), "xytext": (5, -11 if below else 5), "textcoords": "offset points"}
                axes.annotate(name, **at, fontsize=7, color=colour)
        axes.set(title=WHAT[what], xscale="log", xlabel="evaluations a trace", xlim=(FREE / 2, 1000))
        axes.set_xticks([FREE, 1, 10, 100], ["none", "1", "10", "100"])
        axes.minorticks_off()
        if what in CHANCE:
            axes.axhline(CHANCE[what], color="#bbbbbb", linewidth=0.8)


def side_by_side(costs: Mapping[str, float]) -> dict[str, float]:
    """The place of each arm on the axis: its cost, with arms of about the same cost beside each other."""
    places: dict[float, list[str]] = {}
    for name, cost in costs.items():
        places.setdefault(float(f"{max(cost, FREE):.1g}"), []).append(name)
    return {
        name: max(costs[name], FREE) * APART ** (k - (len(names) - 1) / 2)
        for names in places.values()
        for k, name in enumerate(names)
    }


def frontier(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """The names whose value no point of the same or lower cost exceeds, cheapest first."""
    names, best = [], float("-inf")
    for name, (_, value) in sorted(points.items(), key=lambda item: (item[1][0], -item[1][1])):
        if value > best:
            names.append(name)
            best = value
    return names

"""The paper's figures 1 to 4 and appendix A, drawn from a summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import shorten, wrap
from typing import Any

from segrl.analysis.classes import Row, reasons
from segrl.evaluation.pictures import BLUE, GREEN, GREY, ORANGE, PALE, RED, save
from segrl.evaluation.statistics import Estimate

OF_CLASS = {"important": GREEN, "unimportant": GREY, "low strength": "#b8b8b8", "high consistency": ORANGE}
OF_REASON = {"strength": GREEN, "dropped": GREY, "consistency": ORANGE}
OF_SIDE = {"right": BLUE, "wrong": RED}
LINE, LINES, THOUGHTS = 74, 2, 12  # of the example: characters a line, lines a thought, thoughts


def draw_all(summary: Mapping[str, Any], right: Sequence[Row], folder: Path) -> None:
    tau, beta = (summary["settings"][name] for name in ("tau", "beta"))
    save(figure_1, folder / "figure_1", (11, 6.2), summary, example(right, tau, beta), tau, beta)
    save(figure_2, folder / "figure_2", (5.2, 3.2), summary)
    save(figure_3, folder / "figure_3", (10.5, 2.9), summary)
    save(figure_4, folder / "figure_4", (9.6, 3.6), summary)
    save(figure_positions, folder / "figure_positions", (6.4, 2.6), summary)


# --- figure 1: a trace, how long traces are, and how few segments hold their attribution -----------------------------


def figure_1(figure, summary: Mapping[str, Any], row: Row, tau: float, beta: float) -> None:
    grid = figure.add_gridspec(2, 2, width_ratios=[1.7, 1], height_ratios=[1, 1.5])
    _draw_trace(figure.add_subplot(grid[:, 0]), row, tau, beta)
    counts = grid[0, 1].subgridspec(1, 2, wspace=0.1)
    for i, name in enumerate(("segments", "tokens")):
        _draw_counts(figure.add_subplot(counts[0, i]), summary["counts"], name)
    _draw_curves(figure.add_subplot(grid[1, 1]), summary["redundancy"])


def example(right: Sequence[Row], tau: float, beta: float) -> Row:
    """The trace with the most classes; of several, the one whose length fits the figure best."""
    return max(right, key=lambda row: (len(set(reasons(row, tau, beta))), -abs(len(row["texts"]) - THOUGHTS + 2)))


def _draw_trace(axes, row: Row, tau: float, beta: float) -> None:
    thought_reasons = reasons(row, tau, beta)
    y = 0.0
    for s, text in enumerate(row["texts"][:THOUGHTS]):
        lines = _two_lines(text)
        height = 0.6 + 0.62 * len(lines)
        colour = OF_REASON[thought_reasons[s]]
        axes.barh(y + height / 2, 0.012, height=height, left=0, color=colour)
        axes.barh(y + height / 2, 0.988, height=height, left=0.012, color=colour, alpha=0.13)
        axes.text(
            0.025, y + height / 2, "\n".join(lines), va="center", fontsize=8, family="monospace", parse_math=False
        )
        axes.text(1.075, y + height / 2, f"{100 * row['share'][s]:.0f}%", va="center", ha="right", fontsize=8.5)
        axes.text(1.175, y + height / 2, f"{row['consistency'][s]:.2f}", va="center", ha="right", fontsize=8.5)
        y += height + 0.18
    axes.text(1.075, -0.35, "strength", ha="right", fontsize=8.5, color="#555555")
    axes.text(1.19, -0.35, "consist.", ha="right", fontsize=8.5, color="#555555")
    more = len(row["texts"]) - THOUGHTS
    if more > 0:
        axes.text(0.025, y + 0.3, f"… and {more} more", va="center", fontsize=8, color="#555555")
    keys = (("important", GREEN), ("low strength", GREY), ("too consistent", ORANGE))
    for i, (name, colour) in enumerate(keys):
        axes.text(0.0 + 0.22 * i, -0.35, f"■ {name}", fontsize=8.5, color=colour, weight="bold")
    axes.set(xlim=(0, 1.2), ylim=(y + (0.6 if more > 0 else 0), -1.1))
    axes.set_title(f"The thoughts of one right trace  (τ = {tau:g}, β = {beta:g})")
    axes.axis("off")


def _two_lines(text: str) -> list[str]:
    return wrap(shorten(" ".join(text.split()), LINE * LINES - 4, placeholder=" …"), LINE) or [""]


def _draw_counts(axes, counts: Mapping[str, Any], name: str) -> None:
    sides = [side for side in OF_SIDE if side in counts]
    for i, side in enumerate(sides):
        estimate = counts[side][name]
        _bar(axes, i, estimate, OF_SIDE[side])
        digits = 1 if estimate.mean < 100 else 0
        axes.text(i, estimate.high, f"{estimate.mean:,.{digits}f}", ha="center", va="bottom", fontsize=8.5)
    axes.set_xticks(range(len(sides)), sides)
    axes.set(title=f"{name.capitalize()} a trace", ylim=(0, 1.18 * max(counts[side][name].high for side in sides)))
    axes.tick_params(length=0, axis="x")
    _only_bottom(axes)


def _draw_curves(axes, redundancy: Mapping[str, Any]) -> None:
    (held,) = {of_side["held"] for of_side in redundancy.values()}
    axes.axhline(100 * held, color="#bbbbbb", linewidth=0.8, linestyle=(0, (4, 3)))
    axes.plot([0, 100], [0, 100], color=PALE, linewidth=0.8)
    for i, (side, of_side) in enumerate(redundancy.items()):
        x, y = ([100 * value for value in of_side["curve"][name]] for name in ("segments", "attribution"))
        at = 100 * of_side["mean_curve_reaches_it_at"]
        axes.plot(x, y, color=OF_SIDE[side], linewidth=2, linestyle="-" if side == "right" else "--")
        axes.plot([at], [100 * held], "o", color=OF_SIDE[side], markersize=5)
        label = f"{side}: {at:.0f}% of segments\nhold {100 * held:.0f}%"
        axes.text(97, 38 - 24 * i, label, color=OF_SIDE[side], ha="right", fontsize=8.5)
    axes.text(27, 21, "if all were equal", color="#aaaaaa", fontsize=7.5, rotation=33, rotation_mode="anchor")
    axes.set(
        xlim=(0, 100), ylim=(0, 102), title="Cumulative strength", xlabel="segments, strongest first (%)", ylabel="%"
    )


# --- figures 2 and 3: important against unimportant ------------------------------------------------------------------


def figure_2(figure, summary: Mapping[str, Any]) -> None:
    unit, (scale, label) = summary["settings"]["gain"], _unit(summary)
    axes = figure.add_subplot()
    known = {name: _scaled(gain, scale) for name, gain in summary["gain"][unit].items() if gain is not None}
    for i, (name, estimate) in enumerate(known.items()):
        _bar(axes, i, estimate, OF_CLASS[name], lying=True)
        text = f"{estimate.mean:+.2f}" if unit == "nats" else f"{estimate.mean:+.1f}"
        axes.annotate(text, (max(estimate.high, 0), i), (5, 0), textcoords="offset points", va="center")
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(known)), [_of_which(name) for name in known])
    axes.set(ylim=(len(known) - 0.4, -0.6), xlabel=label)
    axes.margins(x=0.16)
    axes.tick_params(length=0, axis="y")
    axes.spines["left"].set_visible(False)
    figure.suptitle("What a thought adds to the right answer's confidence", x=0.02, ha="left", weight="bold", size=10)


def _unit(summary: Mapping[str, Any]) -> tuple[float, str]:
    """The factor and the label of an axis of gains."""
    nats = summary["settings"]["gain"] == "nats"
    return (1.0, "Δ log p(answer) (nats)") if nats else (100.0, "Δ confidence (points)")


def figure_3(figure, summary: Mapping[str, Any]) -> None:
    language = summary["language"]
    panels = [
        ("Log-perplexity", language["log_perplexity"], "{:.2f}", 1),
        ("Entropy (nats)", language["entropy"], "{:.2f}", 1),
        ("BLEU with all before", language["bleu"], "{:.2f}", 1),
        ("BLEU over 0.8", summary["repetitive"], "{:.0f}%", 100),
    ]
    if summary["truncated"]:
        panels.append(("Truncated", summary["truncated"], "{:.0f}%", 100))
    for i, (title, estimates, form, scale) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), i + 1)
        for k, name in enumerate(("important", "unimportant")):
            if estimates[name] is None:
                continue
            estimate = _scaled(estimates[name], scale)
            _bar(axes, k, estimate, OF_CLASS[name])
            axes.text(k, estimate.high, form.format(estimate.mean), ha="center", va="bottom", fontsize=8.5)
        top = max((_scaled(value, scale).high for value in estimates.values() if value), default=1)
        axes.set(title=title, ylim=(0, 1.15 * top or 1), xlim=(-0.6, 1.6))
        axes.set_xticks(range(2), ["important", "unimportant"])
        axes.tick_params(length=0, axis="x", labelsize=8)
        _only_bottom(axes)


def _of_which(name: str) -> str:
    return f"– {name}" if name in ("low strength", "high consistency") else name


# --- figure 4: the search --------------------------------------------------------------------------------------------


def figure_4(figure, summary: Mapping[str, Any]) -> None:
    left, right = figure.subplots(1, 2, width_ratios=[1.25, 1])
    scale, label = _unit(summary)
    _draw_search(left, summary["search"], scale)
    left.set_ylabel(label)
    _draw_grid(right, summary["grid"], scale)


def _draw_search(axes, search: Mapping[str, Any], scale: float) -> None:
    points, best, ends = search["points"], search["best_tau"], []
    for name, style in (("important", "-"), ("unimportant", "-"), ("difference", ":")):
        known = [(point["tau"], _scaled(point[name], scale)) for point in points if point[name] is not None]
        if not known:
            continue
        x, y = [tau for tau, _ in known], [gain.mean for _, gain in known]
        colour = OF_CLASS.get(name, "black")
        axes.plot(x, y, style, color=colour, linewidth=2, marker="o", markersize=3)
        if name != "difference":
            low, high = [gain.low for _, gain in known], [gain.high for _, gain in known]
            axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        ends.append((y[-1], x[-1], name, colour))
    bottom, top = axes.get_ylim()
    for end, tau, name, colour in _apart(ends, 0.06 * (top - bottom)):
        axes.text(tau, end, f"  {name}", color=colour, va="center", fontsize=8.5)
    star = next((point for point in points if point["tau"] == best and point["important"]), None)
    if star:
        at = (best, scale * star["important"].mean)
        axes.plot(*at, "*", color=RED, markersize=14, zorder=5)
        beside = {"xytext": (6, 9), "textcoords": "offset points", "weight": "bold"}
        axes.annotate(f"τ* = {best:g}", at, color=RED, **beside)
    axes.axhline(0, color="#bbbbbb", linewidth=0.8)
    taus = [point["tau"] for point in points]
    width = max(taus) - min(taus) or 0.1
    axes.set_xlim(min(taus) - 0.03 * width, max(taus) + 0.28 * width)
    axes.set_xticks(taus[::2])
    axes.set(title=f"Gain by τ  (β = {search['beta']:g})", xlabel="τ")


def _apart(ends: list[tuple[float, float, str, str]], least: float) -> list[tuple[float, float, str, str]]:
    """The labels from the lowest up, each at least ``least`` above the one before."""
    placed: list[tuple[float, float, str, str]] = []
    for y, x, name, colour in sorted(ends):
        placed.append((max(y, placed[-1][0] + least) if placed else y, x, name, colour))
    return placed


def _draw_grid(axes, grid: Sequence[Mapping[str, Any]], scale: float) -> None:
    import numpy as np

    taus, betas = (sorted({point[name] for point in grid}) for name in ("tau", "beta"))
    gains = {(point["tau"], point["beta"]): point["difference"] for point in grid}
    cells = np.array([[scale * gains[t, b].mean if gains[t, b] else np.nan for t in taus] for b in betas])
    axes.imshow(cells, cmap="cividis", aspect="auto", origin="lower")
    middle = (np.nanmin(cells) + np.nanmax(cells)) / 2
    for i, row in enumerate(cells):
        for j, value in enumerate(row):
            text = "–" if np.isnan(value) else f"{value:.1f}"
            axes.text(j, i, text, ha="center", va="center", fontsize=7.5, color="black" if value > middle else "white")
    axes.set_xticks(range(len(taus)), [f"{tau:g}" for tau in taus])
    axes.set_yticks(range(len(betas)), [f"{beta:g}" for beta in betas])
    axes.set(title="Important minus unimportant", xlabel="τ", ylabel="β")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


# --- appendix A ------------------------------------------------------------------------------------------------------


def figure_positions(figure, summary: Mapping[str, Any]) -> None:
    axes = figure.add_subplot()
    known = [(name, position) for name, position in summary["position"].items() if position["share"] is not None]
    for i, (name, position) in enumerate(known):
        estimate, paper = _scaled(position["share"], 100), 100 * position["paper"]
        _bar(axes, i, estimate, OF_CLASS[name], lying=True)
        axes.plot([paper] * 2, [i - 0.36, i + 0.36], color="black", linewidth=1.4)
        axes.text(102, i, f"{estimate.mean:.0f}%   paper {paper:.0f}%", va="center", fontsize=8.5)
    axes.set_yticks(range(len(known)), [f"{_of_which(name)}, {position['side']}" for name, position in known])
    axes.set(xlim=(0, 100), ylim=(len(known) - 0.4, -0.6), xlabel="% of the class's thoughts; the line is the paper's")
    axes.set_title("Before or after the thought that decides the answer")
    axes.tick_params(length=0, axis="y")


# --- parts -----------------------------------------------------------------------------------------------------------


def _bar(axes, at: float, estimate: Estimate, colour: str, lying: bool = False) -> None:
    error = [[max(estimate.mean - estimate.low, 0)], [max(estimate.high - estimate.mean, 0)]]
    if lying:
        axes.barh(at, estimate.mean, 0.62, color=colour)
        axes.errorbar(estimate.mean, at, xerr=error, fmt="none", ecolor="black", elinewidth=0.8, capsize=2)
    else:
        axes.bar(at, estimate.mean, 0.62, color=colour)
        axes.errorbar(at, estimate.mean, error, fmt="none", ecolor="black", elinewidth=0.8, capsize=2)


def _only_bottom(axes) -> None:
    """Leave only the bottom axis; the numbers stand at the bars."""
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)


def _scaled(estimate: Estimate, scale: float) -> Estimate:
    return Estimate(*(scale * value for value in (estimate.mean, estimate.low, estimate.high)))

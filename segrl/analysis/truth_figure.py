"""The figure of the truth table: a line for each measure, a column for each truth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from segrl.analysis.figures import BLUE, GREY, ORANGE
from segrl.analysis.truth import SHORTCUTS

TRUTHS = {
    "planted_auroc": "Needed against redundant, as planted",
    "shapley_auroc": "The model's own dependence (Shapley)",
}


def draw_table(figure, table: Mapping[str, Mapping[str, Any]]) -> None:
    """Draw AUROC with its intervals: the shortcuts above, then the measures, best first."""
    ranked = sorted((name for name in table if name not in SHORTCUTS), key=lambda name: -_mean(table[name]))
    names = [*(name for name in SHORTCUTS if name in table), *ranked]
    for axes, (what, title) in zip(figure.subplots(1, 2, sharey=True), TRUTHS.items(), strict=True):
        axes.axvline(0.5, color="#bbbbbb", linewidth=0.8)
        for y, name in enumerate(names):
            auroc = table[name][what]
            if auroc is None:
                continue
            colour = GREY if name in SHORTCUTS else ORANGE if _is_ig(name) else BLUE
            axes.plot([auroc.low, auroc.high], [y, y], color=colour, linewidth=2, solid_capstyle="butt")
            axes.plot([auroc.mean], [y], "o", color=colour, markersize=4.5, clip_on=False, zorder=3)
            axes.text(1.03, y, f"{auroc.mean:.2f}", va="center", fontsize=8, color=colour)
        axes.set(title=title, xlim=(0, 1.0), ylim=(len(names) - 0.4, -0.6))
        axes.set_xlabel("AUROC, mean over traces (0.5: chance)")
        axes.set_yticks(range(len(names)), names)
        axes.tick_params(length=0, axis="y")
        axes.spines["left"].set_visible(False)


def _is_ig(name: str) -> bool:
    return name.startswith(("ig", "tau", "strength", "abs_ig"))


def _mean(line: Mapping[str, Any]) -> float:
    return -1.0 if line["planted_auroc"] is None else line["planted_auroc"].mean

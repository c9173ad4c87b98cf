"""Views of traces: in the terminal, and as one offline page."""

from segrl.report.curves import Curve, curves_of, keep_metrics, load_metrics
from segrl.report.entries import Entry, RolloutView, View, measures_of, ranks_of
from segrl.report.page import page
from segrl.report.rollouts import load_rollouts
from segrl.report.terminal import draw, picture, terminal

__all__ = [
    "Curve",
    "Entry",
    "RolloutView",
    "View",
    "curves_of",
    "draw",
    "keep_metrics",
    "load_metrics",
    "load_rollouts",
    "measures_of",
    "page",
    "picture",
    "ranks_of",
    "terminal",
]

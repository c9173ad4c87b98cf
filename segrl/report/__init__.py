"""A trace one can look at: in the terminal, and as one offline page."""

from segrl.report.entries import Credit, Entry, View, measures_of, ranks_of
from segrl.report.page import page
from segrl.report.rollouts import load_rollouts
from segrl.report.terminal import draw, terminal

__all__ = ["Credit", "Entry", "View", "draw", "load_rollouts", "measures_of", "page", "ranks_of", "terminal"]

"""A trace one can look at: in the terminal, and as one offline page."""

from segrl.report.entries import Entry, View, measures_of, ranks_of
from segrl.report.page import page
from segrl.report.terminal import draw, terminal

__all__ = ["Entry", "View", "draw", "measures_of", "page", "ranks_of", "terminal"]

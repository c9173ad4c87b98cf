"""How a figure looks and is saved: PNG, and SVG beside it, with the same bytes for the same figure."""

from __future__ import annotations

import re
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

# Colours that colour-blind readers can tell apart.
GREEN, GREY, ORANGE, BLUE, RED, PALE = "#009e73", "#8c8c8c", "#e69f00", "#0072b2", "#d55e00", "#dddddd"
STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "svg.hashsalt": "segrl",  # the same figure, the same bytes
    "svg.fonttype": "none",
}


def save(draw: Callable[..., None], path: Path, size: tuple[float, float], *given: Any) -> None:
    """Call ``draw(figure, *given)`` and write PNG, and SVG beside it."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure, *given)
        figure.savefig(path.with_suffix(".png"), dpi=160)
        svg = StringIO()
        figure.savefig(svg, format="svg", metadata={"Date": None})
    text = svg.getvalue()  # the ids of its clip paths hash their corners, whose last digits vary
    for k, name in enumerate(re.findall(r'<clipPath id="(\w+)"', text)):
        text = text.replace(name, f"clip{k}")
    path.with_suffix(".svg").write_text(text)

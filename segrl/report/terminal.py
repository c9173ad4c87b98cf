"""A trace one can look at: for now in the terminal, its segments coloured by how much they matter."""

from __future__ import annotations

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.text import Text

from segrl.types import Segments, SegmentScores, Selection, Trace

BAR = 12


def terminal(
    trace: Trace, segments: Segments, scores: SegmentScores | None = None, selection: Selection | None = None
) -> RenderableType:
    """The problem and the response; each segment behind a bar of its strength, dropped ones dimmed."""
    head = Text.assemble(
        ("problem  ", "bold"), trace.problem.strip(), "\n", ("answer   ", "bold"), trace.answer or "none"
    )
    lines = [_segment(trace, segments, s, scores, selection) for s in range(len(segments))]
    title = f"{trace.id}   {trace.tokens} tokens, {len(segments)} segments"
    return Panel(Group(head, Text(""), *lines), title=title, title_align="left")


def draw(renderable: RenderableType, console: Console | None = None) -> None:
    """Print in colour; without, when the output is piped."""
    (console or Console()).print(renderable)


def _segment(
    trace: Trace, segments: Segments, s: int, scores: SegmentScores | None, selection: Selection | None
) -> Text:
    assert trace.offsets_T is not None
    start, end = segments.boundaries[s], segments.boundaries[s + 1]
    text = trace.response[int(trace.offsets_T[start, 0]) : int(trace.offsets_T[end - 1, 1])].strip()
    kept = selection is None or bool(selection.keep_S[s])
    share = 0.0 if scores is None else float(scores.share_S[s])
    strongest = 1.0 if scores is None else max(float(scores.share_S.max()), 1e-12)
    bar = "█" * round(BAR * share / strongest)
    label = selection.reason_S[s] if selection else segments.kinds_S[s]
    style = _colour(share / strongest) if kept else "dim"
    # Text, not markup: a "[bold]" in a trace is text.
    return Text.assemble((f"{bar:>{BAR}} {100 * share:4.0f}% {label:<12}", "cyan" if kept else "dim"), (text, style))


def _colour(relative: float) -> str:
    for least, style in ((0.66, "bold green"), (0.33, "green"), (0.0, "default")):
        if relative >= least:
            return style
    return "default"

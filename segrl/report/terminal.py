"""A trace in the terminal: its segments coloured by their share, its tokens by their scores."""

from __future__ import annotations

import re
from io import StringIO
from itertools import groupby

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Column, Table
from rich.text import Text

from segrl.report.entries import Entry, View, explained, ranks_of

BAR = 8
MISLED = "bold red"
EXPLAINED = {
    "gold": "the gold answer",
    "own": "the response's own answer",
    "contrast": "the response's own answer against the gold one",
}
WIDTH = 120  # of a picture, in letters
WEB_FONT = re.compile(r"@font-face \{\{.*?\}\}", re.DOTALL)  # in rich's SVG: a font that is fetched from the network
TINTED = 0.25  # of the trace's largest token score; weaker ones are left as they are


def terminal(entry: Entry) -> RenderableType:
    """A panel: the head, then each segment with its number, bar, rank, share, consistency and reason.

    The consistency ``c`` is left out where the measure has none. Dropped segments are dimmed; the thought that misled
    is red, and called so.
    """
    trace, segments = entry.trace, entry.segments
    measure, view = next(iter(entry.views.items()), (None, None))
    lines = Table.grid(Column(justify="right"), Column(no_wrap=True), Column(), padding=(0, 1))
    for s, kind in enumerate(segments.kinds_S):
        number = "" if kind == "answer" else str(s + 1)
        lines.add_row(Text(number, "dim"), *_segment(entry, view, s, entry.misled == s))
    title = f"{trace.id}   {segments.tokens} tokens, {len(segments)} segments"
    return Panel(Group(_head(entry, measure, view), Text(""), lines), title=Text(title), title_align="left")


def draw(renderable: RenderableType, console: Console | None = None) -> None:
    """Print ``renderable``, in colour unless the output is piped."""
    (console or Console()).print(renderable)


def picture(renderable: RenderableType, title: str) -> str:
    """What a terminal shows, as SVG without anything from the network."""
    console = Console(record=True, width=WIDTH, file=StringIO(), force_terminal=True, color_system="truecolor")
    console.print(renderable)
    return console.export_svg(title=title, code_format=WEB_FONT.sub("", CONSOLE_SVG_FORMAT))


def _head(entry: Entry, measure: str | None, view: View | None) -> Text:
    trace, verdict, attribution = entry.trace, entry.verdict, entry.attribution
    facts = {"problem": trace.problem.strip(), "gold": trace.answer or "none"}
    if verdict is not None:
        facts["verdict"] = f"{verdict.word} ({verdict.status}), answered {verdict.pred}"
    if attribution is not None:
        facts["explained"] = EXPLAINED[explained(attribution, verdict)]
        if attribution.gap is not None:
            facts["gap"] = f"{attribution.gap:.3g}"
        if attribution.flags:
            facts["flags"] = ", ".join(attribution.flags)
    if measure is not None:
        named = view.measure if view else None
        facts["measure"] = measure if named in (None, measure) else f"{named} ({measure})"
    lines = [Text.assemble((f"{name:<10}", "bold"), value) for name, value in facts.items()]
    return Text("\n").join(lines)


def _segment(entry: Entry, view: View | None, s: int, misled: bool) -> tuple[Text, Text]:
    """The numbers and the text of a segment, as Text and not markup: a "[bold]" in a trace is text."""
    start, end = entry.segments.boundaries[s], entry.segments.boundaries[s + 1]
    if view is None:
        return Text(entry.segments.kinds_S[s], "cyan"), _text(entry, start, end, "default")
    if len(view.segments) != len(entry.segments):
        return _by_token(entry, view, start, end)
    share, strongest = float(view.scores.share_S[s]), max(float(view.scores.share_S.max()), 1e-12)
    kept, consistency = bool(view.selection.keep_S[s]), float(view.scores.consistency_S[s])
    rank = ranks_of(view.scores)[s]
    signs = f" c {consistency:.2f}" if bool(view.scores.consistency_S.any()) else ""
    numbers = f"#{rank:<3} {100 * share:3.0f}%{signs}" if rank else f"{'answer':<{9 + len(signs)}}"
    reason = "misled" if misled else view.selection.reason_S[s]
    gutter = f"{'█' * round(BAR * share / strongest):>{BAR}} {numbers} {reason:<12}"
    if misled:
        return Text(gutter, MISLED), _text(entry, start, end, MISLED)
    style = _colour(share / strongest) if kept else "dim"
    return Text(gutter, "cyan" if kept else "dim"), _text(entry, start, end, style)


def _by_token(entry: Entry, view: View, start: int, end: int) -> tuple[Text, Text]:
    """The share, the kept tokens and the text of a segment under a token measure; dropped tokens are dimmed."""
    keep_T, share = view.selection.keep_S[start:end], float(view.scores.share_S[start:end].sum())
    gutter = f"{100 * share:3.0f}% {int(keep_T.sum()):>4} of {end - start:<4} tokens"
    text, at = Text(), start
    for kept, run in groupby(keep_T.tolist()):
        until = at + len(list(run))
        text.append_text(_text(entry, at, until, "default" if kept else "dim", strip=False))
        at = until
    text.rstrip()
    return Text(gutter, "cyan"), _without_blank(text)


def _text(entry: Entry, start: int, end: int, style: str, strip: bool = True) -> Text:
    """The tokens: those that raised the answer's probability on blue, those that lowered it underlined on orange."""
    cuts = entry.ends_T
    first = cuts[start - 1] if start else 0
    text = Text(entry.trace.response[first : cuts[end - 1]], style)
    if entry.attribution is not None:
        scores_T = entry.attribution.scores_T
        least = TINTED * float(scores_T.abs().max())
        for t in range(start, end):
            if least and abs(float(scores_T[t])) >= least:
                tint = "white on blue" if scores_T[t] > 0 else "underline black on dark_orange"
                text.stylize(tint, (cuts[t - 1] if t else 0) - first, cuts[t] - first)
    if not strip:
        return text
    text.rstrip()
    return _without_blank(text)


def _without_blank(text: Text) -> Text:
    """``text`` without the blank lines before it."""
    blank = len(text.plain) - len(text.plain.lstrip("\n"))
    return text[blank:] if blank else text


def _colour(relative: float) -> str:
    for least, style in ((0.66, "bold green"), (0.33, "green"), (0.0, "default")):
        if relative >= least:
            return style
    return "default"

"""One HTML file of traces that needs nothing else: no network, no server, no other file.

A small index of all traces is read at once; each trace has its own block that is parsed when it is opened.
The user's data are JSON in ``<script type="application/json">`` with every ``<`` written ``\\u003c``, and reach the
page as text nodes alone: a ``<script>`` in a trace is text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from itertools import accumulate, groupby, pairwise
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from segrl.report.curves import Curve
from segrl.report.entries import Entry, View, explained, is_contrast, measures_of
from segrl.text.decoding import LONE_SURROGATE
from segrl.types import SegmentScores

FOLDER = Path(__file__).parent
STYLE = "page.css"
SCRIPTS = tuple(
    f"{name}.js" for name in ("selection", "reading", "list", "trace", "scores", "head", "panes", "chart", "page")
)
PROBLEM = 90  # characters of a problem in the list of problems
# What the page calls the scores of these measures, and the parts of scores, beside those of others.
WORDS = {"alone": "adds alone", "leave_one_out": "lost without", "without": "lost without"}
LEVELS = 9999  # a token's score is written as so many parts of the trace's largest
SETTINGS = {"tau": 0.7, "beta": 0.8, "beta_min_tokens": 1, "force": [0, -1]}


def page(
    entries: Sequence[Entry],
    settings: Mapping[str, Any] = SETTINGS,
    title: str = "segrl report",
    curves: Sequence[Curve] = (),
) -> str:
    """The HTML. ``settings`` are where the sliders start, as ``segrl.select`` takes them."""
    measures = measures_of(entries)
    problems = {problem: i for i, problem in enumerate(dict.fromkeys(map(_problem_id, entries)))}
    bodies = [_body(entry, measures) for entry in entries]
    index = {
        "title": title,
        "measures": measures,
        "words": _words(measures, entries),
        "tints": list(dict.fromkeys(name for body in bodies for name in body["tints"])),
        "problems": _problems(entries),
        "curves": [curve._asdict() | {"lines": _lines(curve)} for curve in curves],
        "settings": {name: settings[name] for name in SETTINGS},
        "traces": [_head(entry, problems) for entry in entries],
    }
    blocks = [_block("index", index), *(_block(f"trace-{i}", body) for i, body in enumerate(bodies))]
    script = "\n".join(_read(file) for file in SCRIPTS)
    parts = {"style": _read(STYLE), "script": script, "data": "\n".join(blocks)}
    template = _read("page.html")
    # In one pass: what looks like a placeholder in a trace stays as it is.
    return re.sub(r"<!--(\w+)-->|/\*(\w+)\*/", lambda match: parts[match[1] or match[2]], template)


def _read(file: str) -> str:
    return (FOLDER / file).read_text(encoding="utf-8")


def _block(name: str, value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    text = LONE_SURROGATE.sub(lambda half: f"\\u{ord(half[0]):04x}", text)
    return f'<script type="application/json" id="{name}">{text}</script>'


def _problem_id(entry: Entry) -> str:
    """The problem of a trace by its id, that of a rollout by its prompt, which has the same text in every step."""
    return entry.credit.prompt if entry.credit else entry.trace.problem_id


def _problems(entries: Sequence[Entry]) -> list[str]:
    """The beginning of each problem."""
    texts = {_problem_id(entry): entry.credit.prompt if entry.credit else entry.trace.problem for entry in entries}
    return [text.strip()[:PROBLEM] for text in texts.values()]


def _words(names: Sequence[str], entries: Sequence[Entry]) -> list[str]:
    """What the scores of each view are called on the page, no two alike."""
    views = [next(entry.views[name] for entry in entries if name in entry.views) for name in names]
    words = [WORDS.get(view.measure or name, name) for name, view in zip(names, views, strict=True)]
    return [name if words.count(word) > 1 else word for name, word in zip(names, words, strict=True)]


def _lines(curve: Curve) -> dict[str, list[tuple[int, float | None]]]:
    return {name: [(step, _finite(value)) for step, value in line.items()] for name, line in curve.lines.items()}


def _head(entry: Entry, problems: Mapping[str, int]) -> dict[str, Any]:
    """The facts of a trace that the list of traces and its own head show."""
    trace, verdict, attribution, rollout = entry.trace, entry.verdict, entry.attribution, entry.credit
    head: dict[str, Any] = {"id": trace.id, "tokens": entry.segments.tokens, "gold": trace.answer}
    head["problem"] = problems[_problem_id(entry)]
    if verdict is not None:
        head |= {"verdict": verdict.word, "status": verdict.status, "answered": verdict.pred}
    if attribution is not None:
        head |= {
            "gap": _finite(attribution.gap),
            "flags": list(attribution.flags),
            "target": explained(attribution, verdict),
            "copied": _finite(attribution.copy_share),
        }
    if rollout is not None:
        head |= {name: getattr(rollout, name) for name in ("step", "reward", "advantage", "uniform")}
        head |= {} if rollout.gap is None else {"gap": rollout.gap}
    return head


def _body(entry: Entry, measures: Sequence[str]) -> dict[str, Any]:
    trace = entry.trace
    cuts = _cuts(entry)
    body: dict[str, Any] = {
        "problem": trace.problem,
        "text": trace.response,
        "lengths": [end - start for start, end in pairwise(cuts)],
        "blocks": list(entry.segments.boundaries),
        "views": [_view(name, entry.views[name]) if name in entry.views else None for name in measures],
    }
    kinds = trace.kinds
    if kinds is not None and len(kinds) == len(entry.segments):
        body["planted"] = list(kinds)
    if entry.suspect is not None:
        body["suspect"] = entry.suspect._asdict() | {"marked": entry.suspect.marked}
    body["tints"] = _tints(entry)
    return body


def _tints(entry: Entry) -> dict[str, Any]:
    """The numbers that tint tokens: their scores, or the weights and advantages that GRPO gave them."""
    tints: dict[str, Any] = {}
    if entry.attribution is not None:
        tints["score"] = {"centre": 0, **_scores(entry.attribution.scores_T)}
    if entry.credit is not None:
        tints["weight"] = {"centre": 1, "runs": _rounded(entry.credit.weights_T)}
        tints["advantage"] = {"centre": 0, "runs": _rounded(entry.credit.advantages_T)}
    return tints


def _view(name: str, view: View) -> dict[str, Any]:
    """The columns of a view, all numbers in full: the page selects by the same rule and must find the same sets."""
    scores = view.scores
    columns = {"strength": scores.strength_S, "consistency": scores.consistency_S}
    return {
        "boundaries": list(view.segments.boundaries),
        "kinds": _runs(view.segments.kinds_S),
        "reason": _runs(view.selection.reason_S),
        **{column: _shorter(values_S.double().tolist()) for column, values_S in columns.items()},
        "parts": {WORDS.get(name, name): part_S.tolist() for name, part_S in scores.parts.items()},
        **_share(scores),
        **({"contrast": True} if is_contrast(name, view) else {}),
    }


def _share(scores: SegmentScores) -> dict[str, Any]:
    """The total of the strengths where shares are exactly strength / total, else the shares.

    This halves the size of a token measure.
    """
    positive_S = scores.strength_S.double().clamp_min(0)
    total = positive_S.sum()
    if total > 0 and torch.equal(positive_S / total, scores.share_S.double()):
        return {"share": None, "total": float(total)}
    return {"share": _shorter(scores.share_S.double().tolist())}


def _runs(column: Sequence[Any]) -> list[tuple[Any, int]]:
    return [(value, len(list(run))) for value, run in groupby(column)]


def _shorter(column: list) -> Any:
    """The column, or its one value where all are equal."""
    return column[0] if column and all(value == column[0] for value in column) else column


def _scores(scores_T: Tensor) -> dict[str, Any]:
    largest = float(scores_T.abs().max()) if len(scores_T) else 0.0
    if largest == 0:
        return {"unit": 0.0, "levels": [0] * len(scores_T)}
    return {"unit": largest / LEVELS, "levels": (scores_T.double() / largest * LEVELS).round().to(torch.int64).tolist()}


def _rounded(values_T: Tensor) -> list[tuple[float, int]]:
    """Runs of values to five digits; values are mostly the same over a segment."""
    return _runs([float(f"{value:.5g}") for value in values_T.tolist()])


def _cuts(entry: Entry) -> list[int]:
    """The start of each token and the end of the last one, in JavaScript's UTF-16 units.

    A character that is spread over several tokens is shown by the first of them, and the others show nothing.
    """
    units = [0, *accumulate(2 if ord(character) > 0xFFFF else 1 for character in entry.trace.response)]
    return [0, *(units[end] for end in entry.ends_T)]


def _finite(value: float | None) -> float | None:
    return value if value is not None and isfinite(value) else None

"""The commands `show` and `report`: a trace in the terminal, many on a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from segrl.commands.common import plain, say, tokenised, trace_of, verdicts
from segrl.commands.config import ConfigError, needed
from segrl.data import records
from segrl.data.files import Row, require, write_text
from segrl.data.shards import by_id
from segrl.types import Attribution, Segments, TokenisedTrace

if TYPE_CHECKING:
    from segrl.grading import Verdict
    from segrl.importance.misleading import Suspect
    from segrl.report import Entry, View


def show(config: DictConfig) -> None:
    """Print one trace, with its selection and its attribution where given."""
    from segrl.report import draw, terminal

    selections = [config.selections] if config.selections else []
    [entry] = _entries([trace_of(config)], selections, config.attributions)
    draw(terminal(entry))


def report(config: DictConfig) -> None:
    """Write all traces and rollouts, their scores and selections as one HTML file that opens anywhere."""
    from segrl.report import curves_of, load_metrics, load_rollouts, measures_of, page
    from segrl.selection import check_shares

    (out,) = needed(config, "out")
    if not config.traces and not config.rollouts:
        raise ConfigError("traces or rollouts must be given: traces=..., or what segrl.dump_dir holds as rollouts=...")
    paths = config.selections
    selections = [paths] if isinstance(paths, str) else list(paths or [])
    check_shares(config)
    entries = _entries(tokenised(config), selections, config.attributions) if config.traces else []
    rollouts = load_rollouts(config.rollouts, limit=config.limit) if config.rollouts else []
    path = config.traces or config.rollouts
    if not entries and not rollouts:
        raise ValueError(f"{path} holds no trace to look at")
    curves = curves_of(rollouts, load_metrics(config.metrics) if config.metrics else None)
    html = page([*entries, *rollouts], plain(config), config.title or f"segrl report: {Path(path).name}", curves)
    write_text(out, html)
    right = sum(entry.verdict is not None and entry.verdict.correct for entry in entries)
    measures = ", ".join(measures_of([*entries, *rollouts])) or "none"
    counts = f"{len(entries)} traces, {right} right" + (f", {len(rollouts)} rollouts" if rollouts else "")
    say(f"{counts}, measures: {measures}, {Path(out).stat().st_size / 1e6:.1f} MB -> {out}")


def _entries(traces: Sequence[TokenisedTrace], selections: Sequence[str], attributions: str | None) -> list[Entry]:
    """Each trace with its verdict, selections and attribution; without selections the attribution is scored here."""
    from segrl.report import Entry
    from segrl.segmentation import segment

    names = _names(selections)
    rows = {name: _selected(path) for name, path in zip(names, selections, strict=True)}
    made = {name: records.how_made(path) for name, path in zip(names, selections, strict=True)}
    for name, selected in rows.items():
        if not any(trace.id in selected for trace in traces):
            raise ValueError(f"{name} has no selection of any of these {len(traces)} traces; select from these traces")
    scored = by_id(attributions, records.ATTRIBUTIONS) if attributions else {}
    entries = []
    for trace, verdict in zip(traces, _verdicts(traces), strict=True):
        mine = {name: rows[name][trace.id] for name in names if trace.id in rows[name]}
        views = {name: _view(trace, row, made[name]) for name, row in mine.items() if not row["error"]}
        attribution = _attribution(trace, scored)
        segments = next((view.segments for view in views.values() if len(view.segments) < trace.tokens), None)
        segments = segments or segment(trace)
        if attribution is not None and not names:
            views = {"contribution": _scored(segments, attribution)}
        suspect = _suspect(trace, segments, views) if verdict is not None and verdict.wrong else None
        entries.append(Entry(trace, segments, verdict, attribution, views, suspect=suspect))
    return entries


def _names(paths: Sequence[str]) -> list[str]:
    """Short names of files: their stems, whole paths where two share one."""
    stems = [Path(path).stem for path in paths]
    return [path if stems.count(stem) > 1 else stem for path, stem in zip(paths, stems, strict=True)]


def _selected(path: str) -> dict[str, Row]:
    """The rows of the selections by their trace's id, with the parts of their strengths where the file has them."""
    rows = by_id(path)
    require(records.SELECTIONS, next(iter(rows.values())), path)
    return rows


def _view(trace: TokenisedTrace, row: Row, made: Row) -> View:
    """The view of a selection; ``made`` is the note beside the file, of which a measure and a target are told."""
    from segrl.report import View

    records.check_identity(trace, row, "selection")
    columns = records.segments_of(row), records.scores_of(row), records.selection_of(row)
    return View(*columns, made.get("measure"), made.get("target"))


def _suspect(trace: TokenisedTrace, segments: Segments, views: Mapping[str, View]) -> Suspect | None:
    """The suspect of a wrong response; None where not all three readings of its contrast are among the views."""
    import torch

    from segrl.importance.misleading import READINGS, misled
    from segrl.report.entries import is_contrast

    contrasts = {view.measure or name: view for name, view in views.items() if is_contrast(name, view)}
    scored = [contrasts[read.__name__] for read in READINGS if read.__name__ in contrasts]
    if len(scored) < len(READINGS) or any(view.segments != segments for view in scored):
        return None
    return misled(trace, segments, torch.stack([view.scores.strength_S[segments.thought_S] for view in scored]))


def _attribution(trace: TokenisedTrace, rows: Mapping[str, Row]) -> Attribution | None:
    """The trace's attribution; None where there is none or it failed, which `segrl attribute` has reported."""
    row = rows.get(trace.id)
    if row is None or row["error"]:
        return None
    records.check_identity(trace, row, "attribution")
    return records.attribution_of(row)


def _scored(segments: Segments, attribution: Attribution) -> View:
    from segrl.importance import score
    from segrl.report import View
    from segrl.selection import select

    scores = score(attribution, segments, "contribution")
    return View(segments, scores, select(scores))


def _verdicts(traces: Sequence[TokenisedTrace]) -> list[Verdict | None]:
    """The verdict on each trace, None where it has no gold answer."""
    answered = [trace for trace in traces if trace.answer is not None]
    by_trace = dict(zip((trace.id for trace in answered), verdicts(answered), strict=True))
    return [by_trace.get(trace.id) for trace in traces]

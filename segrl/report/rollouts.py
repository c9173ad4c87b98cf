"""Entries of the page from the rollout dump of ``segrl grpo segrl.dump_dir=...``: a response of each step.

docs/metrics.md says what a line holds. Tokens have no scores there; the page shows their weights and advantages.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from segrl.report.entries import Entry, RolloutView, View
from segrl.types import Segments, SegmentScores, Selection, Trace

Line = dict[str, Any]
# The end of a UUID; verl draws one for each prompt and step, and its first eight digits are enough.
UUID = re.compile(r"(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")


def load_rollouts(path: str | Path, limit: int | None = None) -> list[Entry]:
    """The first ``limit`` rollouts of one ``<step>.jsonl``, or of all in a folder, step by step."""
    return [_entry(line, step) for step, line in islice(_lines(Path(path)), limit)]


def _lines(path: Path) -> Iterator[tuple[int, Line]]:
    files = [file for file in path.glob("*.jsonl") if file.stem.isdigit()] if path.is_dir() else [path]
    if not files or not all(file.stem.isdigit() for file in files):
        raise ValueError(
            f"{path} is no rollout dump; expected <step>.jsonl, as segrl.dump_dir= writes, or their folder"
        )
    for file in sorted(files, key=lambda file: int(file.stem)):
        with file.open(encoding="utf-8") as lines:
            for number, text in enumerate(lines, 1):
                yield int(file.stem), _parsed(text, f"{file}, line {number}")


def _parsed(text: str, where: str) -> Line:
    try:
        line = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is no JSON ({error}); was the training stopped while it wrote?") from error
    missing = [name for name in ("key", "response", "offsets", "boundaries", "weights") if name not in line]
    if missing:
        raise ValueError(f"{where} has no {missing[0]!r}: no dump of segrl.dump_dir, it holds {', '.join(line)}")
    return line


def _entry(line: Line, step: int) -> Entry:
    segments = Segments(tuple(line["boundaries"]), tuple(line["kinds"]))
    rollout = RolloutView(
        step=step,
        prompt=line.get("prompt") or line["group"],
        reward=line["reward"],
        advantage=line["advantage"],
        uniform=line["uniform"],
        gap=line["gap"],
        weights_T=torch.tensor(line["weights"]),
        advantages_T=torch.tensor(line["advantages"]),
    )
    views = {"grpo": _view(line, segments)} if line["strength"] else {}
    offsets_T = torch.tensor(line["offsets"])
    return Entry(_trace(line, step), segments, views=views, credit=rollout, offsets_T=offsets_T)


def _trace(line: Line, step: int) -> Trace:
    """The trace of a response as text: the dump has no ids."""
    return Trace(
        id=f"step {step}, {line['key'].removeprefix(line['group'] + '_')} of {UUID.sub('', line['group'])}",
        problem=line.get("prompt", ""),
        response=line["response"],
        answer=line["answer"],
    )


def _view(line: Line, segments: Segments) -> View:
    """The view of a line; under a token measure each token is a segment."""
    pieces = segments if len(line["strength"]) == len(segments) else segments.by_token
    columns: dict[str, Any] = {
        f"{name}_S": torch.tensor(line[name], dtype=torch.float64) for name in ("strength", "share", "consistency")
    }
    scores = SegmentScores(
        **columns,
        tokens_S=pieces.tokens_S,
        thought_S=pieces.thought_S,
        segment_T=segments.index_T if len(pieces) != len(segments) else None,
    )
    selection = Selection(torch.tensor(line["keep"], dtype=torch.bool), tuple(line["reason"]))
    return View(pieces, scores, selection, target=line.get("target"))

"""What the grading benchmarks share: a case, and how tables are printed."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Case:
    """``pred`` is an extracted answer, or with ``whole`` a response to find it in."""

    gold: str
    pred: str
    equal: bool
    whole: bool = False

    @property
    def response(self) -> str:
        return self.pred if self.whole else f"\\boxed{{{self.pred}}}"


def rows(path: Path) -> Iterator[dict]:
    yield from (json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line)


def progress(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


def markdown(table: dict[str, dict]) -> str:
    columns = list(dict.fromkeys(column for row in table.values() for column in row))
    lines = [f"| | {' | '.join(columns)} |", "|---|" + "---|" * len(columns)]
    for name, row in table.items():
        lines.append(f"| {name} | {' | '.join(str(row.get(column, '')) for column in columns)} |")
    return "\n".join(lines)

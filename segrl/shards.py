"""A folder of parquet shards that a long job appends to, so that the same command goes on where it stopped.

Each shard is written whole or not at all. ``settings.json`` says what the job was; another job may not go on in it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from segrl.data import read_rows, write_rows


class Shards:
    def __init__(self, folder: str | Path, settings: Mapping[str, Any], key: Sequence[str] = ("id",)) -> None:
        self.folder = Path(folder)
        self.key = tuple(key)
        self._claim(json.loads(json.dumps(settings)))
        self.done = {self._key(row) for part in self._parts() for row in read_rows(part, self.key)}

    def append(self, rows: Sequence[dict]) -> None:
        write_rows(self.next_part, rows)
        self.done |= {self._key(row) for row in rows}

    @property
    def next_part(self) -> Path:
        return self.folder / f"part-{len(self._parts()):05d}.parquet"

    def read(self) -> list[dict]:
        return [row for part in self._parts() for row in read_rows(part)]

    def _key(self, row: dict) -> tuple:
        return tuple(row[name] for name in self.key)

    def _parts(self) -> list[Path]:
        return sorted(self.folder.glob("part-*.parquet"))

    def _claim(self, settings: dict) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / "settings.json"
        if not file.exists():
            partial = file.with_suffix(".partial")
            partial.write_text(json.dumps(settings, indent=1) + "\n")
            partial.replace(file)
            return
        there = json.loads(file.read_text())
        changed = sorted(name for name in {*there, *settings} if there.get(name) != settings.get(name))
        if changed:
            name = changed[0]
            raise ValueError(
                f"{self.folder} holds the beginning of another job: {name} was {there.get(name)!r}, now "
                f"{settings.get(name)!r}; choose another out=, or remove the folder"
            )

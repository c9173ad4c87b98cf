"""A folder of parquet shards that a long job fills, so that the same command goes on where it stopped.

The job's items are cut into groups beforehand; group i becomes shard i, written whole or not at all. Interruptions and
the order in which groups finish therefore do not change the finished folder. ``settings.json`` says what the job is;
another job may not go on in its folder.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from segrl.data import read_rows
from segrl.data.files import write_text
from segrl.types import Trace

HASH = re.compile("[0-9a-f]{16}")
T = TypeVar("T", bound=Trace)


class Shards(Generic[T]):
    def __init__(self, folder: str | Path, settings: Mapping[str, Any], items: Sequence[T], size: int) -> None:
        if size < 1:
            raise ValueError(f"shard={size}, expected 1 or more traces in a shard")
        self.folder = Path(folder)
        self.items = len(items)
        self.groups = [items[i : i + size] for i in range(0, len(items), size)]
        ids = hashlib.sha256("\n".join(item.id for item in items).encode("utf-8", "surrogatepass")).hexdigest()[:16]
        self._claim({**json.loads(json.dumps(settings)), "items": self.items, "ids": ids, "shard": size})

    def todo(self) -> Iterator[tuple[int, Sequence[T]]]:
        """The groups that have no shard yet."""
        return ((i, group) for i, group in enumerate(self.groups) if not self.part(i).exists())

    def clear(self) -> None:
        """Delete the shards and ``settings.json``, so that another job may begin in the folder."""
        for i in range(len(self.groups)):
            self.part(i).unlink(missing_ok=True)
        (self.folder / "settings.json").unlink()

    @property
    def done(self) -> int:
        """How many items lie in finished shards."""
        return sum(len(group) for i, group in enumerate(self.groups) if self.part(i).exists())

    def part(self, i: int) -> Path:
        return self.folder / f"part-{i:05d}.parquet"

    def _claim(self, settings: dict) -> None:
        changed = claim(self.folder / "settings.json", settings)
        if changed:
            name = min(changed)
            old, new = changed[name]
            kind = " (hashes of their content)" if all(HASH.fullmatch(str(value)) for value in (old, new)) else ""
            raise ValueError(
                f"{self.folder} holds the beginning of another job: {name} was {old!r}, now "
                f"{new!r}{kind}; choose another out=, or remove the folder"
            )


def claim(file: Path, settings: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Each setting that differs from those in the file, as (old, new); settings are written where there is no file."""
    if not file.exists():
        write_text(file, json.dumps(settings, indent=1) + "\n")
        return {}
    try:
        saved = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is not JSON ({error}), so nothing says what the job is; remove the folder") from error
    pairs = {name: (saved.get(name), settings.get(name)) for name in {**saved, **settings}}
    return {name: (old, new) for name, (old, new) in pairs.items() if old != new}


def read_shards(folder: str | Path, columns: Sequence[str] | None = None) -> list[dict]:
    """The rows of all shards, in the job's order, or some columns of them; also of a single file."""
    path = Path(folder)
    parts = sorted(path.glob("part-*.parquet")) if path.is_dir() else [path]
    if not parts:
        raise ValueError(f"{path} holds no part-*.parquet; was the job that writes it started?")
    return [row for part in parts for row in read_rows(part, columns)]


def by_id(folder: str | Path, columns: Sequence[str] | None = None) -> dict[str, dict]:
    """The rows by their trace's id, all or some columns of them."""
    return {row["id"]: row for row in read_shards(folder, columns)}

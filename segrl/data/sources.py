"""Where rows come from: a file, a folder, a glob, or a dataset on the hub."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator
from pathlib import Path

from segrl.data.files import ENDINGS, Row, iter_rows

HUB_ID = re.compile(r"(?P<id>\w[\w.-]*/\w[\w.-]*)(:(?P<config>[\w.-]+))?")
# What a message calls the row, the id of a row that brings none, and the row.
Located = tuple[str, str, Row]


def located_rows(source: str | os.PathLike, split: str | None = None) -> Iterator[Located]:
    """The rows of a file, folder, glob or hub id, each with its place for messages and a fallback id."""
    path = Path(source).expanduser()
    if path.exists() or glob.has_magic(str(source)):
        for file in data_files(path, split):
            for number, row in iter_rows(file):
                yield f"{file} row {number}", f"{file.stem}-{number - 1}", row
    elif path.suffix.lower() not in ENDINGS and (match := HUB_ID.fullmatch(str(source))):
        if path.parent.is_dir() and not match["config"]:
            raise FileNotFoundError(
                f"the folder {str(path.parent)!r} (in {Path.cwd()}) holds no {path.name!r}; check the spelling. If a "
                f"dataset on the hub is meant, add its config: {source}:default"
            )
        yield from hub_rows(match["id"], match["config"], split)
    else:
        raise FileNotFoundError(
            f"{str(source)!r} is neither a file, folder or glob here (looked in {Path.cwd()}) "
            "nor a hub id such as owner/name or owner/name:config; check the spelling"
        )


def data_files(path: Path, split: str | None = None) -> list[Path]:
    """The jsonl and parquet files a path means, sorted; in a folder or glob, ``split`` keeps those named after it."""
    if path.is_file():
        if split is not None:
            raise ValueError(f"{path} is one file and has no split {split!r}; leave split out, or give the folder")
        return [path]
    entries = sorted(path.iterdir() if path.is_dir() else map(Path, glob.glob(str(path), recursive=True)))
    files = [file for file in entries if file.suffix.lower() in ENDINGS and not file.name.startswith(".")]
    if not files:
        names = ", ".join(file.name for file in entries[:8]) or "nothing"
        raise FileNotFoundError(f"{path} holds no .jsonl or .parquet file (found: {names}); give the folder that does")
    chosen = [file for file in files if split is None or _is_of_split(file, split)]
    if not chosen:
        names = ", ".join(file.name for file in files[:8])
        raise ValueError(f"{path} has no file of the split {split!r}; its files are {names}")
    return chosen


def hub_rows(hub_id: str, config: str | None, split: str | None) -> Iterator[Located]:
    """The rows of a hub dataset; without ``split`` it must have a single one."""
    dataset = _load_dataset(hub_id, config, split)
    if split is None:
        if len(dataset) != 1:
            raise ValueError(f"{hub_id} has the splits {', '.join(dataset)}; say which one: split=...")
        [(split, dataset)] = dataset.items()
    for number, row in enumerate(dataset, 1):
        yield f"{hub_id} ({split}) row {number}", f"{hub_id.split('/')[1]}-{number - 1}", row


def _load_dataset(hub_id: str, config: str | None, split: str | None):
    # Heavy to import, and only hub ids need it.
    try:
        from datasets import exceptions, load_dataset
    except ImportError as error:
        raise ValueError(f"to load {hub_id} from the hub, pip install datasets; or give a local file") from error
    try:
        return load_dataset(hub_id, config, split=split)
    except (OSError, ValueError, exceptions.DatasetsError) as error:
        raise ValueError(
            f"{hub_id!r} is no file or folder here, and as a hub dataset (config {config}, split {split}) it did not "
            f"load: {error}. Check the name, the network and your access, or give a local file"
        ) from error


def _is_of_split(file: Path, split: str) -> bool:
    """Whether the file is named after the split: ``train.jsonl``, ``train-00000-of-00002.parquet``."""
    return file.stem == split or file.stem.startswith(f"{split}-")

"""Files of rows, one dict a row, as jsonl or parquet: errors name file and row, a file is written whole or not at all.

Rows are counted from 1 in messages, so that a jsonl row is the line an editor shows.
"""

from __future__ import annotations

import codecs
import json
import os
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from difflib import get_close_matches
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from segrl.text.decoding import LONE_SURROGATE

Row = dict[str, Any]
ENDINGS = (".jsonl", ".parquet")
BATCH = 1024


def iter_rows(path: str | os.PathLike, columns: Sequence[str] | None = None) -> Iterator[tuple[int, Row]]:
    """The rows of a jsonl or parquet file with their numbers; a file without rows is an error."""
    reader = {".jsonl": _jsonl_rows, ".parquet": _parquet_rows}[ending(path)]
    empty = True
    for numbered_row in reader(Path(path), columns):
        empty = False
        yield numbered_row
    if empty:
        raise ValueError(f"{path} holds no rows; was it written to the end?")


def read_rows(path: str | os.PathLike, columns: Sequence[str] | None = None) -> list[Row]:
    """All rows of a jsonl or parquet file; with ``columns``, these columns alone, each of which must be there."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} is no file here; expected a .jsonl or .parquet file of rows")
    return [row for _, row in iter_rows(path, columns)]


def write_rows(path: str | os.PathLike, rows: Sequence[Row], schema: pa.Schema | None = None) -> None:
    """Write rows of equal columns as parquet or jsonl, by the file's ending; a failure leaves what stood there.

    Tensors become lists. Parquet stores a nested dict as a struct: give it the same keys in every row.
    """
    kind = ending(path)
    if not rows:
        raise ValueError(f"there are no rows to write to {path}; a file without rows could not be read back")
    for number, row in enumerate(rows, 1):
        if row.keys() != rows[0].keys():
            raise ValueError(
                f"row {number} for {path} has the columns {list(row)}, row 1 has {list(rows[0])}; "
                "give every row the same columns, None where there is no value"
            )
    rows = [{name: _as_list(value) for name, value in row.items()} for row in rows]
    write = {".jsonl": _write_jsonl, ".parquet": _write_parquet}[kind]
    try:
        write(path, rows, schema)
    except UnicodeEncodeError:
        for number, row in enumerate(rows, 1):
            refuse_surrogates(row, f"row {number} for {path}")
        raise


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """A binary file that takes the place of ``path`` once it is whole and on disk; until then ``path`` is untouched."""
    target = Path(os.path.realpath(path))  # a link stays a link: what it points to is replaced
    draft = target.with_name(f".{target.name}.{uuid4().hex[:8]}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(draft, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, target)
    except OSError as error:
        message = f"{path} was not written ({error.strerror or error}); what stood there before is untouched"
        raise OSError(error.errno, message) from error
    finally:
        if draft.exists():
            draft.unlink()
    _sync_folder(target.parent)


@contextmanager
def replacing_folder(path: str | os.PathLike, mark: str) -> Iterator[Path]:
    """An empty folder that takes the place of ``path`` once it is whole; until then ``path`` is untouched. A folder at
    ``path`` must be empty or hold the file ``mark``.
    """
    target = Path(os.path.realpath(path))  # a link stays a link, as in ``replacing``
    if target.exists() and not (target / mark).exists() and any(target.iterdir()):
        raise FileExistsError(f"{path} holds other files and no {mark}; give another out=, or remove the folder")
    draft, old = target.with_name(f".{target.name}.partial"), target.with_name(f".{target.name}.old")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        draft.mkdir(parents=True)
        yield draft
        shutil.rmtree(old, ignore_errors=True)
        if target.exists():
            target.replace(old)  # not removed: a part of it might stay, and leave no place
        draft.replace(target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write the whole text, or leave the file as it was."""
    with replacing(path) as file:
        file.write(text.encode())


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Write the value as JSON, whole or not at all; dataclasses in it become objects of their fields."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, default=asdict) + "\n")


def ending(path: str | os.PathLike) -> str:
    """``.jsonl`` or ``.parquet``, or an error."""
    suffix = Path(path).suffix.lower()
    if suffix not in ENDINGS:
        raise ValueError(
            f"{path} ends in {suffix or 'nothing'}; give a file whose name ends in "
            ".jsonl (one JSON object a line) or .parquet"
        )
    return suffix


def refuse_surrogates(row: Row, where: str) -> None:
    """Raise where a text holds half a surrogate pair: no tokenizer takes it and no UTF-8 file holds it."""
    for name, value in row.items():
        if match := LONE_SURROGATE.search(json.dumps({name: value}, ensure_ascii=False, default=str)):
            raise ValueError(
                f"{where}: column {name!r} holds the lone surrogate \\u{ord(match[0]):04x}, half of a character "
                "that was cut in two; write the whole pair, or remove it from the text"
            )


def _jsonl_rows(path: Path, columns: Sequence[str] | None) -> Iterator[tuple[int, Row]]:
    # Read as bytes, a line ends at "\n" alone; str.splitlines would also split at U+2028 inside a string.
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            if line.strip():
                row = _json_object(line, f"{path} row {number}")
                require(columns, row, f"{path} row {number}")
                yield number, row if columns is None else {name: row[name] for name in columns}


def _json_object(line: bytes, where: str) -> Row:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{where} is not UTF-8 text (byte 0x{line[error.start]:02x} at {error.start}); "
            "expected one JSON object a line: is it a binary, compressed or parquet file, or cut off?"
        ) from error
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{where} is not JSON ({error}); expected one object a line: "
            "if the file is cut off there, write it again or remove that line"
        ) from error
    if not isinstance(row, dict):
        raise ValueError(f"{where} holds a {type(row).__name__}; expected one JSON object a line")
    if "\\u" in text:
        refuse_surrogates(row, where)
    return row


def _parquet_rows(path: Path, columns: Sequence[str] | None) -> Iterator[tuple[int, Row]]:
    number = 0
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            require(columns, file.schema_arrow.names, path)
            for batch in file.iter_batches(batch_size=BATCH, columns=columns):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path} cannot be read as parquet after row {number} ({error}); it is damaged, cut off or "
            "of another kind: write or download it again"
        ) from error


def require(columns: Sequence[str] | None, present: Collection[str], where: str | Path) -> None:
    """Refuse what lacks one of the columns."""
    for name in columns or ():
        if name not in present:
            near = get_close_matches(name, present, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{where} has no column {name!r}; its columns are {', '.join(present)}{hint}")


def _write_jsonl(path: str | os.PathLike, rows: Sequence[Row], _: pa.Schema | None) -> None:
    lines = [_json_line(row, f"row {number} for {path}") for number, row in enumerate(rows, 1)]
    with replacing(path) as file:
        file.writelines(lines)


def _json_line(row: Row, where: str) -> bytes:
    try:
        line = json.dumps(row, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{where} cannot be written as JSON ({error}); keep to numbers, strings, lists and dicts"
        ) from error
    return (line + "\n").encode("utf-8")


def _write_parquet(path: str | os.PathLike, rows: Sequence[Row], schema: pa.Schema | None) -> None:
    table = pa.table({name: _array(name, [row[name] for row in rows], path, schema) for name in rows[0]})
    try:
        with replacing(path) as file:
            pq.write_table(table, file, row_group_size=BATCH, write_page_checksum=True)
    except pa.ArrowNotImplementedError as error:
        raise ValueError(f"{path} was not written ({error}); parquet has no empty dict, give None instead") from error


def _array(name: str, values: list, path: str | os.PathLike, schema: pa.Schema | None) -> pa.Array | pa.ChunkedArray:
    try:
        return pa.array(values, type=schema and schema.field(name).type)
    except (pa.ArrowException, OverflowError) as error:
        raise ValueError(
            f"column {name!r} cannot be written to {path} ({error}); "
            "keep one kind of value in a column: numbers, strings, or lists or dicts of them"
        ) from error


def _as_list(value: Any) -> Any:
    return value.tolist() if isinstance(value, Tensor) else value


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

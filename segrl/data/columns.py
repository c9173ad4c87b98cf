r"""From the columns people use to a trace.

A column that is read in part (a GSM8K answer behind its derivation, a solution that gave only its ``\boxed{}``, the
first of several samples) stays in ``meta``, as does every column that is not read at all.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from decimal import Decimal

from segrl.data.files import Row
from segrl.data.saved import is_saved, trace_from_saved
from segrl.text.boxed import last_boxed
from segrl.text.prompting import USER_TEXT
from segrl.types import Trace

ID = ("id", "unique_id", "index", "idx")
PROBLEM = ("problem", "question", "Problem", "Question")
ANSWER = ("answer", "final_answer", "expected_answer", "Answer")
OPTIONAL = {*ID, *ANSWER, "response"}
THOUSANDS = re.compile(r"(?<=\d),(?=\d{3})")
# Dollars around a text that has none inside; "\$5" is money and "$a$ or $b$" loses its meaning without them.
DOLLARS = re.compile(r"\$+((?:[^$\\]|\\.)*)\$*|((?:[^$\\]|\\.)*?)\$+", re.DOTALL)


def trace_from_row(row: Row, where: str, fallback_id: str, with_response: bool = True) -> Trace:
    """The trace that a row describes in any of the known columns; ``where`` names the row in messages."""
    if is_saved(row):
        return trace_from_saved(row, where)
    rest = _flattened(row, where)
    problem = _problem(rest, where)
    answer, source = _answer(rest, where)
    if with_response and "response" in row:
        rest.setdefault("response", "")  # an empty response, not one that stands in another column
    response = _response(rest, where, solution_is_free=source != "solution") if with_response else ""
    name = first_filled(rest, ID)
    id = _text(rest.pop(name), name, where) if name else fallback_id
    meta = rest.pop("meta") if isinstance(rest.get("meta"), dict) else {}
    return Trace(id=id, problem=problem, response=response, answer=answer, meta={**meta, **rest})


def first_filled(row: Row, names: Iterable[str]) -> str | None:
    """The first of these columns that holds something: not None, NaN, blank text or an empty list."""
    return next((name for name in names if not _blank(row.get(name))), None)


def clean_answer(text: str) -> str:
    """An answer without the dollars around it."""
    text = text.strip()
    match = DOLLARS.fullmatch(text)
    return (match[1] or match[2] or "").strip() if match else text


def _blank(value: object) -> bool:
    return value is None or value == [] or value != value or (isinstance(value, str) and not value.strip())


def _flattened(row: Row, where: str) -> Row:
    """Chat messages and verl's nested columns as plain ones, where the plain ones are missing."""
    rest = {name: value for name, value in row.items() if name not in OPTIONAL or not _blank(value)}
    if isinstance(rest.get("messages"), list) and not (first_filled(rest, PROBLEM) and "response" in rest):
        _open_chat(rest, "messages", where)
    if isinstance(rest.get("prompt"), list) and not first_filled(rest, PROBLEM):
        _open_chat(rest, "prompt", where)
    _fill_from(rest, "reward_model", "ground_truth", ANSWER)
    _fill_from(rest, "extra_info", "id", ID)
    return rest


def _fill_from(row: Row, column: str, key: str, names: tuple[str, ...]) -> None:
    """Take ``row[column][key]`` for the first of ``names`` where none of them is there."""
    nested = row.get(column)
    if isinstance(nested, dict) and not first_filled(row, names) and not _blank(nested.get(key)):
        row[names[0]] = nested[key]


def _open_chat(row: Row, name: str, where: str) -> None:
    messages = row[name]
    if not all(isinstance(m, dict) and isinstance(m.get("content"), str) and "role" in m for m in messages):
        raise ValueError(f"{where}: {name!r} must be a list of {{role, content}} with text as content")
    users = [m["content"] for m in messages if m["role"] == "user"]
    replies = [m["content"] for m in messages if m["role"] == "assistant"]
    if len(users) != 1:
        raise ValueError(
            f"{where}: {name!r} has {len(users)} user messages; a trace is one problem and one response, "
            "so write one row for each"
        )
    taken = 0
    if not first_filled(row, PROBLEM):
        row["problem"] = _without_instruction(users[0])
        taken += 1
    if replies and "response" not in row:
        row["response"] = replies[-1]
        taken += 1
    if taken == len(messages):
        del row[name]


def _without_instruction(content: str) -> str:
    """The problem of a user message that prompting rendered, so that rendering again does not ask twice."""
    before, after = USER_TEXT.split("{problem}")
    return content.removeprefix(before.format()).removesuffix(after.format())


def _problem(row: Row, where: str) -> str:
    if name := first_filled(row, PROBLEM):
        return _text(row.pop(name), name, where)
    if present := [name for name in PROBLEM if name in row]:
        raise ValueError(f"{where}: the problem (column {present[0]!r}) is empty; fill it in or remove the row")
    raise ValueError(
        f"{where} has no problem: expected a column {', '.join(PROBLEM)}, or chat messages; "
        f"found {', '.join(map(str, row)) or 'no columns'}. Rename the column that holds it"
    )


def _answer(row: Row, where: str) -> tuple[str | None, str | None]:
    """The answer and the column it came from."""
    if name := first_filled(row, ANSWER):
        parts = row[name] if isinstance(row[name], list) else [row[name]]
        texts = [_text(part, name, where) for part in parts]
        inside = [_stated_answer(text) for text in texts]
        if not any(inside):
            del row[name]
        return ", ".join(clean_answer(stated or text) for stated, text in zip(inside, texts, strict=True)), name
    solution = row.get("solution")
    stated = _stated_answer(solution) if isinstance(solution, str) else None
    return (clean_answer(stated), "solution") if stated else (None, None)


def _stated_answer(text: str) -> str | None:
    r"""The answer inside a longer text: its last ``\boxed{}``, or what follows ``####`` in its last line."""
    if boxed := last_boxed(text):
        return boxed
    last_line = text.rstrip().rpartition("\n")[2]
    return THOUSANDS.sub("", last_line.rpartition("####")[2].strip()) if "####" in last_line else None


def _response(row: Row, where: str, solution_is_free: bool) -> str:
    """``response``; else the first sample in ``code``; else ``solution``, unless the answer was read out of it."""
    if "response" in row:
        return _text(row.pop("response"), "response", where)
    samples = row.get("code")
    if isinstance(samples, list) and samples:
        if len(samples) == 1:
            del row["code"]
        return _text(samples[0], "code", where)
    if solution_is_free and isinstance(row.get("solution"), str):
        return row.pop("solution")
    return ""


def _text(value: object, column: str, where: str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, (int, float, Decimal)):
        return str(value)
    if isinstance(value, list) and len(value) == 1:
        return _text(value[0], column, where)
    size = f" of {len(value)}" if isinstance(value, (list, dict)) else ""
    raise ValueError(
        f"{where}: column {column!r} holds a {type(value).__name__}{size}, expected text or a number; "
        "write one row for each, or rename the column"
    )

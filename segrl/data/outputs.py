"""What evaluation tools and trainers save, as traces, one a response. The columns tell the format.

Every trace's ``meta`` has ``problem_id`` and ``sample``, and ``tokens``, ``finish``, ``level`` and ``prompt`` where the
file has them. Verdicts in such files are not read.
"""

from __future__ import annotations

import ast
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from segrl.data.files import Row
from segrl.data.saved import SCHEMA
from segrl.data.sources import Located, located_rows
from segrl.data.traces import collect, first, with_problem_ids
from segrl.types import Trace


def load_outputs(path: str | os.PathLike, limit: int | None = None) -> tuple[str, list[Trace]]:
    """The format of a file, folder or glob, and its traces; ``limit`` counts rows, which may hold many responses."""
    formats: Counter[str] = Counter()
    traces = with_problem_ids(collect(_responses(first(located_rows(path), limit), formats)))
    return " and ".join(formats), traces


def detect(row: Row, where: str) -> str:
    """The format of a row."""
    for name, (columns, _) in FORMATS.items():
        if all(any(column in row for column in alternatives) for alternatives in columns):
            return name
    formats = {name: columns for name, (columns, _) in FORMATS.items() if name != "segrl traces"}
    known = "; ".join(f"{' + '.join('|'.join(c) for c in columns)} ({name})" for name, columns in formats.items())
    raise ValueError(
        f"{where} has the columns {', '.join(map(str, row)) or 'none'}, and no format of saved outputs has these; "
        f"expected problem + answer + response, or {known}"
    )


def _responses(rows: Iterable[Located], formats: Counter[str]) -> Iterator[Located]:
    """Every response as a row with the columns of a trace, samples of one problem numbered as they come."""
    samples: Counter[str] = Counter()
    for where, fallback_id, row in rows:
        name = detect(row, where)
        formats[name] += 1
        read = FORMATS[name][1]
        if read is None:
            yield where, fallback_id, row
            continue
        for response in _read(read, row, name, where):
            problem_id = str(fallback_id if response["problem_id"] is None else response["problem_id"])
            meta = {name: value for name, value in response.items() if name not in TRACE and value is not None}
            meta |= {"problem_id": problem_id, "sample": samples[problem_id]}
            samples[problem_id] += 1
            trace = {name: response[name] for name in TRACE}
            yield where, fallback_id, {"id": f"{problem_id}#{meta['sample']}", **trace, "meta": meta}


def _read(read: Callable[[Row], list[Row]], row: Row, name: str, where: str) -> list[Row]:
    try:
        return read(row)
    except (KeyError, TypeError, IndexError, ValueError, SyntaxError) as error:
        raise ValueError(f"{where} has the columns of {name}, but holds something else in them ({error!r})") from error


# --- one function a format: a row -> its responses -------------------------------------------------------------------


def _lighteval(row: Row) -> list[Row]:
    doc, output = row["doc"], row["model_response"]
    golds = [doc["choices"][i] for i in _listed(doc["gold_index"])]
    question = {"problem_id": doc.get("id"), "problem": doc["query"], "answer": golds}
    question["prompt"] = _rendered(output.get("input"))
    return _with_lengths(question, output["text"], output.get("output_tokens"))


def _lighteval_old(row: Row) -> list[Row]:
    golds = _listed(row["gold"]) or [_listed(row["choices"])[i] for i in _listed(row["gold_index"])]
    question = {"problem_id": None, "problem": row.get("example") or row["full_prompt"], "answer": golds}
    question["prompt"] = _rendered(row.get("full_prompt"))
    return _with_lengths(question, _listed(row["predictions"]), _listed(row.get("cont_tokens")))


def _verl(row: Row) -> list[Row]:
    # A dump has no ids; the same prompt is the same problem.
    problem_id = hashlib.sha256(row["input"].encode("utf-8", "surrogatepass")).hexdigest()[:12]
    gold = row["gts"] if "gts" in row else row["gt"]
    question = {"problem_id": problem_id, "problem": row["input"], "answer": gold}
    ending = {"prompt": row["input"], "finish": row.get("finish") or None}
    return [{**question, **ending, "response": row["output"], "step": row.get("step")}]


def _qwen(row: Row) -> list[Row]:
    gold = row["gt"] if row.get("gt") not in (None, "") else row["answer"]
    question = {"problem_id": row.get("idx"), "problem": row["question"], "answer": gold, "level": row.get("level")}
    codes = row["code"] if isinstance(row["code"], list) else [row["code"]]
    return [{**question, "response": response} for response in codes]


def _with_lengths(question: Row, texts: list[str], tokens: list[Any] | None) -> list[Row]:
    """A row for each text, with its number of tokens where there are token ids for each text."""
    nested = [part for part in tokens or () if isinstance(part, list)]
    ids = [sequence for part in nested for sequence in (part if part and isinstance(part[0], list) else [part])]
    lengths = [len(sequence) for sequence in ids] if len(ids) == len(texts) else [None] * len(texts)
    return [{**question, "response": text, "tokens": length} for text, length in zip(texts, lengths, strict=True)]


def _rendered(prompt: Any) -> str | None:
    """The prompt where it is rendered text, whose end may open the thought; None for a chat."""
    return prompt if isinstance(prompt, str) else None


def _listed(value: Any) -> list:
    """A value as a list; some versions write a list of texts as Python prints it."""
    if isinstance(value, str) and value[:2] in ("['", '["'):
        value = ast.literal_eval(value)
    return value if isinstance(value, list) else [] if value is None else [value]


TRACE = ("problem", "answer", "response")
# name -> (the columns that tell it, each with its alternatives; how a row is read, None where it is a trace already)
FORMATS: dict[str, tuple[tuple[tuple[str, ...], ...], Callable[[Row], list[Row]] | None]] = {
    "segrl traces": (tuple((name,) for name in SCHEMA.names), None),
    "lighteval details": ((("doc",), ("model_response",)), _lighteval),
    "lighteval details, old layout": ((("predictions",), ("gold",)), _lighteval_old),
    "a verl rollout dump": ((("input",), ("output",), ("gts", "gt")), _verl),
    "Qwen2.5-Math outputs": ((("question",), ("code",), ("gt", "answer")), _qwen),
    "one response a row": ((("response", "messages", "solution"),), None),
}

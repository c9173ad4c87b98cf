"""The benchmarks of the literature as traces without responses."""

from __future__ import annotations

import os
import random
from pathlib import Path

from segrl.data.files import ENDINGS, Row
from segrl.data.sources import located_rows
from segrl.data.traces import collect
from segrl.resolving import near
from segrl.types import Trace

# name -> (hub id[:config], split)
BENCHMARKS = {
    "aime24": ("HuggingFaceH4/aime_2024", "train"),
    "aime25": ("math-ai/aime25", "test"),
    "amc23": ("math-ai/amc23", "test"),
    "math500": ("HuggingFaceH4/MATH-500", "test"),
    "gpqa": ("Idavidrein/gpqa:gpqa_diamond", "train"),
    "minerva": ("math-ai/minervamath", "test"),
    "olympiadbench": ("Hothan/OlympiadBench:OE_TO_maths_en_COMP", "train"),
    "gsm8k": ("openai/gsm8k:main", "test"),
}
GPQA_CHOICES = ("Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")


def load_benchmark(
    name: str, path: str | os.PathLike | None = None, limit: int | None = None, seed: int = 0
) -> list[Trace]:
    """A benchmark's problems and answers, from the hub or from ``path``: a folder with ``<name>.jsonl``, or the file.

    Responses stay empty; a reference solution is in ``meta["solution"]``. ``seed`` orders GPQA's choices.
    """
    if name not in BENCHMARKS:
        raise ValueError(f"there is no benchmark {name!r}{near(name, BENCHMARKS)}")
    rows = located_rows(*BENCHMARKS[name]) if path is None else located_rows(_local_file(name, Path(path).expanduser()))
    if name == "gpqa":
        rows = ((where, fallback_id, gpqa_row(row, where, seed)) for where, fallback_id, row in rows)
    return collect(rows, limit, with_response=False)


def gpqa_row(row: Row, where: str, seed: int) -> Row:
    """A GPQA row with its four choices written into the problem in a shuffled order, and the letter of the right one.

    The order depends on the seed and the question alone, not on the other rows. Copies whose choices already have
    letters are refused: their order is fixed, and in some the right one is always A.
    """
    if missing := [name for name in ("Question", *GPQA_CHOICES) if not isinstance(row.get(name), str)]:
        raise ValueError(
            f"{where} lacks {', '.join(map(repr, missing))}; GPQA needs the original columns, whose choices have no "
            f"order yet; found {', '.join(row)}"
        )
    question = row["Question"].strip()
    order = list(GPQA_CHOICES)
    random.Random(f"{seed} {question}").shuffle(order)
    choices = [f"{letter}. {row[name].strip()}" for letter, name in zip("ABCD", order, strict=True)]
    rest = {name: value for name, value in row.items() if name != "Question"}
    return {
        "id": row.get("Record ID"),
        **rest,
        "problem": "\n".join([question, "", *choices]),
        "answer": "ABCD"[order.index("Correct Answer")],
    }


def _local_file(name: str, path: Path) -> Path:
    if path.is_file():
        return path
    candidates = [path / f"{stem}{ending}" for stem in (name, f"{name}_test") for ending in ENDINGS]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    tried = ", ".join(candidate.name for candidate in candidates)
    raise FileNotFoundError(f"{path} has no file for {name}; looked for {tried}; without path it comes from the hub")

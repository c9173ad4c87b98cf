"""docs/trace.png: the trace page of a right and a wrong toy solution, photographed in headless Chromium.

python scripts/take_picture.py
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import segrl
from segrl import toy
from segrl.importance import misleading
from segrl.report import Entry, View, page
from segrl.types import TokenisedTrace

OUT = Path(__file__).parent.parent / "docs" / "trace.png"
SEED = 9
SIZE = "1320,750"


def main() -> int:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("no Chromium here: apt-get install chromium")
    with tempfile.TemporaryDirectory() as folder:
        html = Path(folder) / "report.html"
        html.write_text(page(entries(), title="segrl report: one toy problem"), encoding="utf-8")
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--window-size={SIZE}"]
        both = f"{html.as_uri()}#right&wrong"
        subprocess.run(
            [chromium, *flags, f"--screenshot={OUT}", both], check=True, timeout=120, stderr=subprocess.DEVNULL
        )
    print(f"{OUT.stat().st_size / 1000:.0f} kB -> {OUT}")
    return 0


def entries() -> list[Entry]:
    """A right and a wrong solution of one problem, by the contrast; one step of the wrong solution is planted wrong."""
    model, tokenizer = toy.load_model()
    solutions = {"right": toy.sample_traces(1, SEED), "wrong": toy.sample_mistakes(1, SEED, ask="all")}
    made = []
    for name, [trace] in solutions.items():
        trace = replace(trace, id=name, meta={**trace.meta, "problem_id": trace.id})
        made.append(entry(model, tokenizer, segrl.tokenize(trace, tokenizer)))
    return made


def entry(model, tokenizer, trace: TokenisedTrace) -> Entry:
    segments, verdict = segrl.segment(trace), segrl.grade(trace.answer, trace.response)
    [evidence] = segrl.gather(model, [trace], tokenizer, misleading.NEEDS, segments=[segments], target="contrast")
    scores = segrl.score(evidence, segments, "mistake")
    view = View(segments, scores, segrl.select(scores), target="contrast")
    readings_RS = misleading.readings(evidence, segments)
    suspect = misleading.misled(trace, segments, readings_RS) if verdict.wrong else None
    [attribution] = segrl.attribute(model, [trace], tokenizer, target="contrast")
    return Entry(trace, segments, verdict, attribution, {"mistake": view}, suspect=suspect)


if __name__ == "__main__":
    sys.exit(main())

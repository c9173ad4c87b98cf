"""docs/trace.png: the trace page of one toy trace, photographed in headless Chromium.

python scripts/take_picture.py
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import segrl
from segrl import toy
from segrl.attribution import PAPER
from segrl.report import Entry, View, page

OUT = Path(__file__).parent.parent / "docs" / "trace.png"
SEED = 23  # nine thoughts: needed ones, repeats, truncated and superficial ones
SIZE = "1180,690"


def main() -> int:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("no Chromium here: apt-get install chromium")
    with tempfile.TemporaryDirectory() as folder:
        html = Path(folder) / "report.html"
        html.write_text(page([entry()], title="segrl report: one toy trace"), encoding="utf-8")
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--window-size={SIZE}"]
        subprocess.run(
            [chromium, *flags, f"--screenshot={OUT}", html.as_uri()], check=True, timeout=120, stderr=subprocess.DEVNULL
        )
    print(f"{OUT.stat().st_size / 1000:.0f} kB -> {OUT}")
    return 0


def entry() -> Entry:
    model, tokenizer = toy.load_model()
    [trace] = toy.sample_traces(1, seed=SEED)
    trace = segrl.tokenize(trace, tokenizer)
    segments = segrl.segment(trace)
    [attribution] = segrl.attribute(model, [trace], tokenizer, **PAPER)
    scores = segrl.score(attribution, segments, "ig")
    view = View(segments, scores, segrl.select(scores, tau=0.7, beta=1.0))
    return Entry(trace, segments, segrl.grade(trace.answer, trace.response), attribution, {"ig": view})


if __name__ == "__main__":
    sys.exit(main())

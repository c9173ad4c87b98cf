"""How fast the trace page is with many long traces, in headless Chromium (needs selenium, chromium and chromedriver).

    python scripts/bench_page.py                     200 traces of about 8,000 tokens

Printed: seconds to write the page and its size; milliseconds until it can be used, to open another trace, to move a
slider, and a frame while a whole trace is scrolled through, by itself and with another beside it.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path

import torch
from bench_sft import long_traces

import segrl
from segrl import toy
from segrl.report import Entry, View, page
from segrl.types import Attribution

READY = """
const done = arguments[arguments.length - 1];
(function look() {
  const at = performance.getEntriesByType('navigation')[0].domComplete;
  if (at) done(at); else setTimeout(look, 20);
})();
"""
BESIDE = "state.beside = true; open(0, 1)"
NEXT = """
const done = arguments[arguments.length - 1], began = performance.now();
document.querySelectorAll('#list button, #list a')[arguments[0]].click();
requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now() - began)));
"""
SLIDE = """
const done = arguments[arguments.length - 1], began = performance.now(), tau = document.getElementById('tau');
tau.value = arguments[0]; tau.dispatchEvent(new Event('input', {bubbles: true}));
requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now() - began)));
"""
SCROLL = """
const done = arguments[arguments.length - 1], times = [], main = document.querySelector('.pane');
const box = main.scrollHeight > main.clientHeight ? main : document.scrollingElement;
let place = 0;
box.scrollTo(0, 0);
function frame(now) {
  times.push(now);
  place += 600;
  box.scrollTo(0, place);
  if (place < box.scrollHeight) requestAnimationFrame(frame);
  else done(times.slice(1).map((time, i) => time - times[i]));
}
requestAnimationFrame(frame);
"""


def entries(count: int, tokens: int) -> list[Entry]:
    """Toy thoughts one after another, with random scores."""
    tokenizer = toy.load_model()[1]
    made, generator = [], torch.Generator().manual_seed(0)
    for bare in long_traces(count, tokens):
        trace = segrl.tokenize(bare, tokenizer)
        segments = segrl.segment(trace)
        scores_T = torch.randn(trace.tokens, generator=generator)
        ids = torch.arange(3)
        attribution = Attribution(
            scores_T,
            gap=0.01,
            copy_share=0.1,
            trace_id=trace.id,
            target="gold",
            input_ids=ids,
            answer_span=(1, 2),
            logp_input=-0.1,
            logp_baseline=-5.0,
            mass_prompt=0.0,
            mass_suffix=0.0,
            evaluations=14,
        )
        scores = segrl.score(attribution, segments, "ig")
        verdict = segrl.grade("7", trace.response)
        made.append(Entry(trace, segments, verdict, attribution, {"ig": View(segments, scores, segrl.select(scores))}))
    return made


def browser():
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome") or ""
    for flag in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu", "window-size=1400,900"):
        options.add_argument(f"--{flag}")
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))


def scroll(driver, what: str) -> None:
    """Print the milliseconds of a frame while the first column is scrolled through."""
    frames = sorted(driver.execute_async_script(SCROLL))
    at = {"median": frames[len(frames) // 2], "95%": frames[int(0.95 * len(frames))], "longest": frames[-1]}
    print(f"scrolling {what}, {len(frames)} frames:", ", ".join(f"{name} {ms:.0f} ms" for name, ms in at.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--traces", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=8000)
    arguments = parser.parse_args()
    shown = entries(arguments.traces, arguments.tokens)
    total = sum(entry.trace.tokens for entry in shown)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "report.html"
        began = time.perf_counter()
        file.write_text(page(shown), encoding="utf-8")
        size = file.stat().st_size / 2**20
        print(f"{len(shown)} traces, {total} tokens: {time.perf_counter() - began:.1f} s to write {size:.1f} MiB")
        driver = browser()
        driver.set_script_timeout(120)
        try:
            driver.get(file.as_uri())
            print(f"usable after {driver.execute_async_script(READY):.0f} ms")
            opened = [driver.execute_async_script(NEXT, i) for i in range(1, min(11, len(shown)))]
            slid = [driver.execute_async_script(SLIDE, tau) for tau in (0.5, 0.6, 0.8, 0.9)]
            print(f"another trace in {max(opened):.0f} ms at most, a slider in {max(slid):.0f} ms at most")
            scroll(driver, "one column")
            driver.execute_script(BESIDE)
            scroll(driver, "two columns")
        finally:
            driver.quit()


if __name__ == "__main__":
    main()

"""Verdicts side by side: segrl, math-verify as its users call it, and verl's own scorers.

    python scripts/bench_grading.py --data ../shared/data                     all parts, in one run
    python scripts/bench_grading.py accuracy --wrong wrong.jsonl              one part; what segrl gets wrong, by name
    python scripts/bench_grading.py hostile --gmpy2 FOLDER                    made by pip install --target FOLDER gmpy2

accuracy   conformance cases, probes, golds against themselves, against another rendering, against another gold
speed      40 real responses; pairs that only math-verify can decide, and 500 others; methods taking turns of 25
hostile    answers that explode, good ones in between: from the main thread, threads, asyncio, a Ray actor; then SIGKILL
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path

import segrl
from segrl.grading import grade_async
from segrl.grading.pool import Pool, shared
from segrl.grading.verdict import cheap

BENCHMARKS = ("aime24", "aime25", "amc23", "math500", "minerva", "olympiadbench", "gsm8k_test")

# --- the field --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """``pred`` is an extracted answer, or with ``whole`` a response to find it in."""

    gold: str
    pred: str
    equal: bool
    whole: bool = False

    @property
    def response(self) -> str:
        return self.pred if self.whole else f"\\boxed{{{self.pred}}}"


def ours(case: Case) -> bool:
    return (segrl.grade if case.whole else segrl.grade_answer)(case.gold, case.pred).correct


def math_verify(case: Case, seconds: int | None = 5) -> bool:
    """``parse`` and ``verify`` with their defaults: the gold in dollars where it has none, the answer in a box."""
    from math_verify import parse, verify

    gold = case.gold if "$" in case.gold else f"${case.gold}$"
    parsed = (parse(text, parsing_timeout=seconds) for text in (gold, case.response))
    return bool(verify(*parsed, timeout_seconds=seconds))


def of_verl(name: str) -> Callable[[Case], bool]:
    scorer = import_module(f"verl.utils.reward_score.{name}").compute_score

    def judge(case: Case) -> bool:
        found = scorer(case.response, case.gold)
        found = found["acc"] if isinstance(found, dict) else found[0] if isinstance(found, tuple) else found
        return bool(found)

    return judge


def graders() -> dict[str, Callable[[Case], bool]]:
    theirs = {f"verl {name}": of_verl(name) for name in ("math_verify", "math_dapo", "math_reward", "prime_math")}
    return {"segrl": ours, "math-verify": math_verify, **theirs}


# --- accuracy ---------------------------------------------------------------------------------------------------------


def bench_accuracy(arguments) -> dict[str, dict]:
    table: dict[str, dict] = {}
    judges = graders()
    with open(arguments.wrong or os.devnull, "w", encoding="utf-8") as wrong:
        for suite, cases in suites(Path(arguments.data)).items():
            table[suite] = {"cases": len(cases)}
            for name, judge in judges.items():
                began = time.perf_counter()
                found = [attempt(judge, case) for case in cases]
                table[suite][name] = summary(cases, found)
                if judge is ours:
                    misses = [one for one, is_equal in zip(cases, found, strict=True) if is_equal != one.equal]
                    wrong.writelines(json.dumps({"suite": suite, **vars(one)}) + "\n" for one in misses)
                progress(f"{suite}: {name} {table[suite][name]}, {time.perf_counter() - began:.0f} s")
    return table


def attempt(judge: Callable[[Case], bool], case: Case) -> bool:
    """A grader that raises has not accepted."""
    try:
        return judge(case)
    except Exception as error:
        logging.debug("%s on %s", error, case)
        return False


def summary(cases: list[Case], found: list[bool]) -> str:
    right = sum(one.equal == is_equal for one, is_equal in zip(cases, found, strict=True))
    negatives = [is_equal for one, is_equal in zip(cases, found, strict=True) if not one.equal]
    accepted = f", {sum(negatives)} of {len(negatives)} accepted" if negatives else ""
    return f"{100 * right / len(cases):.1f}%{accepted}"


def suites(data: Path) -> dict[str, list[Case]]:
    tiers: dict[str, list[Case]] = {}
    for row in rows(data / "grader_conformance_dev.jsonl"):
        tiers.setdefault(tier(row), []).append(case_of(row))
    golds = {name: [row["answer"] for row in rows(data / "benchmarks" / f"{name}.jsonl")] for name in BENCHMARKS}
    every = [gold for some in golds.values() for gold in some]
    written = [gold for gold in golds["minerva"] if re.fullmatch(r"-?[\d.]+e-?\d+", gold)]
    wide = [case for name in ("core", "opts", "choice", "approx", "boxed") for case in tiers[name]]
    ways: dict[str, list[Case]] = {}
    for gold in dict.fromkeys(every):
        for way, others in renderings(gold).items():
            ways.setdefault(f"golds, {way}", []).extend(Case(gold, other, True) for other in others if other != gold)
    return {
        "core": tiers["core"],
        "core, opts, choice, approx, boxed": wide,
        **{f"{name} (no target)": tiers[name] for name in ("unboxed", "semantic", "disputed")},
        "probes": [case_of(row) for row in rows(data / "grader_probes_dev.jsonl")],
        "golds against themselves": [Case(gold, gold, True) for gold in every],
        **ways,
        "golds against another": [one for some in golds.values() for one in neighbours(some)],
        "e-notation, right": [Case(gold, scientific(gold, 0), True) for gold in written],
        "e-notation, exponent off by one": [Case(gold, scientific(gold, 1), False) for gold in written],
    }


def tier(row: dict) -> str:
    if row["tier"] != "extraction":
        return row["tier"]
    return "boxed" if "\\boxed" in row["pred"] else "unboxed"


def case_of(row: dict) -> Case:
    whole = row["tier"] == "extraction"
    pred = row["pred"] if whole or row["pred_answer"] is None else row["pred_answer"]
    return Case(row["gold"] if row["gold_answer"] is None else row["gold_answer"], pred, row["expected"], whole)


def renderings(gold: str) -> dict[str, list[str]]:
    """The same answer as other models write it; the gold itself where a way does not apply."""
    number = re.fullmatch(r"\d+(\.\d+)?|\\frac\{\d+\}\{\d+\}", gold)
    plain = not re.search(r"\de|text|begin", gold)
    return {
        "fraction form": [
            gold.replace("\\frac", "\\dfrac"),
            gold.replace("\\frac", "\\tfrac"),
            re.sub(r"^(-?)\\frac\{(\d+)\}\{(\d+)\}$", r"\1\2/\3", gold),
        ],
        "spacing": [
            re.sub(r"(?<=[\w)}])([+=-])(?=[\w(\\])", r" \1 ", gold) if plain else gold,
            gold.replace(", ", ",\\, "),
            re.sub(r"^\(([^()]*)\)$", r"\\left(\1\\right)", gold),
        ],
        "punctuation": [f"${gold}$" if "$" not in gold else gold, f"{gold}." if gold[-1].isdigit() else gold],
        "units": [f"{gold}\\text{{ cm}}", f"{gold} \\mathrm{{~kg}}"] if number else [],
        "set order": [reversed_set(gold)],
    }


def reversed_set(gold: str) -> str:
    inside = re.fullmatch(r"(\\\{)?([^(){}\[\]\\]*,[^(){}\[\]\\]*?)(\\\})?", gold)
    if not inside or re.search(r"\d,\d{3}", gold) or bool(inside[1]) != bool(inside[3]):
        return gold
    return f"{inside[1] or ''}{', '.join(part.strip() for part in reversed(inside[2].split(',')))}{inside[3] or ''}"


def neighbours(golds: list[str]) -> Iterator[Case]:
    """Each gold against the one most like it: the next in order of length, then of text, with another value."""
    ordered = sorted(set(golds), key=lambda gold: (len(gold), gold))
    for gold, other in zip(ordered, ordered[1:], strict=False):
        if value(gold) != value(other):
            yield Case(gold, other, False)


def value(gold: str) -> float | str:
    if "," in gold:
        gold = "".join(sorted(re.split(r"\s*,\s*", gold)))  # another order may be the same set
    plain = re.sub(r"[\s$,]|\\text|\\mathrm|\^?\\circ|\\%", "", gold)
    fraction = re.fullmatch(r"(-?)\\frac\{(\d+)\}\{(\d+)\}", plain)
    try:
        return float(f"{fraction[1]}1") * int(fraction[2]) / int(fraction[3]) if fraction else float(plain)
    except ValueError:
        return re.sub(r"[{}()]|\\left|\\right|\\d?frac", "", plain)


def scientific(gold: str, off: int) -> str:
    mantissa, exponent = gold.split("e")
    return f"{mantissa} \\times 10^{{{int(exponent) + off}}}"


# --- speed ------------------------------------------------------------------------------------------------------------


def bench_speed(arguments) -> dict[str, dict]:
    traces = list(rows(Path(arguments.data) / "traces_r1_qwen7b_amc23.jsonl"))
    cases = [Case(row["answer"], row["response"], row["correct"], whole=True) for row in traces]
    methods = {
        "math-verify, full text": math_verify,
        "segrl": ours,
        "segrl, an event loop": on_a_loop_of_its_own(),
        "segrl, each compared by math-verify in the pool": in_the_pool,
    }
    found = {f"40 responses: {name}": row for name, row in take_turns(methods, cases, len(cases), 5).items()}
    theirs = {"math-verify, warm, without its timeouts": partial(math_verify, seconds=None)}
    pairs = undecided(Path(arguments.data), 500)
    methods = {**theirs, "segrl": ours}
    found |= {f"{len(pairs)} pairs: {name}": row for name, row in take_turns(methods, pairs, 25, 1).items()}
    pairs = candidates(Path(arguments.data))[:500]
    methods = {**theirs, "the pool": lambda case: shared().call(case.gold, case.pred)[0], "segrl": ours}
    found |= {f"{len(pairs)} others: {name}": row for name, row in take_turns(methods, pairs, 25, 1).items()}
    return found


def on_a_loop_of_its_own() -> Callable[[Case], bool]:
    loop = asyncio.new_event_loop()
    return lambda case: loop.run_until_complete(grade_async(case.gold, case.response)).correct


def in_the_pool(case: Case) -> bool:
    return shared().call(case.gold, segrl.grade(case.gold, case.response).pred)[0]


def take_turns(methods: dict[str, Callable], cases: list[Case], turn: int, repeats: int) -> dict[str, dict]:
    """The first method is the one that the others are measured by; each sees ten cases beforehand."""
    times: dict[str, list[float]] = {name: [] for name in methods}
    right = dict.fromkeys(methods, 0)
    for method in methods.values():
        for case in cases[-10:]:
            attempt(method, case)
    for start in [start for _ in range(repeats) for start in range(0, len(cases), turn)]:
        for name, method in methods.items():
            for case in cases[start : start + turn]:
                began = time.perf_counter()
                right[name] += attempt(method, case) == case.equal
                times[name].append(time.perf_counter() - began)
    totals = {name: sum(some) for name, some in times.items()}
    first = totals[next(iter(methods))]
    return {
        name: {
            "mean ms": f"{1e3 * statistics.mean(some):.2f}",
            "95th percentile ms": f"{1e3 * statistics.quantiles(some, n=20)[-1]:.1f}",
            "longest ms": f"{1e3 * max(some):.0f}",
            "times the first's speed": f"{first / totals[name]:.2f}",
            "right": f"{right[name] / repeats:g} of {len(cases)}",
        }
        for name, some in times.items()
    }


def undecided(data: Path, wanted: int) -> list[Case]:
    """Pairs whose verdict segrl leaves to math-verify."""
    found: list[Case] = []
    for case in candidates(data):
        if len(found) < wanted and cheap(case.gold, case.pred) is None:
            found.append(case)
    return found


def candidates(data: Path) -> list[Case]:
    """Expressions rewritten, and against their neighbours, in an order of chance."""
    names = ("math500", "olympiadbench", "minerva")
    golds = [row["answer"] for name in names for row in rows(data / "benchmarks" / f"{name}.jsonl")]
    rich = [gold for gold in dict.fromkeys(golds) if re.search(r"[a-z]|\\(sqrt|pi|frac)", gold) and len(gold) < 80]
    found = [Case(gold, rewritten, True) for gold in rich for rewritten in (f"{gold}+0", f"1 \\cdot ({gold})")]
    found += list(neighbours(rich)) + [Case(case.pred, case.gold, case.equal) for case in neighbours(rich)]
    random.Random(0).shuffle(found)
    return found


# --- hostile ----------------------------------------------------------------------------------------------------------

GOOD = (
    Case("\\frac{\\sqrt{3}}{3}", "\\frac{1}{\\sqrt{3}}", True),
    Case("x^2-1", "(x-1)(x+1)", True),
    Case("2\\sqrt{2}", "\\sqrt{8}", True),
    Case("\\frac{\\pi}{4}", "\\frac{\\pi}{3}", False),
    Case("27", "27", True),
    Case("x^2+1", "(x-1)(x+1)", False),
    Case("\\sqrt{2}+1", "\\frac{1}{\\sqrt{2}-1}", True),
    Case("12", "13", False),
)
MORE_HOSTILE = (
    "2^{3^{4^{5^{6}}}}",
    "\\pi^{\\pi^{\\pi^{\\pi}}}",
    "{{10^{10}}^{10}}^{10}",
    "(((((((3!)!)!)!)!)!)!)!",
    "10000000!!",
    "\\binom{\\binom{1000}{500}}{7}",
    "\\Gamma(\\Gamma(50))",
    "\\zeta(1000000001)",
    "(x+1)^{100000}",
    "(x+y+z+w)^{300}",
    "\\prod_{k=1}^{1000} (x+k)",
    "\\sum_{n=1}^{\\infty} \\frac{\\sin n}{n^3}",
    "\\int_0^{\\infty} \\frac{\\ln(1+x^{\\pi})}{1+x^{e^{x}}} dx",
    "\\lim_{n\\to\\infty} \\frac{n!}{n^{n}e^{-n}\\sqrt{n}}",
    "\\sin(10^{1000000})",
    "\\log(\\log(10^{10^{10^{10}}}))",
    "1e1000000000",
    "1e-999999999",
    "0.{" + "9" * 50_000 + "}",
    "\\frac{1}{10^{10000000}}",
    "\\sqrt[10000000]{2^{10000001}}",
    "\\{" + ",".join(map(str, range(20_000))) + "\\}",
    "\\cup".join(f"[{2 * i},{2 * i + 1}]" for i in range(400)),
    "=".join("x" * 3_000),
    "<".join(map(str, range(2_000))),
    "(" * 20_000 + "1" + ")" * 20_000,
    "\\left(" * 5_000 + "1" + "\\right)" * 5_000,
    "\\sqrt{" * 800 + "2" + "}" * 800,
    "x" + "_{x" * 3_000 + "}" * 3_000,
    "\\text{" * 5_000 + "a" + "}" * 5_000,
    "-" * 50_000 + "2",
    "1+" * 20_000 + "2",
    "2" + "^2" * 60,
    "\x00\x01\u202e\ufeff2\ud800",
    "\\begin{pmatrix}" + "\\\\".join(["&".join("xyz" * 13)] * 39) + "\\end{pmatrix}",
    "x^{17}+x^{13}-y^{11}z^7+\\sqrt[5]{x^{19}-\\sqrt[7]{y^{23}+z^{29}}}=\\sqrt[3]{\\sin(x^{31})}",
    "__import__('time').sleep(1000)",
)
EQUAL = ("nest_sqrt_25",)  # of the hostile ones; its innermost root is that of 2 + 2
SETTINGS = ("main thread", "threads", "asyncio", "Ray actor")
SLACK_S = 0.5
BARE_S = 0.5  # the pool alone, without the guards before it: nearly everything must be killed
MARK = "SEGRL_BENCH"


def bench_hostile(arguments) -> dict[str, dict]:
    table = {}
    for folder in [None, *([arguments.gmpy2] if arguments.gmpy2 else [])]:
        for setting in SETTINGS:
            for bare in (False, True):
                name = f"{'pool alone' if bare else 'segrl'}, {setting}{', gmpy2' if folder else ''}"
                table[name] = in_process(arguments, setting, bare, folder)
                progress(f"{name}: {table[name]}")
        table[f"verl math_verify{', gmpy2' if folder else ''}"] = {"good items wrong": verl_after_four(folder)}
    return table


def in_process(arguments, setting: str, bare: bool, folder: str | None) -> dict:
    """One setting in a process of its own, which is then killed while four items are stuck."""
    repeats = arguments.bare_repeats if bare else arguments.repeats
    options = ["--setting", setting, "--data", arguments.data, "--repeats", str(repeats), *(["--bare"] if bare else [])]
    mark = f"{os.getpid()}-{time.monotonic_ns()}"
    command = [sys.executable, __file__, "hostile-setting", *options]
    process = subprocess.Popen(command, env=environment(folder, mark), stdout=subprocess.PIPE, text=True)
    said = (json.loads(line) for line in process.stdout if line.startswith("{"))
    figures, stuck = next(said), next(said)
    before = grading_processes(mark)
    for pid in {stuck["pid"], process.pid}:
        os.kill(pid, signal.SIGKILL)
    process.wait()
    began = time.monotonic()
    while grading_processes(mark) and time.monotonic() < began + 5:
        time.sleep(0.1)
    left = f"{len(grading_processes(mark))} of {len(before)}"
    return {**figures, "orphans": f"{left} after {time.monotonic() - began:.1f} s"}


def environment(folder: str | None, mark: str) -> dict[str, str]:
    path = [part for part in (folder, os.environ.get("PYTHONPATH")) if part]
    return {**os.environ, MARK: mark, "PYTHONPATH": os.pathsep.join(path)}


def grading_processes(mark: str) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            inherited = f"{MARK}={mark}".encode() in (folder / "environ").read_bytes()
            if inherited and b"segrl.grading.worker" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def hostile_setting(arguments) -> None:
    """Says the figures, then that four items are stuck, then waits to be killed."""
    run = in_ray if arguments.setting == "Ray actor" else partial(run_setting, arguments.setting)
    run(arguments)
    time.sleep(600)


def in_ray(arguments) -> None:
    ray = import_module("ray")
    folder = tempfile.mkdtemp(dir="/tmp", prefix="r")
    ray.init(num_cpus=1, _temp_dir=folder, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    sys.path.insert(0, str(Path(__file__).parent))

    class Actor:
        def figures(self, arguments) -> dict:
            return import_module("bench_grading").setting_figures("main thread", arguments)

        def stick(self) -> dict:
            return import_module("bench_grading").stick()

    actor = ray.remote(Actor).options(runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(sys.path)}}).remote()
    print(json.dumps(ray.get(actor.figures.remote(arguments))), flush=True)
    print(json.dumps(ray.get(actor.stick.remote())), flush=True)


def run_setting(setting: str, arguments) -> None:
    print(json.dumps(setting_figures(setting, arguments)), flush=True)
    print(json.dumps(stick()), flush=True)


def stick() -> dict:
    """Four workers on what never ends."""
    pool = Pool(timeout_s=600)
    pool.call("1", "2")
    for _ in range(4):
        threading.Thread(target=pool.call, args=("1", "9^{9^{9^{9}}}"), daemon=True).start()
    time.sleep(3)
    return {"pid": os.getpid()}


def setting_figures(setting: str, arguments) -> dict:
    pool = Pool(timeout_s=BARE_S) if arguments.bare else shared()
    items = [item for _ in range(arguments.repeats) for item in between(hostile(Path(arguments.data)))]
    judge = partial(judged, pool) if arguments.bare else graded
    began = time.perf_counter()
    pool.call("1", "2")
    start = time.perf_counter() - began
    began = time.perf_counter()
    lateness = [0.0]
    if setting == "asyncio":
        found, lateness = asyncio.run(on_a_loop(items, pool if arguments.bare else None))
    elif setting == "threads":
        with ThreadPoolExecutor(pool.workers) as threads:
            found = list(threads.map(judge, items))
    else:
        found = [judge(item) for item in items]
    pairs = [(item, equal) for item, (equal, *_) in zip(items, found, strict=True)]
    wrong = [item for item, equal in pairs if item in GOOD and equal != item.equal]
    accepted = [item for item, equal in pairs if equal and not item.equal]
    for item in {*wrong, *accepted}:
        progress(f"wrong: {item.gold[:50]!r} {item.pred[:50]!r}")
    slowest = max(range(len(items)), key=lambda i: found[i][2])
    progress(f"slowest: {found[slowest]} {items[slowest].pred[:50]!r}")
    return {
        "items": len(items),
        "good items wrong": f"{len(wrong)} of {len(items) // 2}",
        "accepted falsely": len(accepted),
        "timeout, refused": f"{sum(s == 'timeout' for _, s, _ in found)}, {sum(s == 'refused' for _, s, _ in found)}",
        "longest s, over its timeout": f"{max(seconds for *_, seconds in found) - pool.timeout_s:+.2f}",
        "start of the pool s": f"{start:.2f}",
        "loop late ms": f"{1e3 * max(lateness):.0f}" if setting == "asyncio" else "",
        "seconds": f"{time.perf_counter() - began:.0f}",
    }


def hostile(data: Path) -> list[Case]:
    found = []
    for row in rows(data / "grader_hostile_dev.jsonl"):
        text = row.get("pred") or row["pred_prefix"] + row["pred_unit"] * row["pred_repeat"] + row["pred_suffix"]
        found.append(Case(row["gold"], text, text.strip(" $") == row["gold"] or row["name"] in EQUAL))
    return found + [Case("2", text, False) for text in MORE_HOSTILE]


def between(bad: list[Case]) -> list[Case]:
    return [one for i, case in enumerate(bad) for one in (case, GOOD[i % len(GOOD)])]


def graded(case: Case) -> tuple[bool, str, float]:
    began = time.perf_counter()
    verdict = segrl.grade_answer(case.gold, case.pred)
    return verdict.correct, verdict.status, time.perf_counter() - began


def judged(pool: Pool, case: Case) -> tuple[bool, str, float]:
    began = time.perf_counter()
    correct, status = pool.call(case.gold, case.pred)
    return correct, status, time.perf_counter() - began


async def on_a_loop(items: list[Case], pool: Pool | None) -> tuple[list, list[float]]:
    """Four at once, as many as the pool has workers: no time is spent in its queue."""
    late: list[float] = []
    waiting = iter(enumerate(items))
    found: dict[int, tuple[bool, str, float]] = {}

    async def consume() -> None:
        for i, case in waiting:
            began = time.perf_counter()
            if pool:
                correct, status = await pool.call_async(case.gold, case.pred)
            else:
                verdict = await grade_async(case.gold, case.response)
                correct, status = verdict.correct, verdict.status
            found[i] = correct, status, time.perf_counter() - began
            await asyncio.sleep(0)

    async def watch() -> None:
        while True:
            began = time.perf_counter()
            await asyncio.sleep(0.005)
            late.append(time.perf_counter() - began - 0.005)

    watcher = asyncio.create_task(watch())
    await asyncio.gather(*(consume() for _ in range(4)))
    watcher.cancel()
    return [found[i] for i in range(len(items))], late


def verl_after_four(folder: str | None) -> str:
    """verl's own pool: four times ``100000000!``, then eight good answers, each with ten seconds."""
    done = subprocess.run(
        [sys.executable, __file__, "verl-after-four"], env=environment(folder, ""), stdout=subprocess.PIPE, text=True
    )
    return done.stdout.splitlines()[-1]


def verl_setting(arguments) -> None:
    module = import_module("verl.utils.reward_score.math_verify")
    judge = partial(module.compute_score, timeout=10)
    with ThreadPoolExecutor(12) as threads:
        for _ in range(4):
            threads.submit(judge, "\\boxed{100000000!}", "1")
        time.sleep(3)
        found = list(threads.map(lambda case: judge(case.response, case.gold) == case.equal, GOOD))
    print(f"{sum(not one for one in found)} of {len(GOOD)}", flush=True)
    for pid in module._pool._processes:  # they never end by themselves, and hold this process's output open
        os.kill(pid, signal.SIGKILL)
    os._exit(0)


# --- printing ---------------------------------------------------------------------------------------------------------


def rows(path: Path) -> Iterator[dict]:
    yield from (json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line)


def progress(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


def markdown(table: dict[str, dict]) -> str:
    columns = list(dict.fromkeys(column for row in table.values() for column in row))
    lines = [f"| | {' | '.join(columns)} |", "|---|" + "---|" * len(columns)]
    for name, row in table.items():
        lines.append(f"| {name} | {' | '.join(str(row.get(column, '')) for column in columns)} |")
    return "\n".join(lines)


PARTS = {"accuracy": bench_accuracy, "speed": bench_speed, "hostile": bench_hostile}
INSIDE = {"hostile-setting": hostile_setting, "verl-after-four": verl_setting}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=("all", *PARTS, *INSIDE), default="all")
    parser.add_argument("--data", default="../shared/data")
    parser.add_argument("--wrong", help="accuracy: a jsonl file for the cases that segrl gets wrong")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--bare-repeats", type=int, default=1, help="hostile, the pool without the guards before it")
    parser.add_argument("--gmpy2", help="hostile: a folder with gmpy2, for a second round with it")
    parser.add_argument("--setting", choices=SETTINGS, help=argparse.SUPPRESS)
    parser.add_argument("--bare", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    for noisy in ("math_verify.grader", "math_verify.parser", "math_verify.utils"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    if arguments.part in INSIDE:
        INSIDE[arguments.part](arguments)
        return
    for part in PARTS if arguments.part == "all" else [arguments.part]:
        print(f"\n{part}\n\n{markdown(PARTS[part](arguments))}", flush=True)


if __name__ == "__main__":
    main()

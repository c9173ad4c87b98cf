"""Answers that explode, good ones in between: from the main thread, threads, asyncio, a Ray actor; then SIGKILL.

    python scripts/bench_grading.py hostile --repeats 20 --gmpy2 FOLDER

Each setting is this file in a process of its own, which is killed while four items are stuck.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import import_module
from pathlib import Path

from grading_cases import Case, progress, rows

import segrl
from segrl.grading import grade_async
from segrl.grading.pool import Pool, shared

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
    command = [sys.executable, __file__, "setting", *options]
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
    pids = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            inherited = f"{MARK}={mark}".encode() in (folder / "environ").read_bytes()
            if inherited and b"segrl.grading.worker" in (folder / "cmdline").read_bytes():
                pids.append(int(folder.name))
        except OSError:
            continue
    return pids


def hostile_setting(arguments) -> None:
    """Print the figures, print that four items are stuck, and wait to be killed."""
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
            return import_module("bench_hostile").setting_figures("main thread", arguments)

        def stick(self) -> dict:
            return import_module("bench_hostile").stick()

    actor = ray.remote(Actor).options(runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(sys.path)}}).remote()
    print(json.dumps(ray.get(actor.figures.remote(arguments))), flush=True)
    print(json.dumps(ray.get(actor.stick.remote())), flush=True)


def run_setting(setting: str, arguments) -> None:
    print(json.dumps(setting_figures(setting, arguments)), flush=True)
    print(json.dumps(stick()), flush=True)


def stick() -> dict:
    """Keep four workers busy with comparisons that never end; returns the id of this process."""
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
        verdicts, lateness = asyncio.run(on_a_loop(items, pool if arguments.bare else None))
    elif setting == "threads":
        with ThreadPoolExecutor(pool.workers) as threads:
            verdicts = list(threads.map(judge, items))
    else:
        verdicts = [judge(item) for item in items]
    pairs = [(item, equal) for item, (equal, *_) in zip(items, verdicts, strict=True)]
    statuses = [status for _, status, _ in verdicts]
    wrong = [item for item, equal in pairs if item in GOOD and equal != item.equal]
    accepted = [item for item, equal in pairs if equal and not item.equal]
    for item in {*wrong, *accepted}:
        progress(f"wrong: {item.gold[:50]!r} {item.pred[:50]!r}")
    slowest = max(range(len(items)), key=lambda i: verdicts[i][2])
    progress(f"slowest: {verdicts[slowest]} {items[slowest].pred[:50]!r}")
    return {
        "items": len(items),
        "good items wrong": f"{len(wrong)} of {len(items) // 2}",
        "accepted falsely": len(accepted),
        "timeout, refused": f"{statuses.count('timeout')}, {statuses.count('refused')}",
        "longest s, over its timeout": f"{max(seconds for *_, seconds in verdicts) - pool.timeout_s:+.2f}",
        "start of the pool s": f"{start:.2f}",
        "loop late ms": f"{1e3 * max(lateness):.0f}" if setting == "asyncio" else "",
        "seconds": f"{time.perf_counter() - began:.0f}",
    }


def hostile(data: Path) -> list[Case]:
    cases = []
    for row in rows(data / "grader_hostile_dev.jsonl"):
        text = row.get("pred") or row["pred_prefix"] + row["pred_unit"] * row["pred_repeat"] + row["pred_suffix"]
        cases.append(Case(row["gold"], text, text.strip(" $") == row["gold"] or row["name"] in EQUAL))
    return cases + [Case("2", text, False) for text in MORE_HOSTILE]


def between(bad: list[Case]) -> list[Case]:
    return [case for i, wrong in enumerate(bad) for case in (wrong, GOOD[i % len(GOOD)])]


def graded(case: Case) -> tuple[bool, str, float]:
    began = time.perf_counter()
    verdict = segrl.grade_answer(case.gold, case.pred)
    return verdict.correct, verdict.status, time.perf_counter() - began


def judged(pool: Pool, case: Case) -> tuple[bool, str, float]:
    began = time.perf_counter()
    correct, status = pool.call(case.gold, case.pred)
    return correct, status, time.perf_counter() - began


async def on_a_loop(items: list[Case], pool: Pool | None) -> tuple[list, list[float]]:
    """The verdict and seconds of each item, and how late the loop was. Four items run at once, as many as the pool has
    workers: no time is spent in its queue."""
    late: list[float] = []
    waiting = iter(enumerate(items))
    results: dict[int, tuple[bool, str, float]] = {}

    async def consume() -> None:
        for i, case in waiting:
            began = time.perf_counter()
            if pool:
                correct, status = await pool.call_async(case.gold, case.pred)
            else:
                verdict = await grade_async(case.gold, case.response)
                correct, status = verdict.correct, verdict.status
            results[i] = correct, status, time.perf_counter() - began
            await asyncio.sleep(0)

    async def watch() -> None:
        while True:
            began = time.perf_counter()
            await asyncio.sleep(0.005)
            late.append(time.perf_counter() - began - 0.005)

    watcher = asyncio.create_task(watch())
    await asyncio.gather(*(consume() for _ in range(4)))
    watcher.cancel()
    return [results[i] for i in range(len(items))], late


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
        right = list(threads.map(lambda case: judge(case.response, case.gold) == case.equal, GOOD))
    print(f"{right.count(False)} of {len(GOOD)}", flush=True)
    for pid in module._pool._processes:  # they never end by themselves, and hold this process's output open
        os.kill(pid, signal.SIGKILL)
    os._exit(0)


INSIDE = {"setting": hostile_setting, "verl-after-four": verl_setting}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=INSIDE)
    parser.add_argument("--data", default="../shared/data")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--setting", choices=SETTINGS)
    parser.add_argument("--bare", action="store_true", help="the pool without the guards before it")
    arguments = parser.parse_args()
    INSIDE[arguments.part](arguments)


if __name__ == "__main__":
    main()

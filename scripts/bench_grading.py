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
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from pathlib import Path

from bench_hostile import bench_hostile
from grading_cases import Case, markdown, progress, rows

import segrl
from segrl.grading import grade_async
from segrl.grading.pool import shared
from segrl.grading.verdict import cheap

BENCHMARKS = ("aime24", "aime25", "amc23", "math500", "minerva", "olympiadbench", "gsm8k_test")

# --- the field --------------------------------------------------------------------------------------------------------


def by_segrl(case: Case) -> bool:
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
        result = scorer(case.response, case.gold)
        right = result["acc"] if isinstance(result, dict) else result[0] if isinstance(result, tuple) else result
        return bool(right)

    return judge


def graders() -> dict[str, Callable[[Case], bool]]:
    scorers = {f"verl {name}": of_verl(name) for name in ("math_verify", "math_dapo", "math_reward", "prime_math")}
    return {"segrl": by_segrl, "math-verify": math_verify, **scorers}


# --- accuracy ---------------------------------------------------------------------------------------------------------


def bench_accuracy(arguments) -> dict[str, dict]:
    table: dict[str, dict] = {}
    judges = graders()
    with open(arguments.wrong or os.devnull, "w", encoding="utf-8") as wrong:
        for suite, cases in suites(Path(arguments.data)).items():
            table[suite] = {"cases": len(cases)}
            for name, judge in judges.items():
                began = time.perf_counter()
                verdicts = [attempt(judge, case) for case in cases]
                table[suite][name] = summary(cases, verdicts)
                if judge is by_segrl:
                    misses = [case for case, is_equal in zip(cases, verdicts, strict=True) if is_equal != case.equal]
                    wrong.writelines(json.dumps({"suite": suite, **vars(case)}) + "\n" for case in misses)
                progress(f"{suite}: {name} {table[suite][name]}, {time.perf_counter() - began:.0f} s")
    return table


def attempt(judge: Callable[[Case], bool], case: Case) -> bool:
    """The grader's verdict; False where it raises."""
    try:
        return judge(case)
    except Exception as error:
        logging.debug("%s on %s", error, case)
        return False


def summary(cases: list[Case], verdicts: list[bool]) -> str:
    right = sum(case.equal == is_equal for case, is_equal in zip(cases, verdicts, strict=True))
    negatives = [is_equal for case, is_equal in zip(cases, verdicts, strict=True) if not case.equal]
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
        "golds against another": [case for some in golds.values() for case in neighbours(some)],
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
        "segrl": by_segrl,
        "segrl, an event loop": on_a_loop_of_its_own(),
        "segrl, each compared by math-verify in the pool": in_the_pool,
    }
    table = {f"40 responses: {name}": row for name, row in take_turns(methods, cases, len(cases), 5).items()}
    warm = {"math-verify, warm, without its timeouts": partial(math_verify, seconds=None)}
    pairs = undecided(Path(arguments.data), 500)
    methods = {**warm, "segrl": by_segrl}
    table |= {f"{len(pairs)} pairs: {name}": row for name, row in take_turns(methods, pairs, 25, 1).items()}
    pairs = candidates(Path(arguments.data))[:500]
    methods = {**warm, "the pool": lambda case: shared().call(case.gold, case.pred)[0], "segrl": by_segrl}
    table |= {f"{len(pairs)} others: {name}": row for name, row in take_turns(methods, pairs, 25, 1).items()}
    return table


def on_a_loop_of_its_own() -> Callable[[Case], bool]:
    loop = asyncio.new_event_loop()
    return lambda case: loop.run_until_complete(grade_async(case.gold, case.response)).correct


def in_the_pool(case: Case) -> bool:
    return shared().call(case.gold, segrl.grade(case.gold, case.response).pred)[0]


def take_turns(methods: dict[str, Callable], cases: list[Case], turn: int, repeats: int) -> dict[str, dict]:
    """The times of each method, beside those of the first. Every method sees ten cases beforehand."""
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
    pairs: list[Case] = []
    for case in candidates(data):
        if len(pairs) < wanted and cheap(case.gold, case.pred) is None:
            pairs.append(case)
    return pairs


def candidates(data: Path) -> list[Case]:
    """Expressions against themselves rewritten, and against their neighbours, in random order."""
    names = ("math500", "olympiadbench", "minerva")
    golds = [row["answer"] for name in names for row in rows(data / "benchmarks" / f"{name}.jsonl")]
    rich = [gold for gold in dict.fromkeys(golds) if re.search(r"[a-z]|\\(sqrt|pi|frac)", gold) and len(gold) < 80]
    cases = [Case(gold, rewritten, True) for gold in rich for rewritten in (f"{gold}+0", f"1 \\cdot ({gold})")]
    cases += list(neighbours(rich)) + [Case(case.pred, case.gold, case.equal) for case in neighbours(rich)]
    random.Random(0).shuffle(cases)
    return cases


PARTS = {"accuracy": bench_accuracy, "speed": bench_speed, "hostile": bench_hostile}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=("all", *PARTS), default="all")
    parser.add_argument("--data", default="../shared/data")
    parser.add_argument("--wrong", help="accuracy: a jsonl file for the cases that segrl gets wrong")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--bare-repeats", type=int, default=1, help="hostile, the pool without the guards before it")
    parser.add_argument("--gmpy2", help="hostile: a folder with gmpy2, for a second round with it")
    arguments = parser.parse_args()
    if not Path(arguments.data).is_dir():
        parser.error(
            f"--data {arguments.data}: no such folder; the cases (grader_*_dev.jsonl, traces_*.jsonl, benchmarks/) "
            "do not come with the repository"
        )
    for noisy in ("math_verify.grader", "math_verify.parser", "math_verify.utils"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    for part in PARTS if arguments.part == "all" else [arguments.part]:
        print(f"\n{part}\n\n{markdown(PARTS[part](arguments))}", flush=True)


if __name__ == "__main__":
    main()

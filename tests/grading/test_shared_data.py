"""The grader against cases and golds that lie beside a checkout on some machines (tests/support/testkit/real.py)."""

import json
import random
import re

import pytest
from testkit.real import real_file

from segrl.grading import grade, grade_answer
from segrl.grading.verdict import cheap

BENCHMARKS = ("aime24", "aime25", "amc23", "math500", "minerva", "olympiadbench", "gsm8k_test")


def rows(name: str) -> list[dict]:
    return [json.loads(line) for line in real_file(name).read_text(encoding="utf-8").split("\n") if line]


def golds(benchmark: str) -> list[str]:
    return sorted({str(row["answer"]) for row in rows(f"benchmarks/{benchmark}.jsonl")})


def verdicts(cases: list[dict]) -> list[tuple[bool, bool]]:
    """(verdict, what was expected) of cases that are answers."""
    return [(grade_answer(case["gold_answer"], case["pred_answer"]).correct, case["expected"]) for case in cases]


def right(found: list[tuple[bool, bool]]) -> float:
    return sum(verdict == expected for verdict, expected in found) / len(found)


@pytest.mark.e2e
def test_conformance():
    cases = rows("grader_conformance_dev.jsonl")
    answers = [case for case in cases if case["gold_answer"] is not None and case["pred_answer"] is not None]
    core = verdicts([case for case in answers if case["tier"] == "core"])
    assert right(core) >= 0.98
    assert sum(verdict and not expected for verdict, expected in core) <= 1
    boxed = [case for case in cases if case["tier"] == "extraction" and "\\boxed" in case["pred"]]
    read = [(grade(case["gold"], case["pred"]).correct, case["expected"]) for case in boxed]
    rest = verdicts([case for case in answers if case["tier"] in ("opts", "choice", "approx")])
    assert right(core + rest + read) >= 0.94


@pytest.mark.e2e
def test_probes():
    found = verdicts(rows("grader_probes_dev.jsonl"))
    assert right(found) >= 0.93
    assert not any(verdict and not expected for verdict, expected in found)


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_each_gold_is_itself(benchmark):
    for gold in golds(benchmark):
        assert cheap(gold, gold) == (True, "exact")
        assert grade(gold, f"so the answer is $\\boxed{{{gold}}}$.").correct, gold


def renderings(gold: str) -> list[str]:
    """The same gold, written otherwise."""
    forms = [gold.replace("\\frac", "\\dfrac"), gold.replace(",", ", "), f"{gold}.", gold.replace("\\left", "")]
    if re.fullmatch(r"-?\d+", gold):
        n = int(gold)
        forms += [f"{n:,}", f"{n:,}".replace(",", "\\,"), f"\\frac{{{7 * n}}}{{7}}", f"{n}\\text{{ cm}}"]
        forms += [f"x = {n}", f"{n}.0"]
    if fraction := re.fullmatch(r"\$?(-?)\\frac\{(\d+)\}\{(\d+)\}\$?", gold):
        sign, above, below = fraction.groups()
        forms += [f"{sign}{above}/{below}", f"{sign}\\frac{{{2 * int(above)}}}{{{2 * int(below)}}}"]
    members, number = gold.strip("$").split(","), re.fullmatch(r"[1-9]\d{0,2}(,\d{3})+", gold.strip("$"))
    if len(members) > 1 and not number and not re.search(r"[(\[{\\]", gold):
        forms += [", ".join(reversed(members)), "\\{" + ",".join(reversed(members)) + "\\}"]
    return [form for form in forms if "\\right" not in form or "\\left" in form]


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_a_gold_written_otherwise_is_right(benchmark):
    found = [bool((cheap(gold, form) or (False,))[0]) for gold in golds(benchmark) for form in renderings(gold)]
    assert sum(found) >= 0.98 * len(found)


# Golds of different problems that are the same answer.
EQUAL = ["-2,1", "1,-2"], ["180^\\circ", "\\pi"], ["10,\\!080", "10080"], ["$2n$", "$2 n$"], ["$k=1$", "1"]


@pytest.mark.parametrize("benchmark", ["aime24", "amc23", "math500", "minerva", "olympiadbench"])
def test_the_gold_of_another_problem_is_wrong(benchmark):
    pool = golds(benchmark)
    chance = random.Random(0)
    for gold in pool:
        for other in chance.sample(pool, min(8, len(pool))):
            if gold != other and not _same_number(gold, other) and [*sorted((gold, other))] not in EQUAL:
                assert (cheap(gold, other) or (False,))[0] is False, (gold, other)


def _same_number(gold: str, other: str) -> bool:
    """Marks and units that are forgiven where one side alone has them."""
    plain = [re.sub(r"^\+|\$|\\[!,%$]|[%,\s]|\^\{?\\circ\}?", "", text) for text in (gold, other)]
    return plain[0] == plain[1]


def test_e_notation_of_minerva():
    found = [gold for gold in (str(row["answer"]) for row in rows("benchmarks/minerva.jsonl")) if _scientific(gold)]
    assert len(found) == 58
    for gold in found:
        mantissa, exponent = gold.split("e")
        assert grade_answer(gold, f"{mantissa} \\times 10^{{{int(exponent)}}}").correct
        assert not grade_answer(gold, f"{mantissa} \\times 10^{{{int(exponent) + 1}}}").correct


def _scientific(gold: str) -> bool:
    return bool(re.fullmatch(r"-?\d+\.?\d*e[+-]?\d+", gold))

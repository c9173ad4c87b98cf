"""Redundant toy solutions: their share of needed thoughts, their order, and labels that follow from the text."""

import re
from collections import Counter

import pytest

from segrl.toy import CLASSES, REDUNDANCIES, sample_problems, sample_traces
from segrl.toy.problems import PATH
from segrl.toy.wording import count_tokens

STATED = re.compile(r"\b([a-i]) = \w[-+*]\d = (\d)\b")


@pytest.fixture(scope="module", params=REDUNDANCIES)
def traces(request):
    return sample_traces(300, seed=11, redundancy=request.param)


def thoughts_of(trace) -> list[str]:
    return trace.response.partition("\n</think>")[0].split("\n\n")


def test_two_of_three_thoughts_are_redundant(traces):
    """n steps: n that solve, 2n redundant, the close and the answer."""
    for trace in traces:
        n, kinds = trace.meta["n_steps"], trace.meta["kinds"]
        counts = Counter(kinds)
        assert (counts["needed"] + counts["correction"], counts["close"], counts["answer"]) == (n, 1, 1)
        assert counts["correction"] == counts["detour"]
        assert sum(CLASSES[kind] == "redundant" for kind in kinds) == 2 * n
        assert len(thoughts_of(trace)) == len(kinds) - 1 == len(trace.meta["steps"]) - 1 == 3 * n + 1


def test_a_third_of_the_tokens_is_needed(traces):
    pairs = [pair for trace in traces for pair in zip(trace.meta["kinds"], thoughts_of(trace), strict=False)]
    kept = sum(count_tokens(text) for kind, text in pairs if CLASSES[kind] != "redundant")
    assert 0.33 < kept / sum(count_tokens(text) for _, text in pairs) < 0.39


def test_kinds_follow_from_the_values_stated(traces):
    """The values are those of the answer; a detour states another, and the next thought corrects it."""
    drawn = set()
    for trace in traces:
        values, known = dict(zip(PATH, trace.answer, strict=False)), set()
        parts = list(zip(trace.meta["kinds"], trace.meta["steps"], thoughts_of(trace), strict=False))
        for i, (kind, at, text) in enumerate(parts):
            stated = STATED.search(text)
            assert bool(stated) == (kind in ("needed", "correction", "detour", "repeat"))
            if stated:
                assert stated[1] == PATH[at]
                assert (stated[2] == values[stated[1]]) == (kind != "detour")
            if kind == "detour":
                assert parts[i + 1][:2] == ("correction", at)
            assert ("was wrong" in text) == (kind == "correction")
            if kind in ("repeat", "recheck"):
                assert at in known
            if kind == "recheck":
                assert text.endswith(f"so {PATH[at]} = {values[PATH[at]]}.")
            if kind in ("needed", "correction"):
                assert at == len(known)
                known.add(at)
        drawn |= {kind for kind, _, _ in parts}
        assert trace.response.endswith(f"\\boxed{{{trace.answer}}}")
    expected = {"needed", "close", *REDUNDANCIES["repeats"]}
    assert drawn in (expected, expected | {"detour", "correction"})


def test_they_solve_the_same_problems_under_ids_of_their_own(traces):
    plain = sample_problems(5, seed=11)
    for trace, problem in zip(traces, plain, strict=False):
        assert (trace.problem, trace.answer, trace.problem_id) == (problem.problem, problem.answer, problem.id)
        assert trace.id.startswith(f"{problem.id}#")


@pytest.mark.parametrize("redundancy", REDUNDANCIES)
def test_sampling_is_fixed_by_the_seed(redundancy):
    few, more = (sample_traces(n, seed=3, redundancy=redundancy) for n in (4, 9))
    assert [(t.id, t.response) for t in few] == [(t.id, t.response) for t in more[:4]]


def test_an_unknown_redundancy_is_refused():
    with pytest.raises(ValueError, match="redundancy='waffle' is no redundancy of the toy world; it has 'repeats' and"):
        sample_traces(1, seed=0, redundancy="waffle")

"""Word problems: solutions are right, or wrong where they say so, read back from their text; and no surface tells."""

import random
import re

import numpy as np
import pytest
from testkit.real import smollm2_tokenizer
from testkit.tiny import metaspace_tokenizer

from segrl import toy
from segrl.grading import grade
from segrl.importance.ranking import auroc
from segrl.tokenization import tokenize_all
from segrl.toy import CLASSES
from segrl.worlds import WORLDS, world_traces
from segrl.worlds.scenarios import NAMES, SCENARIOS
from segrl.worlds.worded import OPENERS, Result, Step, _slip, results, sample_mistakes, sample_traces

EQUATION = re.compile(r"(\d+) ([-+*]) (\d+) = (\d+)")


@pytest.fixture(scope="module")
def right():
    return sample_traces(300, seed=0)


@pytest.fixture(scope="module")
def wrong():
    return sample_mistakes(300, seed=0)


def thoughts(trace) -> list[tuple[str, str, int]]:
    """(text, kind, step) of each thought."""
    texts = trace.response.partition("\n</think>")[0].split("\n\n")
    *kinds, answer = trace.meta["kinds"]
    assert answer == "answer"
    return list(zip(texts, kinds, trace.meta["steps"][:-1], strict=True))


def stated(text: str) -> tuple[int, int]:
    """What the arithmetic of a thought comes to, and what the thought says that it comes to."""
    [(left, op, right, value)] = EQUATION.findall(text)
    a, b = int(left), int(right)
    return {"+": a + b, "-": a - b, "*": a * b}[op], int(value)


# --- by hand ---------------------------------------------------------------------------------------------------------

# 6 * 12 = 72; 3 * 5 = 15; 72 + 15 = 87; 87 - 7 = 80
STEPS = [Step(6, "*", 12, ""), Step(3, "*", 5, ""), Step(Result(0), "+", Result(1), ""), Step(Result(2), "-", 7, "")]


def test_results_by_hand_and_a_slip_is_carried_where_it_is_read():
    assert results(STEPS) == [72, 15, 87, 80]
    assert results(STEPS, {1: 18}) == [72, 18, 90, 83]
    assert (
        Step(Result(0), "+", Result(1), "the total is {eq} pens").text([72, 15], 87) == "the total is 72 + 15 = 87 pens"
    )


def test_no_slip_stands_in_an_answer():
    steps = [Step(2, "*", 4, ""), Step(Result(0), "+", 75, "")]  # 8, 83: a slip to 3 or 13 would stand in 83, or in 88
    for seed in range(50):
        [(at, value)] = _slip(random.Random(seed), steps).items()
        assert at == 0
        assert value != 8
        assert str(value) not in "83"
        assert str(value) not in str(value + 75)


# --- every trace, read back from its text ----------------------------------------------------------------------------


def test_each_step_of_a_right_solution_is_right_and_the_last_is_the_answer(right):
    for trace in right:
        parts = thoughts(trace)
        needed = [(text, at) for text, kind, at in parts if kind == "needed"]
        assert [at for _, at in needed] == list(range(trace.meta["n_steps"]))
        values = [stated(text) for text, _ in needed]
        assert all(real == said for real, said in values)
        assert values[-1][1] == int(trace.answer)
        assert 3 <= len(needed) <= 7
        assert 1 < int(trace.answer) <= 5000
        assert len(parts) <= 10
        assert parts[-1][1] == "close"
        assert any(CLASSES[kind] == "redundant" for _, kind, _ in parts)


def test_a_step_reads_the_problem_and_the_steps_before_it(right):
    for trace in right:
        known = set(re.findall(r"\d+", trace.problem))
        for text, kind, _ in thoughts(trace):
            if kind == "needed":
                left, _, other, value = EQUATION.findall(text)[0]
                assert {left, other} <= known
                known.add(value)


def test_every_needed_result_is_used_later(right):
    """The planted truth: a step that nothing later reads would not be needed."""
    for trace in right:
        equations = [EQUATION.findall(text)[0] for text, kind, _ in thoughts(trace) if kind == "needed"]
        for i, (_, _, _, value) in enumerate(equations[:-1]):
            assert any(value in (left, other) for left, _, other, _ in equations[i + 1 :])


def test_redundant_thoughts_are_true_and_add_nothing(right):
    for trace in right:
        before: list[str] = []
        steps = {at: text for text, kind, at in thoughts(trace) if kind == "needed"}
        for text, kind, at in thoughts(trace):
            body = text.partition(" ")[2]
            if kind == "repeat":
                assert any(EQUATION.findall(text) == EQUATION.findall(earlier) for earlier in before)
                assert EQUATION.findall(text) == EQUATION.findall(steps[at])
            elif kind == "superficial":
                assert at == -1
                assert EQUATION.findall(text) not in [EQUATION.findall(step) for step in steps.values()]
                assert all(number in trace.problem for number in re.findall(r"\d+", body.partition("=")[0]))
                if "=" in text:
                    real, said = stated(text)
                    assert real == said
            before.append(text)


def test_one_step_is_wrong_and_carried_to_the_answer(right, wrong):
    for trace, good in zip(wrong, right, strict=True):
        assert (trace.problem, trace.answer, trace.problem_id) == (good.problem, good.answer, good.problem_id)
        assert trace.id != good.id
        steps = [(text, kind, at) for text, kind, at in thoughts(trace) if kind in ("needed", "wrong", "carried")]
        assert [at for _, _, at in steps] == list(range(trace.meta["n_steps"]))
        kinds = [kind for _, kind, _ in steps]
        assert kinds.count("wrong") == 1
        at = kinds.index("wrong")
        assert at < len(kinds) - 1
        assert set(kinds[:at]) <= {"needed"}
        assert kinds[-1] == "carried"
        values = [stated(text) for text, _, _ in steps]
        assert [real == said for real, said in values] == [kind != "wrong" for kind in kinds]
        box = re.search(r"\\boxed\{(\d+)\}", trace.response)[1]
        assert str(values[-1][1]) == box != trace.answer
        assert str(values[at][1]) not in box
        assert str(values[at][1]) not in trace.answer
        true = [stated(text)[1] for text, kind, _ in thoughts(good) if kind == "needed"]
        assert [said != truth for (_, said), truth in zip(values, true, strict=True)] == [k != "needed" for k in kinds]


def test_what_is_repeated_in_a_wrong_solution_is_right(wrong):
    for trace in wrong:
        kinds = {at: kind for _, kind, at in thoughts(trace) if kind in ("needed", "wrong", "carried")}
        assert all(kinds[at] == "needed" for _, kind, at in thoughts(trace) if kind == "repeat")


def test_the_grader_agrees(right, wrong):
    assert all(grade(trace.answer, trace.response).correct for trace in right[:40])
    assert not any(grade(trace.answer, trace.response).correct for trace in wrong[:40])


# --- no shortcut -----------------------------------------------------------------------------------------------------


def surface(traces) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """(features by name, is needed) of every needed or redundant thought."""
    rows, needed = [], []
    for trace in traces:
        parts = thoughts(trace)
        for i, (text, kind, _) in enumerate(parts):
            if CLASSES[kind] != "other":
                opener = next(place for place, word in enumerate(OPENERS) if text.startswith(word))
                digits = sum(map(str.isdigit, text))
                rows.append((len(text), len(text.split()), i, i / len(parts), digits, opener))
                needed.append(CLASSES[kind] == "needed")
    names = ("characters", "words", "index", "position", "digits", "opener")
    return dict(zip(names, np.array(rows, dtype=float).T, strict=True)), np.array(needed)


def test_no_surface_feature_tells_needed_from_redundant(right):
    features, needed = surface(right)
    assert 0.6 < needed.mean() < 0.8
    for name, values in features.items():
        assert 0.44 <= auroc(values, needed) <= 0.56, name
    for place in range(len(OPENERS)):
        assert 0.45 <= auroc(features["opener"] == place, needed) <= 0.55


def test_a_planted_shortcut_would_be_seen(right):
    features, needed = surface(right)
    longer = features["digits"] + ~needed * (np.arange(len(needed)) % 2) * 2
    assert auroc(longer, needed) < 0.44


# --- variety, seeds, segments ----------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_and_another_gives_others(right):
    assert [(t.problem, t.response) for t in sample_traces(5, seed=0)] == [(t.problem, t.response) for t in right[:5]]
    assert not {t.problem for t in right} & {t.problem for t in sample_traces(300, seed=1)}
    assert len({t.problem for t in right}) == len({t.id for t in right}) == 300


def test_the_words_vary(right):
    assert len(SCENARIOS) >= 6
    assert len(set(NAMES)) >= 30
    units = {scenario.unit for scenario in SCENARIOS} | {"dollars"}
    asked = {unit for unit in units for trace in right if f"How many {unit}" in trace.problem}
    assert asked == units
    assert not any("{" in trace.problem or "{" in trace.response.partition("\\boxed")[0] for trace in right)


@pytest.mark.parametrize("mistakes", [False, True])
@pytest.mark.parametrize("name", ["toy", "metaspace", "SmolLM2"])
def test_kinds_line_up_with_segments_for_any_tokenizer(name, mistakes):
    tokenizers = {"toy": lambda: toy.load_model()[1], "metaspace": metaspace_tokenizer, "SmolLM2": smollm2_tokenizer}
    traces = world_traces("worded", half="test", n=60, seed=0, wrong=mistakes)
    for trace in tokenize_all(traces, tokenizers[name](), "plain"):
        segments = WORLDS["worded"].cut(trace)
        assert len(segments) == len(trace.kinds)
        assert segments.kinds_S == ("thought",) * (len(segments) - 1) + ("answer",)
        starts = [int(trace.offsets_T[start, 0]) for start in segments.boundaries[:-1]]
        places = [0, *(match.end() for match in re.finditer("\n\n", trace.response))]
        assert all(0 <= start - place <= 3 for start, place in zip(starts[:-1], places, strict=True))


def test_few_enough_thoughts_on_demand():
    traces = world_traces("worded", half="dev", n=20, seed=0, most=6)
    assert len(traces) == 20
    assert all(len(trace.meta["kinds"]) <= 7 for trace in traces)

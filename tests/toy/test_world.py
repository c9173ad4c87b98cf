"""The toy world's promises: right answers, labels that follow from the text, and no surface shortcut to them."""

import hashlib
import re

import numpy as np
import pytest

from segrl.toy import problems, wording
from segrl.toy.world import CLASSES, sample_mistakes, sample_problems, sample_traces

BOUNDARY = re.compile(
    r"(?=\n\n(?:Wait|Alternatively|But wait|But alternatively|But just to|However|Not sure|Going back|Backtrack"
    r"|Trace back|Another))"
)
STATED = re.compile(r"\b([a-i]) = \w[-+*]\d = (\d)\b")
REDUNDANT = {"recheck", "detour"}  # kinds of the traces that are as redundant as real ones
CLOSE = "\n</think> So, the final answer is \\boxed{%s}"


ASKS = ("all", "last")


@pytest.fixture(scope="module", params=ASKS)
def traces(request):
    return sample_traces(1500, seed=11, ask=request.param)


@pytest.fixture(scope="module", params=ASKS)
def mistakes(request):
    return sample_mistakes(1500, seed=11, ask=request.param)


def solve(problem: str) -> dict[str, int]:
    """Every variable's value, from the problem's text alone."""
    definitions = dict(re.findall(r"([a-z]) = ([^;.]+)", problem))

    def value(term: str) -> int:
        if term.isdigit():
            return int(term)
        left, op, right = re.fullmatch(r"(\w)([-+*])(\d)", definitions[term]).groups()
        x, y = value(left), int(right)
        return (x + y if op == "+" else x - y if op == "-" else x * y) % 10

    return {name: value(name) for name in definitions}


def asked_of(problem: str) -> list[str]:
    every, last = re.search(r"Write the (?:values of ([a-i ]+) as one number|value of ([a-i]))\.$", problem).groups()
    return (every or last).split()


def segments_of(trace) -> list[str]:
    thinking, tag, rest = trace.response.partition("</think>")
    return [*BOUNDARY.split(thinking), tag + rest]


def test_the_answer_is_what_the_problem_defines(traces):
    for trace in traces:
        values, asked = solve(trace.problem), asked_of(trace.problem)
        path = sorted(set(values) & set(problems.PATH))
        assert asked in (path, path[-1:])
        assert trace.answer == "".join(str(values[name]) for name in asked)
        assert 3 <= len(path) == trace.meta["n_steps"] <= 9
        assert len(asked) == 1 or trace.answer[0] != "0"
        assert trace.response.endswith(CLOSE % trace.answer)
        assert trace.response.count("</think>") == 1


def test_every_step_is_needed_for_the_last_value():
    """Each path variable is defined from the one before it, the first from two digits; distractors hang on any."""
    drawn = sample_problems(300, seed=11, ask="last")
    lefts = [dict(re.findall(r"([a-z]) = (\w)", problem.problem)) for problem in drawn]
    for left in lefts:
        path = sorted(set(left) & set(problems.PATH))
        assert [left[name] for name in path[1:]] == path[:-1]
        assert left["a"].isdigit()
    assert {left["z"] for left in lefts if "z" in left} >= set("abcdefg123456789")
    assert {problem.answer for problem in drawn} == set("0123456789")


def test_each_segment_has_a_kind_and_a_step(traces):
    for trace in traces:
        segments = segments_of(trace)
        assert "".join(segments) == trace.response
        assert len(segments) == len(trace.meta["kinds"]) == len(trace.meta["steps"])
        assert set(trace.meta["kinds"]) <= set(CLASSES)


def kinds_from_text(trace) -> list[str]:
    """The kinds again, from the values that the thoughts state."""
    values, known, kinds = solve(trace.problem), set(), []
    for segment in segments_of(trace):
        stated = STATED.search(segment)
        if "</think>" in segment:
            kinds.append("answer")
        elif "together that makes" in segment:
            kinds.append("restated")
        elif re.search(r"gives . back", segment):
            kinds.append("check")
        elif re.search(r"\bn\b|as it is[.]", segment):
            kinds.append("superficial")
        elif segment.endswith("..."):
            kinds.append("truncated")
        elif not stated:
            kinds.append("close")
        elif int(stated[2]) != values[stated[1]]:
            kinds.append("wrong")
        elif stated[1] in known:
            kinds.append("repeat")
        else:
            kinds.append("correction" if "was wrong" in segment else "needed")
            known.add(stated[1])
    return kinds


def test_kinds_follow_from_the_values_stated(traces):
    for trace in traces:
        assert kinds_from_text(trace) == list(trace.meta["kinds"])
    assert {kind for trace in traces for kind in trace.meta["kinds"]} == set(CLASSES) - REDUNDANT - {"carried"}


def test_every_step_is_solved_once_in_order_and_wrong_ones_are_corrected(traces):
    for trace in traces:
        pairs = list(zip(trace.meta["kinds"], trace.meta["steps"], strict=True))
        assert [at for kind, at in pairs if kind in ("needed", "correction")] == list(range(trace.meta["n_steps"]))
        for i, (kind, at) in enumerate(pairs):
            if kind == "wrong":
                assert ("correction", at) in pairs[i + 1 :]
                assert ("needed", at) not in pairs
            if kind in ("repeat", "check"):
                assert {("needed", at), ("correction", at)} & set(pairs[:i])


def test_a_value_stands_only_in_its_own_step(traces):
    """No thought about another step, no superficial one and no close may leak a needed value next to its name."""
    for trace in traces:
        for segment, kind, at in zip(segments_of(trace), trace.meta["kinds"], trace.meta["steps"], strict=True):
            named = {name for name, _ in re.findall(r"\b([a-i]) = (\d)\b(?![-+*])", segment)}
            named |= {name for name, _ in STATED.findall(segment)}
            assert named <= ({problems.PATH[at]} if at >= 0 else set())
            if kind in ("truncated", "superficial", "close"):
                assert not named


# Mistakes that are carried on


def test_what_a_mistake_carries_on_follows_from_what_is_stated(mistakes):
    """An oracle of its own: solve the problem with the first false value put in the place of its definition."""
    for trace in mistakes:
        pairs = list(zip(segments_of(trace), trace.meta["kinds"], trace.meta["steps"], strict=True))
        [(text, at)] = [(text, at) for text, kind, at in pairs if kind == "wrong"]
        name, value = STATED.search(text).groups()
        assert name == problems.PATH[at]
        true, stated = solve(trace.problem), solve(f"{trace.problem} {name} = {value}+0")
        assert true[name] != stated[name] == int(value)
        for text, kind, step in pairs:
            said = STATED.search(text)
            assert not said or int(said[2]) == stated[said[1]]
            if kind in ("needed", "wrong", "carried"):
                off = stated[said[1]] != true[said[1]]
                assert kind == ("needed" if not off else "wrong" if step == at else "carried")
            if kind == "check":
                assert f"so {problems.PATH[step]} = {stated[problems.PATH[step]]}." in text
        boxed = "".join(str(stated[name]) for name in asked_of(trace.problem))
        assert trace.response.endswith(CLOSE % boxed)
        assert trace.answer == "".join(str(true[name]) for name in asked_of(trace.problem)) != boxed
        assert all(f"makes {boxed}." in text for text, kind, _ in pairs if kind == "restated")
    kinds = {kind for trace in mistakes for kind in trace.meta["kinds"]}
    assert kinds == set(CLASSES) - REDUNDANT - {"correction"}


def test_each_step_is_stated_once_in_a_mistaken_response(mistakes):
    for trace in mistakes:
        pairs = zip(trace.meta["kinds"], trace.meta["steps"], strict=True)
        solved = [step for kind, step in pairs if kind in ("needed", "wrong", "carried")]
        assert solved == list(range(trace.meta["n_steps"]))


def test_every_step_is_as_often_the_wrong_one(mistakes):
    """Of the problems with five steps: all five, or all but the last where only its value is asked."""
    five = [trace.meta for trace in mistakes if trace.meta["n_steps"] == 5]
    wrong = [meta["steps"][meta["kinds"].index("wrong")] for meta in five]
    steps = 5 if len(asked_of(mistakes[0].problem)) > 1 else 4
    counts = np.bincount(wrong, minlength=5)
    expected = len(wrong) / steps
    assert (abs(counts[:steps] - expected) < 4 * np.sqrt(expected)).all()
    assert not counts[steps:].any()


def test_the_wrong_value_stands_in_neither_answer_of_a_last_value():
    for trace in sample_mistakes(1500, seed=12):
        text = segments_of(trace)[trace.meta["kinds"].index("wrong")]
        boxed = re.search(r"boxed\{(\d)\}$", trace.response)[1]
        assert STATED.search(text)[2] not in (boxed, trace.answer)
        assert boxed != trace.answer


def test_a_mistaken_response_is_one_to_the_same_problem(mistakes):
    asked = "all" if len(asked_of(mistakes[0].problem)) > 1 else "last"
    for trace, problem in zip(mistakes, sample_problems(50, seed=11, ask=asked), strict=False):
        assert (trace.problem, trace.answer, trace.problem_id) == (problem.problem, problem.answer, problem.id)
        assert trace.id == f"{problem.id}#mistake"


# Seeds


@pytest.mark.parametrize("ask", ASKS)
def test_sampling_is_fixed_by_the_seed(ask):
    asked, traces = sample_problems(30, 3, ask), sample_traces(20, 3, ask=ask)
    assert [t.problem for t in traces] == [p.problem for p in asked[:20]]
    assert [t.id for t in traces] == [p.id for p in asked[:20]]
    assert [t.response for t in sample_traces(5, 3, ask=ask)] == [t.response for t in traces[:5]]
    assert [t.response for t in sample_mistakes(5, 3, ask)] == [t.response for t in sample_mistakes(8, 3, ask)[:5]]
    assert all(p.response == "" and p.answer for p in asked)
    assert not {p.problem for p in asked} & {p.problem for p in sample_problems(30, 4, ask)}
    assert not {p.id for p in asked} & {p.id for p in sample_problems(30, 4, ask)}
    assert len({p.id for p in asked}) == 30


def test_the_two_questions_share_no_id_and_a_third_is_refused():
    every, last = ({p.id for p in sample_problems(30, 3, ask)} for ask in ASKS)
    assert not every & last
    with pytest.raises(ValueError, match="ask='first' is no question of the toy world; it has 'all' and 'last'"):
        sample_problems(1, 3, "first")


def test_the_first_trace_is_the_same_on_every_machine():
    [trace] = sample_traces(1, seed=0)
    digest = hashlib.sha256(f"{trace.problem}\n{trace.response}".encode()).hexdigest()
    assert (trace.id, trace.answer, digest[:12]) == ("toy-0-0", "733144287", "eab9919f4ad8")


# No shortcut


def auroc(score, positive) -> float:
    """The probability that a positive outranks a negative, ties counting half, turned to the better side."""
    order = np.sort(score)
    rank = (np.searchsorted(order, score, "left") + np.searchsorted(order, score, "right") + 1) / 2
    n, m = positive.sum(), (~positive).sum()
    area = (rank[positive].sum() - n * (n + 1) / 2) / (n * m)
    return max(area, 1 - area)


def test_auroc_by_hand():
    # the positives 3 and 1 against the negatives 2 and 1: 3 beats both, 1 loses once and ties once: (2 + 0.5) / 4
    assert auroc(np.array([3.0, 1.0, 2.0, 1.0]), np.array([True, True, False, False])) == 0.625


def logistic_scores(train, labels, test, steps: int = 40):
    """Newton's method on standardised features with a small ridge."""
    centre, scale = train.mean(0), train.std(0) + 1e-9
    x, new = ((np.c_[(f - centre) / scale, np.ones(len(f))]) for f in (train, test))
    weights = np.zeros(x.shape[1])
    for _ in range(steps):
        p = 1 / (1 + np.exp(-x @ weights))
        gradient = x.T @ (labels - p) - 1e-3 * weights
        curvature = (x * (p * (1 - p))[:, None]).T @ x + 1e-3 * np.eye(len(weights))
        weights += np.linalg.solve(curvature, gradient)
    return new @ weights


def surface(traces):
    """(features by name, is needed) of every needed or redundant segment."""
    rows, needed = [], []
    for trace in traces:
        segments = segments_of(trace)
        for i, (segment, kind) in enumerate(zip(segments, trace.meta["kinds"], strict=True)):
            if CLASSES[kind] == "other":
                continue
            text = segment.strip()
            opener = next((o for o in wording.OPENERS if text.startswith(o)), wording.FIRST_OPENER)
            keyword = (*wording.OPENERS, wording.FIRST_OPENER).index(opener)
            characters = sum(map(len, segments[:i])) / len(trace.response)
            size, digits = (wording.count_tokens(text), len(text)), sum(map(str.isdigit, text))
            rows.append([*size, i, i / len(segments), characters, digits, keyword])
            needed.append(CLASSES[kind] == "needed")
    features, needed = np.array(rows, dtype=float), np.array(needed)
    return {
        "length": features[:, :2],
        "position": features[:, 2:5],
        "digits": features[:, 5:6],
        "keyword": np.eye(len(wording.OPENERS) + 1)[features[:, 6].astype(int)],
    }, needed


def test_no_surface_feature_tells_needed_from_redundant(traces):
    features, needed = surface(traces)
    assert 0.3 < needed.mean() < 0.8
    for name in ("length", "position", "digits"):
        for column in features[name].T:
            assert auroc(column, needed) <= 0.60, name
    half = len(needed) // 2
    for name, chosen in [*((name, [name]) for name in features), ("all four", list(features))]:
        x = np.hstack([features[key] for key in chosen])
        scores = logistic_scores(x[:half], needed[:half], x[half:])
        assert auroc(scores, needed[half:]) <= 0.60, name


def test_a_planted_shortcut_would_be_seen(traces):
    """The same measure finds the skew when, say, redundant segments were longer by a token half of the time."""
    features, needed = surface(traces)
    longer = features["length"] + ((~needed) * (np.arange(len(needed)) % 2))[:, None] * 2
    assert auroc(longer[:, 0], needed) > 0.60

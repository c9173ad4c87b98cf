"""The toy world's promises: right answers, labels that follow from the text, and no surface shortcut to them."""

import hashlib
import re

import numpy as np
import pytest

from segrl.toy import world
from segrl.toy.world import CLASSES, count_tokens, sample_problems, sample_traces

BOUNDARY = re.compile(
    r"(?=\n\n(?:Wait|Alternatively|But wait|But alternatively|But just to|However|Not sure|Going back|Backtrack"
    r"|Trace back|Another))"
)
STATED = re.compile(r"\b([a-i]) = \w[-+*]\d = (\d)\b")
CLOSE = "\n</think> So, the final answer is \\boxed{%s}"


@pytest.fixture(scope="module")
def traces():
    return sample_traces(1500, seed=11)


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


def segments_of(trace) -> list[str]:
    thinking, tag, rest = trace.response.partition("</think>")
    return [*BOUNDARY.split(thinking), tag + rest]


def test_the_answer_is_what_the_problem_defines(traces):
    for trace in traces:
        values = solve(trace.problem)
        asked = re.search(r"values of ([a-i ]+) as one", trace.problem).group(1).split()
        assert trace.answer == "".join(str(values[name]) for name in asked)
        assert 3 <= len(asked) == trace.meta["n_steps"] <= 9
        assert trace.answer[0] != "0"
        assert trace.response.endswith(CLOSE % trace.answer)
        assert trace.response.count("</think>") == 1


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
    assert {kind for trace in traces for kind in trace.meta["kinds"]} == set(CLASSES)


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
            assert named <= ({world.PATH[at]} if at >= 0 else set())
            if kind in ("truncated", "superficial", "close"):
                assert not named


def test_sampling_is_fixed_by_the_seed():
    problems, traces = sample_problems(30, seed=3), sample_traces(20, seed=3)
    assert [t.problem for t in traces] == [p.problem for p in problems[:20]]
    assert [t.id for t in traces] == [p.id for p in problems[:20]]
    assert [t.response for t in sample_traces(5, seed=3)] == [t.response for t in traces[:5]]
    assert all(p.response == "" and p.answer for p in problems)
    assert not {p.problem for p in problems} & {p.problem for p in sample_problems(30, seed=4)}
    assert not {p.id for p in problems} & {p.id for p in sample_problems(30, seed=4)}
    assert len({p.id for p in problems}) == 30


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
            opener = next((o for o in world.OPENERS if text.startswith(o)), world.FIRST_OPENER)
            keyword = (*world.OPENERS, world.FIRST_OPENER).index(opener)
            characters = sum(map(len, segments[:i])) / len(trace.response)
            rows.append(
                [count_tokens(text), len(text), i, i / len(segments), characters, sum(map(str.isdigit, text)), keyword]
            )
            needed.append(CLASSES[kind] == "needed")
    features, needed = np.array(rows, dtype=float), np.array(needed)
    return {
        "length": features[:, :2],
        "position": features[:, 2:5],
        "digits": features[:, 5:6],
        "keyword": np.eye(len(world.OPENERS) + 1)[features[:, 6].astype(int)],
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

"""The table of truth: agreement by hand, what is known of a trace, and every arm on the bundled model."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import segrl
from segrl import toy
from segrl.analysis.agreement import agreement, difference, table
from segrl.analysis.arms import (
    CARRIES,
    MISLED,
    PAPER,
    Bench,
    Measured,
    arm_named,
    by_thought,
    gap_of,
)
from segrl.analysis.text_controls import digits, lookup, new_result, redone
from segrl.analysis.truth import check_known, judged, truth_of
from segrl.analysis.truth_page import frontier, side_by_side, truth_page
from segrl.importance import MEASURES, from_strength
from segrl.types import Evidence, Segments

KINDS = ["needed", "repeat", "needed", "restated", "close"]


def row(name, truth, answer_tokens=1, **scores):
    costs = dict.fromkeys(scores, 12.0)
    about = {"id": name, "answer_tokens": answer_tokens, "truth": truth}
    return {**about, "scores": scores, "evaluations": costs, "seconds": costs}


def test_the_table_by_hand():
    rows = [
        # needed 5 and 1 against the repeat's 3: one pair of two is ranked right; restated and close do not count
        row("a", {"kinds": KINDS, "shapley": [4, 0, 2, 9, -1]}, ig=[5, 3, 1, 9, 9], length=[1] * 5),
        # one pair, ranked wrong
        row("b", {"kinds": ["repeat", "needed"], "shapley": [0, 1]}, 3, ig=[2, 1], length=[1, 1]),
        # nothing redundant: no AUROC against the planted kinds
        row("c", {"kinds": ["needed", "close"], "shapley": [1, 0]}, 3, ig=[2, 1], length=[1, 1]),
    ]
    lines = table(rows)
    assert list(lines) == ["ig", "length"]
    ig = lines["ig"]
    assert ig["planted_auroc"].mean == pytest.approx((0.5 + 0) / 2)
    assert ig["traces"] == {
        "planted_auroc": 2,
        "planted_ap": 2,
        "shapley_auroc": 3,
        "shapley_spearman": 3,
        "shapley_spearman_but_last": 1,  # b and c have a single thought before their last
    }
    # precision 1 and 2/3 at the needed ones of a; 1/2 in b
    assert ig["planted_ap"].mean == pytest.approx((5 / 6 + 1 / 2) / 2)
    # a without its restated answer: Shapley 4 0 2 -1, above the median 1 the first and third; of the pairs
    # 5>3, 5<9, 1<3, 1<9 one is right; b wrong, c right
    assert ig["shapley_auroc"].mean == pytest.approx((1 / 4 + 0 + 1) / 3)
    assert ig["shapley_spearman"].mean == pytest.approx((-0.4 - 1 + 1) / 3)
    # 5 3 1 against 4 0 2: ranks 3 2 1 and 3 1 2
    assert ig["shapley_spearman_but_last"].mean == pytest.approx(0.5)
    assert ig["evaluations"] == 12
    assert lines["length"]["planted_auroc"].mean == 0.5
    assert lines["length"]["above"]["planted_auroc"].mean == pytest.approx(0.25)
    # the restated answer of a stands beside close and above three of four others
    assert ig["by_kind"]["restated"].mean == pytest.approx(3.5 / 4)
    assert ig["by_length"] == {"1 token": (0.5, 1), "2 to 4": (0.0, 1)}
    page = truth_page("toy", lines, 3, "ig")
    assert "AUROC, planted: 2 of 3 traces" in page
    assert "| ig | 0.25 [" in page


def test_gaps_by_hand():
    """Of 0.1, 0.2 and 0.6 the median is 0.2 and the 90th percentile 0.2 + 0.8 * 0.4."""
    kinds = {"kinds": ["needed", "repeat"]}
    rows = [row(name, kinds, ig=[2, 1], length=[1, 1]) for name in "abcde"]
    for of_trace, gap in zip(rows[:3], (0.6, 0.1, 0.2), strict=True):
        of_trace["gaps"] = {"ig": gap}
    rows[3]["gaps"] = {}  # a flat path; the last row is one of an earlier run
    lines = table(rows)
    assert lines["ig"]["gap"] == pytest.approx({"median": 0.2, "p90": 0.52, "traces": 3})
    assert lines["length"]["gap"] is None
    assert "| ig | 0.200 | 0.520 | 3 |" in truth_page("toy", lines, 5, "ig")
    assert "Completeness gap" not in truth_page("toy", table(rows[3:]), 2, "ig")


def test_the_first_wrong_step_by_hand():
    """Four thoughts, the second is it: two of three others lie below; it shares the top with one of them."""
    known = {"mistake": 1}
    assert agreement(row("a", known), [0, 2, 1, 3])["mistake_auroc"] == pytest.approx(2 / 3)
    assert agreement(row("a", known), [0, 2, 1, 3])["mistake_top1"] == 0
    assert agreement(row("a", known), [0, 2, 1, 2])["mistake_top1"] == 0.5
    assert agreement(row("a", known), [0, 3, 1, 2])["mistake_top1"] == 1


def test_what_is_marked_by_hand():
    """In two of four responses a thought is marked: once the first wrong step, once one that carries it on."""
    marks = {"a": [1], "b": [], "c": [2], "d": []}
    rows = [
        {**row(name, {"mistake": 1, "misled": [1, 2]}, x=[0, 1, 2]), "marked": {"x": marked}}
        for name, marked in marks.items()
    ]
    lines = table(rows, "x")
    marked = {column: estimate.mean for column, estimate in lines["x"]["marked"].items()}
    assert marked == {"marked": 0.5, "first wrong step": 0.5, "wrong or carried": 1}
    assert "| x | 0.50 [" in truth_page("toy", lines, 4, "x").partition("is marked")[2]
    assert "is marked" not in truth_page("toy", table([{**each, "marked": {}} for each in rows], "x"), 4, "x")


def test_a_difference_is_paired_over_the_traces_that_both_know():
    results = [{"x": 1.0}, {"x": 0.5}, {"x": None}]
    others = [{"x": 0.0}, {"x": 0.5}, {"x": 0.3}]
    assert difference(results, others, "x").mean == 0.5


def test_a_measure_of_tokens_counts_a_thoughts_tokens_among_the_top():
    segments = Segments((0, 2, 6, 8), ("thought", "thought", "answer"))
    scores_T = torch.tensor([9.0, 1, 8, 0, 7, 0, 99, 99])
    by_token = from_strength(scores_T, segments.by_token, segment_T=segments.index_T)
    # 45% of six thinking tokens are three: 9, 8, 7
    assert by_thought(by_token, segments) == [0.5, 0.5]
    assert by_thought(from_strength(torch.tensor([1.0, 2, 3]), segments), segments) == [1, 2]


def bench(response, answer):
    model, tokenizer = toy.load_model()
    trace = segrl.tokenize(segrl.Trace("t", "p", response, answer), tokenizer)
    return Bench(model, tokenizer, trace, segrl.segment(trace), {})


def test_the_gap_of_a_flat_path_is_left_out():
    on = bench("a = 3+9 = 2.</think>", "2")
    [attribution] = segrl.attribute(on.model, [on.trace], on.tokenizer, **{**PAPER, "nodes": 2, "tolerance": None})
    for flags, gap in (((), attribution.gap), (("flat",), None)):
        evidence = Evidence(on.trace, contrast=replace(attribution, flags=flags))
        assert gap_of(evidence, ("contrast",)) == gap
    assert attribution.gap is not None
    assert gap_of(evidence, ()) is None


def test_a_lookup_finds_the_first_thought_that_states_what_parts_the_answers():
    thoughts = ["Okay, a = 3+9 = 2.", "Wait, b = 5+1 = 7.", "However, so 7."]
    trace = bench("\n\n".join(thoughts) + "\n</think> So, the final answer is \\boxed{27}", "26").trace
    assert lookup(thoughts, trace) == [0.0, 2.0, 1.0]
    assert digits(thoughts, trace) == [3.0, 3.0, 1.0]
    trace = bench("\n\n".join(thoughts) + "\n</think> So, the final answer is \\boxed{7}", "126").trace
    assert lookup(thoughts, trace) == [0.0, 2.0, 1.0]


def test_what_a_reader_of_the_text_alone_finds():
    """A new result is needed, one that was stated is not; the first operation that is done wrong is the mistake, and
    what is computed rightly from it is none."""
    modulo = segrl.Trace("t", "Modulo ten: a = 3+9; b = a*7.", "")
    thoughts = ["So a = 3+9 = 2.", "Wait, a = 3+9 = 2.", "Now b = a*7, 7...", "Then b = a*7 = 5.", "So c = b-8 = 7."]
    assert new_result(thoughts, modulo) == [1.0, 0.0, 0.0, 1.0, 1.0]
    assert redone(thoughts, modulo) == [0.0, 0.0, 0.0, 2.0, 0.0]
    worded = segrl.Trace("t", "Ada packs 6 boxes.", "")
    thoughts = ["They hold 6 * 12 = 72 pens.", "We know that Omar brings 15.", "It comes to 72 + 15 = 88 pens."]
    assert new_result(thoughts, worded) == [1.0, 0.0, 1.0]
    assert redone(thoughts, worded) == [0.0, 0.0, 1.0]


def test_the_frontier_leaves_out_what_something_cheaper_reaches():
    points = {"free": (0.02, 0.6), "dear": (57, 0.8), "better": (1, 0.8), "worse": (1, 0.5), "best": (60, 0.9)}
    assert frontier(points) == ["free", "better", "best"]


def test_arms_of_the_same_cost_stand_side_by_side():
    places = side_by_side({"a": 0.0, "b": 1.0, "c": 1.0, "d": 50.0})
    assert places["a"] == pytest.approx(0.02)
    assert places["b"] * places["c"] == pytest.approx(1)
    assert places["b"] < 1 < places["c"]
    assert places["d"] == 50


def test_a_truth_that_is_not_known_is_refused():
    _, tokenizer = toy.load_model()
    trace = segrl.tokenize(toy.sample_traces(1, seed=3)[0], tokenizer)
    with pytest.raises(ValueError, match=r"has \d+ kinds for \d+ segments: its truth is not known"):
        check_known(trace, segrl.segment(trace, "paragraphs", max_segments=2), ["planted"])
    bare = segrl.tokenize(segrl.Trace(id="x", problem="p", response="a\n\nWait, b", answer="1"), tokenizer)
    with pytest.raises(ValueError, match="trace 'x' has no planted kinds"):
        check_known(bare, segrl.segment(bare), ["planted"])
    with pytest.raises(ValueError, match="has no step of kind 'wrong'"):
        check_known(trace, segrl.segment(trace), ["mistake"])
    check_known(bare, segrl.segment(bare), ["shapley"])


def test_an_arm_is_of_the_table_or_a_measure_with_its_options():
    assert arm_named("ig", CARRIES, {"ig": {"aggregate": "sum"}}) is CARRIES["ig"]
    assert arm_named("oar", {}, {"oar": {"aggregate": "sum"}}) == Measured("oar", {"aggregate": "sum"})
    with pytest.raises(ValueError, match="no arm and no measure 'igg', did you mean 'ig'"):
        arm_named("igg", CARRIES, {})


def rows_of(traces, arms, truths, tokenizer, model, options):
    rows = []
    for trace in traces:
        trace = segrl.tokenize(trace, tokenizer)
        segments = segrl.segment(trace)
        truth = truth_of(model, tokenizer, trace, segments, truths, {"target": "gold"})
        rows.append({**judged(model, tokenizer, trace, segments, arms, options), "truth": truth})
    return rows


def test_a_budget_of_forwards_is_raised_to_what_the_thoughts_take():
    """10 thoughts take 22 forwards, 4 are exact with 16."""
    model, tokenizer = toy.load_model()
    text = "\n\n".join(f"Wait, {name} = 3+9 = 2." for name in "abcdefghij")
    for thoughts in (10, 4):
        response = "\n\n".join(text.split("\n\n")[:thoughts]) + "\n</think> So, the final answer is \\boxed{2}"
        trace = segrl.tokenize(segrl.Trace("t", "p", response, "2"), tokenizer)
        segments = segrl.segment(trace)
        assert int(segments.thought_S.sum()) == thoughts
        assert len(CARRIES["shapley, 16 forwards"].run(Bench(model, tokenizer, trace, segments, {})).values) == thoughts


def test_sampled_and_exact_shapley_values_are_of_the_same_game(monkeypatch):
    """With more forwards than there are subsets the sampled values are the exact ones."""
    model, tokenizer = toy.load_model()
    short = min(toy.sample_traces(40, seed=3), key=lambda trace: len(trace.meta["kinds"]))
    trace = segrl.tokenize(short, tokenizer)
    segments, options = segrl.segment(trace), {"target": "gold", "forwards": 512}
    exact = truth_of(model, tokenizer, trace, segments, ["shapley"], options)
    monkeypatch.setattr("segrl.analysis.truth.MOST", 0)
    sampled = truth_of(model, tokenizer, trace, segments, ["shapley"], options)
    assert sampled["shapley"] == pytest.approx(exact["shapley"], abs=1e-4)
    for end in ("without", "with"):
        assert sampled[end] == pytest.approx(exact[end], abs=1e-4)


@pytest.mark.e2e
def test_every_arm_runs_and_the_oracle_is_right():
    model, tokenizer = toy.load_model()
    short = sorted(toy.sample_traces(40, seed=3), key=lambda trace: len(trace.meta["kinds"]))[:2]
    plain = {name: arm_named(name, {}, {}) for name, measure in MEASURES.items() if measure.offline}
    options = {"nodes": 6, "tolerance": None, "samples": 2, "continuations": 2}
    rows = rows_of(short, {**plain, **CARRIES}, ["planted", "shapley"], tokenizer, model, options)
    lines = table(rows)
    assert lines["oracle"]["planted_auroc"].mean == 1
    assert lines["strength"]["evaluations"] == 8  # a plain measure takes the run's options
    assert lines["values, 1 at half"]["evaluations"] == 1
    assert lines["length"]["evaluations"] == 0
    assert lines["leave_one_out"]["shapley_spearman"].mean > 0.3
    gates = {"path": "values", "output": "log_odds", "nodes": 1, "tolerance": None}
    found = segrl.attribute(model, [segrl.tokenize(trace, tokenizer) for trace in short], tokenizer, **gates)
    for of_trace, attribution in zip(rows, found, strict=True):  # the table's scores are those that anybody gets
        summed = sum(of_trace["scores"]["values, 1 at half"])
        assert summed == pytest.approx(float(attribution.scores_T.sum()), rel=1e-3)
    for of_trace, trace in zip(rows, short, strict=True):
        [attribution] = segrl.attribute(model, [segrl.tokenize(trace, tokenizer)], tokenizer, **PAPER)
        gap = None if "flat" in attribution.flags else pytest.approx(attribution.gap, rel=1e-3)
        assert [of_trace["gaps"].get(name) for name in ("ig", "ig, tau", "permuted")] == [gap] * 3
        assert not {"length", "values, 1 at half", "pmi"} & {*of_trace["gaps"]}  # a single node has no certificate


@pytest.mark.e2e
def test_every_arm_of_a_wrong_solution_runs():
    model, tokenizer = toy.load_model()
    wrong = sorted(toy.sample_mistakes(40, seed=3, ask="all"), key=lambda trace: len(trace.meta["kinds"]))[:2]
    lines = table(rows_of(wrong, MISLED, ["mistake"], tokenizer, model, {"continuations": 2}))
    assert lines["contrast, values, 1 at half"]["evaluations"] == pytest.approx(1, abs=0.1)
    assert all(np.isfinite(line["mistake_auroc"].mean) for line in lines.values())
    assert {name for name, line in lines.items() if line["marked"]} == {
        "contrast, three readings",
        "contrast, three readings, dealt",
    }

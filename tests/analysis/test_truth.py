import pytest
import torch

import segrl
from segrl import toy
from segrl.analysis.truth import aggregates, by_thought, check_planted, judged, table, variants
from segrl.importance import MEASURES, from_strength
from segrl.types import Segments

KINDS = ["needed", "repeat", "needed", "restated", "close"]


def row(name, kinds, scores, shapley, keywords=None):
    return {
        "id": name,
        "problem_id": name,
        "kinds": kinds,
        "keywords": keywords or ["Wait"] * len(kinds),
        "answer_logp": [-9.0, 0.0],
        "scores": {"length": [1.0] * len(kinds), **scores, "shapley": shapley},
        "costs": {"ig": 12.0, "shapley": 2.0 ** len(kinds)},
    }


def test_the_table_by_hand():
    rows = [
        # needed 5 and 1 against the repeat's 3: one pair of two is ranked right; restated and close do not count
        row("a", KINDS, {"ig": [5, 3, 1, 9, 9]}, [4, 0, 2, 9, -1]),
        # one pair, ranked wrong
        row("b", ["repeat", "needed"], {"ig": [2, 1]}, [0, 1]),
        # nothing redundant: no AUROC against the planted kinds
        row("c", ["needed", "close"], {"ig": [2, 1]}, [1, 0]),
    ]
    found = table(rows)
    assert list(found)[:2] == ["length", "keyword"]
    ig = found["ig"]
    assert ig["planted_auroc"].mean == pytest.approx((0.5 + 0) / 2)
    assert ig["traces"] == {"planted_auroc": 2, "planted_ap": 2, "shapley_auroc": 3, "shapley_spearman": 3}
    # precision 1 and 2/3 at the needed ones of a; 1/2 in b
    assert ig["planted_ap"].mean == pytest.approx((5 / 6 + 1 / 2) / 2)
    # a without its restated answer: Shapley 4 0 2 -1, above the median 1 the first and third; of the pairs
    # 5>3, 5<9, 1<3, 1<9 one is right; b wrong, c right
    assert ig["shapley_auroc"].mean == pytest.approx((1 / 4 + 0 + 1) / 3)
    assert ig["shapley_spearman"].mean == pytest.approx((-0.4 - 1 + 1) / 3)
    assert ig["evaluations"] == 12
    # Shapley ranks its own truth right in a, b and c, ig a quarter, none and all
    assert found["shapley"]["above_ig"]["shapley_auroc"].mean == pytest.approx(1 - (1 / 4 + 0 + 1) / 3)
    assert found["length"]["planted_auroc"].mean == 0.5
    assert found["shapley"]["shapley_auroc"].mean == 1
    # the restated answer of a stands beside close and above three of four others
    assert ig["by_kind"]["restated"].mean == pytest.approx(3.5 / 4)


def test_keywords_are_judged_by_the_other_half_of_the_traces():
    """In a and c, the one half, Wait opens what is needed; in b, the other, what is redundant: so b's are misjudged."""
    openings = ["Wait", "However"]
    rows = [
        row("a", ["needed", "repeat"], {}, [1, 0], openings),
        row("b", ["repeat", "needed"], {}, [0, 1], openings),
        row("c", ["needed", "repeat"], {}, [1, 0], openings),
    ]
    assert table(rows)["keyword"]["planted_auroc"].mean == 0


def test_a_measure_of_tokens_counts_a_thoughts_tokens_among_the_top():
    segments = Segments((0, 2, 6, 8), ("thought", "thought", "answer"))
    scores_T = torch.tensor([9.0, 1, 8, 0, 7, 0, 99, 99])
    by_token = from_strength(scores_T, segments.by_token, segment_T=segments.index_T)
    # 45% of six thinking tokens are three: 9, 8, 7
    assert by_thought(by_token, segments) == [0.5, 0.5]
    assert by_thought(from_strength(torch.tensor([1.0, 2, 3]), segments), segments) == [1, 2]


def test_every_other_way_along_the_path_is_a_row():
    found = variants({"context": "think", "hide_answer": False, "interpolate": "response", "nodes": 3})
    assert list(found) == ["ig context=full", "ig hide_answer=true", "ig interpolate=all"]
    assert found["ig interpolate=all"] == {"context": "think", "hide_answer": False, "interpolate": "all", "nodes": 3}


def test_every_other_way_to_sum_a_segment_is_a_row():
    assert list(aggregates({})) == ["ig aggregate=sum", "ig aggregate=top20"]
    assert aggregates({"aggregate": "sum"})["ig aggregate=sqrt"] == {"aggregate": "sqrt"}


def test_a_truth_that_is_not_known_is_refused():
    _, tokenizer = toy.load_model()
    many = max(toy.sample_traces(20, seed=3), key=lambda one: len(one.meta["kinds"]))
    trace = segrl.tokenize(many, tokenizer)
    with pytest.raises(ValueError, match="thoughts; exact Shapley values are for at most 10"):
        check_planted(trace, segrl.segment(trace))
    with pytest.raises(ValueError, match=r"has \d+ kinds for \d+ segments: its truth is not known"):
        check_planted(trace, segrl.segment(trace, "paragraphs", max_segments=2))
    bare = segrl.tokenize(segrl.Trace(id="x", problem="p", response="a\n\nWait, b", answer="1"), tokenizer)
    with pytest.raises(ValueError, match="trace 'x' has no planted kinds"):
        check_planted(bare, segrl.segment(bare))


@pytest.mark.e2e
def test_every_measure_is_judged_and_the_oracle_is_right():
    model, tokenizer = toy.load_model()
    short = sorted(toy.sample_traces(40, seed=3), key=lambda one: len(one.meta["kinds"]))[:4]
    rows = []
    for trace in short:
        trace = segrl.tokenize(trace, tokenizer)
        rows.append(
            judged(
                model,
                tokenizer,
                trace,
                segrl.segment(trace),
                measures=list(MEASURES),
                measure_options={},
                attribution={"nodes": 6, "tolerance": None},
                tau=0.7,
                beta=0.8,
            )
        )
    found = table(rows)
    assert set(MEASURES) | {"digits", "keyword", "tau alone", "tau and beta", "ig context=full"} <= set(found)
    assert found["oracle"]["planted_auroc"].mean == 1
    assert found["ig"]["evaluations"] == 8
    assert found["length"]["evaluations"] == 0
    assert found["ig aggregate=sum"]["evaluations"] == 8
    for row in rows:  # the plain sum, and the one over sqrt(N)
        by_root = zip(row["scores"]["ig"], row["scores"]["length"], strict=True)
        assert row["scores"]["ig aggregate=sum"] == pytest.approx([one * root for one, root in by_root])
    assert found["leave_one_out"]["shapley_spearman"].mean > 0.3

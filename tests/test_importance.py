import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import byte_level_tokenizer

import segrl
from segrl import Evidence, Segments, Trace
from segrl.importance import MEASURES, segment_scores
from segrl.types import SegmentScores

VALUES = st.lists(st.floats(-10, 10).map(lambda x: round(x, 3)), min_size=3, max_size=12)


def evidence(text="1234567890"):
    return Evidence(segrl.tokenize(Trace(id="t", problem="p", response=text), byte_level_tokenizer()))


def test_strength_share_and_consistency_by_hand():
    # segment 0: |1|+|-2|+|1| = 4 over sqrt(3); signed 0.   segment 1: 3 over sqrt(1); signed -3.   segment 2: 0/0
    scores = segment_scores(torch.tensor([1.0, -2.0, 1.0, -3.0, 0.0]), Segments((0, 3, 4, 5)))
    assert scores.strength_S.tolist() == pytest.approx([4 / math.sqrt(3), 3.0, 0.0])
    total = 4 / math.sqrt(3) + 3
    assert scores.share_S.tolist() == pytest.approx([4 / math.sqrt(3) / total, 3 / total, 0.0])
    assert scores.consistency_S.tolist() == pytest.approx([0.0, 1.0, 0.0])
    assert scores.tokens_S.tolist() == [3, 1, 1]


@given(VALUES, st.floats(0.01, 100))
def test_scaling_the_scores_changes_neither_share_nor_consistency(values, factor):
    segments = Segments((0, 2, len(values)))
    one, other = (segment_scores(torch.tensor(values) * f, segments) for f in (1.0, factor))
    assert one.share_S.tolist() == pytest.approx(other.share_S.tolist(), abs=1e-5)
    assert one.consistency_S.tolist() == pytest.approx(other.consistency_S.tolist(), abs=1e-4)
    assert float(one.consistency_S.min()) >= 0
    assert float(one.consistency_S.max()) <= 1


@given(VALUES)
def test_splitting_a_segment_raises_the_sum_of_strengths(values):
    """Documented: sqrt(N) makes strength depend on how finely one cuts."""
    whole = segment_scores(torch.tensor(values), Segments((0, len(values))))
    parts = segment_scores(torch.tensor(values), Segments((0, 1, len(values))))
    assert float(parts.strength_S.sum()) >= float(whole.strength_S.sum()) - 1e-9


def test_the_answer_segment_has_no_strength():
    segments = Segments((0, 1, 2, 3), ("thought", "thought", "answer"))
    scores = segment_scores(torch.tensor([1.0, 1.0, 9.0]), segments)
    assert scores.share_S.tolist() == [0.5, 0.5, 0.0]
    assert scores.thought_S.tolist() == [True, True, False]


def test_no_attribution_at_all_gives_zero_shares():
    assert segment_scores(torch.zeros(4), Segments((0, 2, 4))).share_S.tolist() == [0, 0]


def test_controls_know_length_and_position_only():
    segments = Segments((0, 1, 5, 10))
    assert segrl.score(evidence(), segments, "length").strength_S.tolist() == pytest.approx([1, 2, math.sqrt(5)])
    assert segrl.score(evidence(), segments, "position").strength_S.tolist() == [1, 2, 3]
    one, same = (segrl.score(evidence(), segments, "random").strength_S for _ in range(2))
    assert torch.equal(one, same)
    assert not torch.equal(one, segrl.score(evidence(), segments, "random", seed=1).strength_S)


def test_a_measure_of_ones_own(monkeypatch):
    def newest_first(evidence, segments):
        strength_S = torch.arange(len(segments), 0, -1.0)
        return SegmentScores(strength_S, strength_S / strength_S.sum(), torch.zeros_like(strength_S), segments.tokens_S)

    assert segrl.score(evidence(), Segments((0, 5, 10)), newest_first).strength_S.tolist() == [2, 1]
    with pytest.raises(ValueError, match="no measure is called 'lenght', did you mean 'length'"):
        segrl.score(evidence(), Segments((0, 10)), "lenght")


def test_what_a_measure_reads_must_be_there():
    with pytest.raises(ValueError, match=r"'ig' reads 'ig', which trace 't' lacks; gather it"):
        segrl.score(evidence(), Segments((0, 10)))
    with pytest.raises(ValueError, match="has 10 tokens, its segments cover 4"):
        segrl.score(evidence(), Segments((0, 4)), "length")


def test_every_measure_of_the_table_says_what_it_reads():
    known = {"ig", "logp_T", "entropy_T"}
    assert all(set(measure.needs) <= known for measure in MEASURES.values())

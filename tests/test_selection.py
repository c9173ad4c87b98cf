import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import segrl
from segrl import Segments
from segrl.importance import from_strength, segment_scores
from segrl.types import SegmentScores


def scores_of(strength, consistency=None, tokens=None, answer=False):
    strength = torch.tensor(strength, dtype=torch.float64)
    n = len(strength)
    total = strength.sum()
    return SegmentScores(
        strength_S=strength,
        share_S=strength / total if total else strength,
        consistency_S=torch.tensor(consistency or [0.0] * n, dtype=torch.float64),
        tokens_S=torch.ones(n, dtype=torch.long) if tokens is None else torch.tensor(tokens),
        thought_S=torch.tensor([True] * (n - answer) + [False] * answer),
    )


def kept(*arguments, **options):
    return segrl.select(*arguments, **options).keep_S.nonzero().flatten().tolist()


def test_the_fewest_strongest_segments_that_reach_tau():
    scores = scores_of([1, 4, 3, 2])  # shares .1 .4 .3 .2: .4 + .3 reaches .7
    assert kept(scores, tau=0.7, force=()) == [1, 2]
    assert kept(scores, tau=0.71, force=()) == [1, 2, 3]
    assert kept(scores, tau=1.0, force=()) == [0, 1, 2, 3]
    assert kept(scores, tau=0.0, force=()) == [1]


def test_equal_segments_reach_tau_exactly():
    """Plain floats need 22 of 30 equal shares for 0.7; 21 reach it."""
    assert kept(scores_of([1] * 30), tau=0.7, force=()) == list(range(21))


def test_too_consistent_segments_are_dropped_unless_forced():
    scores = scores_of([4, 3, 2, 1], [0.9, 0.5, 0.8, 0.1])
    selection = segrl.select(scores, tau=0.9, beta=0.8, force=())
    assert selection.reason_S == ("consistency", "strength", "strength", "dropped")
    forced = segrl.select(scores, tau=0.9, beta=0.8, force=(0, -1))
    assert forced.reason_S == ("forced", "strength", "strength", "forced")


def test_short_segments_may_go_unjudged():
    scores = scores_of([4, 3], [0.9, 0.9], tokens=[39, 40])
    assert kept(scores, tau=1.0, force=(), beta_min_tokens=40) == [0]


def test_the_answer_is_always_kept_and_force_counts_thoughts():
    scores = scores_of([5, 1, 1, 1, 0], answer=True)
    assert segrl.select(scores, tau=0.5).reason_S == ("strength", "dropped", "dropped", "forced", "forced")
    assert segrl.select(scores, tau=0.5, force=(0, -2, -1)).reason_S[2] == "forced"
    assert kept(scores_of([1.0]), force=(0, -2, -1, 7)) == [0]


def test_no_attribution_keeps_nothing_but_what_is_forced():
    assert kept(scores_of([0.0, 0.0, 0.0]), force=()) == []
    assert kept(scores_of([0.0, 0.0, 0.0])) == [0, 2]


def test_settings_outside_their_range_are_sentences():
    with pytest.raises(ValueError, match=r"tau=1\.2, expected a number from 0 to 1"):
        segrl.select(scores_of([1.0]), tau=1.2)
    with pytest.raises(ValueError, match=r"beta=-0\.1"):
        segrl.select(scores_of([1.0]), beta=-0.1)


def independent(scores_T, boundaries, tau, beta):
    """Equations 3 to 7 again, in numpy and loops."""
    pieces = [np.array(scores_T[a:b]) for a, b in zip(boundaries, boundaries[1:], strict=False)]
    strength = [np.abs(piece).sum() / len(piece) ** 0.5 for piece in pieces]
    total = sum(strength)
    if total == 0:
        return set()
    chosen, reached = set(), 0.0
    for index in sorted(range(len(pieces)), key=lambda i: (-strength[i], i)):
        if reached >= tau - 1e-9:
            break
        reached += strength[index] / total
        chosen.add(index)
    consistency = [abs(piece.sum()) / np.abs(piece).sum() if np.abs(piece).sum() else 1.0 for piece in pieces]
    return {index for index in chosen if consistency[index] <= beta + 1e-12}


@given(
    st.lists(st.integers(-8, 8), min_size=2, max_size=40),
    st.sets(st.integers(1, 39), max_size=8),
    st.sampled_from([0.1, 0.5, 0.7, 0.8, 0.95, 1.0]),
    st.sampled_from([0.5, 0.7, 0.8, 1.0]),
)
def test_selected_sets_equal_an_independent_computation(values, cuts, tau, beta):
    """Integers make ties and zeros common; eighths keep every sum exact, so that rounding decides nothing."""
    boundaries = [0, *sorted(cut for cut in cuts if cut < len(values)), len(values)]
    scores = segment_scores(torch.tensor(values) / 8, Segments(tuple(boundaries)))
    assert set(kept(scores, tau=tau, beta=beta, force=())) == independent(values, boundaries, tau, beta)


@given(st.lists(st.floats(0, 10), min_size=1, max_size=20))
def test_more_tau_never_keeps_less(strength):
    scores = from_strength(torch.tensor(strength), Segments(tuple(range(len(strength) + 1))))
    sizes = [len(kept(scores, tau=tau, force=())) for tau in (0.2, 0.5, 0.7, 0.9, 1.0)]
    assert sizes == sorted(sizes)

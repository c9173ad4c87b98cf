from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import segrl
from segrl import Segments
from segrl.importance import from_strength, segment_scores, token_scores
from segrl.selection import kept_tokens
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


def authors(values, boundaries, tau, beta):
    """What the paper keeps, by masks and exact comparisons; the first thought and the last two are forced."""
    of_segment = np.searchsorted(boundaries, np.arange(len(values)), "right") - 1
    member_ST = of_segment == np.arange(len(boundaries) - 1)[:, None]
    absolute_S, signed_S, tokens_S = member_ST @ np.abs(values), member_ST @ values, member_ST.sum(1)
    squares = [Fraction(absolute) ** 2 / int(tokens) for absolute, tokens in zip(absolute_S, tokens_S, strict=True)]
    strength_S = np.sqrt(np.array(squares, dtype=float))
    kept = {0, max(len(squares) - 2, 0), len(squares) - 1}
    for s, own in enumerate(squares):
        above = [r for r, other in enumerate(squares) if other > own or (other == own and r < s)]
        reached = strength_S[above].sum() >= (tau - 1e-12) * strength_S.sum()
        if own and not reached and abs(signed_S[s]) <= (beta + 1e-12) * absolute_S[s]:
            kept.add(s)
    return kept


def test_selected_sets_are_those_of_the_paper_on_a_thousand_inputs():
    """Zeros, ties and single segments among them; the scores selected by have length one, as the authors' do."""
    rng = np.random.default_rng(0)
    seen = {"single": 0, "flat": 0, "tied": 0, "dropped": 0}
    for _ in range(1000):
        values = rng.integers(-6, 7, rng.integers(1, 40)) / 8 * rng.choice([0, 1, 1, 1, 1, 1])
        if rng.random() < 0.3:
            values = np.tile(values[: rng.integers(1, 4)], 12)[: max(len(values), 6)]
        cuts = rng.choice(np.arange(1, len(values)), rng.integers(0, min(len(values), 10)), replace=False)
        boundaries = [0, *sorted(cuts.tolist()), len(values)]
        tau, beta = rng.choice([0.5, 0.7, 0.8, 0.95, 1.0]), rng.choice([0.5, 0.7, 0.8, 1.0])
        length = np.sqrt((values**2).sum()) or 1.0
        scores = segment_scores(torch.tensor(values / length), Segments(tuple(boundaries)))
        found = set(kept(scores, tau=float(tau), beta=float(beta), force=(0, -2, -1)))
        assert found == authors(values, boundaries, tau, beta), (values.tolist(), boundaries, tau, beta)
        strengths = scores.strength_S.tolist()
        seen["single"] += len(strengths) == 1
        seen["flat"] += not any(strengths)
        seen["tied"] += len(set(strengths)) < len(strengths)
        seen["dropped"] += len(found) < len(strengths)
    assert min(seen.values()) > 50, seen


# --- as many tokens for every measure --------------------------------------------------------------------------------


def test_matching_keeps_the_strongest_that_come_nearest_to_the_share():
    scores = scores_of([5, 1, 4, 3, 2], tokens=[10, 20, 30, 20, 20])
    assert kept(scores, match_tokens=0.1, force=()) == [0]
    assert kept(scores, match_tokens=0.4, force=()) == [0, 2]
    assert kept(scores, match_tokens=0.55, force=()) == [0, 2, 3]
    assert kept(scores, match_tokens=0.0, force=()) == []
    assert kept(scores, match_tokens=1.0, force=()) == [0, 1, 2, 3, 4]
    assert segrl.select(scores, match_tokens=0.4, force=(1,)).reason_S == (
        "strength",  # 20 forced and 10: nearer to 40 than 60
        "forced",
        "dropped",
        "dropped",
        "dropped",
    )


def test_a_share_of_segments_counts_each_as_one():
    scores = scores_of([5, 1, 4, 3, 2, 0], tokens=[10, 20, 30, 20, 20, 90], answer=True)
    assert kept(scores, match_segments=0.33, force=()) == [0, 2, 5]  # 2 of 5 thoughts are nearer to 1.65 than 1
    assert kept(scores, match_segments=0.33, force=(1,)) == [0, 1, 5]
    assert kept(scores, match_segments=0.33, force=(0, -1)) == [0, 4, 5]
    assert kept(scores, match_segments=1.0, force=()) == [0, 1, 2, 3, 4, 5]
    with pytest.raises(ValueError, match=r"match_tokens=0.5 and match_segments=0.3 are two shares; give one"):
        segrl.select(scores, match_tokens=0.5, match_segments=0.3)
    with pytest.raises(ValueError, match=r"match_segments=33, expected a number from 0 to 1"):
        segrl.select(scores, match_segments=33)


def test_matching_counts_thinking_and_takes_what_is_too_consistent_last():
    scores = scores_of([5, 4, 1, 0], [0.9, 0.1, 0.1, 0.0], tokens=[10, 10, 10, 70], answer=True)
    assert kept(scores, match_tokens=0.67, force=()) == [1, 2, 3]
    assert kept(scores, match_tokens=0.67, force=(), beta=1.0) == [0, 1, 3]
    assert kept(scores, match_tokens=1.0, force=()) == [0, 1, 2, 3]


def test_matching_ranks_negative_scores_too():
    scores = from_strength(torch.tensor([-3.0, 1.0, -1.0, -2.0]), Segments((0, 1, 2, 3, 4)))
    assert kept(scores, tau=1.0, force=()) == [1]
    assert kept(scores, match_tokens=0.75, force=()) == [1, 2, 3]


@given(
    st.lists(st.tuples(st.integers(-20, 20), st.integers(1, 9)), min_size=1, max_size=15),
    st.sampled_from([0.2, 0.45, 0.9]),
)
def test_matching_is_off_by_half_a_segment_at_most(pieces, share):
    strength, tokens = zip(*pieces, strict=True)
    boundaries = tuple(np.cumsum([0, *tokens]).tolist())
    scores = from_strength(torch.tensor(strength), Segments(boundaries))
    keep = kept(scores, match_tokens=share, force=())
    assert abs(sum(tokens[s] for s in keep) - share * sum(tokens)) <= max(tokens) / 2
    assert all(strength[s] >= strength[d] for s in keep for d in set(range(len(tokens))) - set(keep))


# --- tokens ----------------------------------------------------------------------------------------------------------

PIECES = Segments((0, 3, 5, 7, 9), ("thought", "thought", "thought", "answer"))
TOKENS = token_scores(torch.tensor([1.0, 4.0, 2.0, 3.0, -5.0, 0.0, 0.5, 9.0, 9.0]), PIECES)


def test_tokens_are_kept_by_themselves_and_forced_by_their_segments():
    assert kept(TOKENS, tau=0.6, force=()) == [1, 3, 7, 8]  # 4 + 3 of 10.5, and the answer
    assert kept(TOKENS, tau=0.6, force=(0, -1)) == [0, 1, 2, 3, 5, 6, 7, 8]
    assert kept(TOKENS, match_tokens=0.45, force=()) == [1, 2, 3, 7, 8]  # 3 of 7 is nearest to 3.15
    reasons = segrl.select(TOKENS, tau=0.6, force=(1,)).reason_S
    assert reasons == ("dropped", "strength", "dropped", "strength", "forced", "dropped", "dropped", "forced", "forced")


def test_the_mask_of_a_selection():
    tokens = segrl.select(TOKENS, tau=0.6, force=())
    assert kept_tokens(tokens, PIECES).tolist() == tokens.keep_S.tolist()
    whole = segrl.select(scores_of([3, 1, 2, 0], answer=True), tau=0.5, force=())
    assert kept_tokens(whole, PIECES).tolist() == [True] * 3 + [False] * 4 + [True] * 2
    with pytest.raises(ValueError, match="a selection of 2 belongs neither to 4 segments nor to their 9 tokens"):
        kept_tokens(segrl.select(scores_of([3, 1])), PIECES)


# --- consistency beyond chance ---------------------------------------------------------------------------------------


def test_excess_judges_short_segments_by_what_chance_gives():
    """One token and forty of one sign: both fully consistent, but only the second says something."""
    scores = segment_scores(torch.ones(41), Segments((0, 1, 41)))
    assert segrl.select(scores, tau=1.0, force=()).reason_S == ("consistency", "consistency")
    assert segrl.select(scores, tau=1.0, force=(), consistency="excess").reason_S == ("strength", "consistency")
    with pytest.raises(ValueError, match="consistency='excees', expected one of"):
        segrl.select(scores, consistency="excees")
    with pytest.raises(ValueError, match=r"match_tokens=45, expected a number from 0 to 1"):
        segrl.select(scores, match_tokens=45)


@given(st.lists(st.floats(0, 10), min_size=1, max_size=20))
def test_more_tau_never_keeps_less(strength):
    scores = from_strength(torch.tensor(strength), Segments(tuple(range(len(strength) + 1))))
    sizes = [len(kept(scores, tau=tau, force=())) for tau in (0.2, 0.5, 0.7, 0.9, 1.0)]
    assert sizes == sorted(sizes)

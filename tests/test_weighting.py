import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import segrl
from segrl import Segments
from segrl.importance import from_strength
from segrl.weighting import WEIGHTINGS

STRENGTHS = st.lists(st.floats(0, 100), min_size=1, max_size=8)


def made(strength, lengths, answer=False):
    boundaries = [0]
    for length in lengths:
        boundaries.append(boundaries[-1] + length)
    kinds = ("thought",) * (len(lengths) - answer) + ("answer",) * answer
    segments = Segments(tuple(boundaries), kinds)
    return from_strength(torch.tensor(strength, dtype=torch.float64), segments), segments


def test_ranks_by_hand():
    # ranks of 3 1 2 -> weights 1.2 0.8 1.0 on 1, 1 and 2 tokens: mean 4/4 = 1, so they stay as they are
    weights_T = segrl.weigh(*made([3, 1, 2], [1, 1, 2]))
    assert weights_T.tolist() == pytest.approx([1.2, 0.8, 1.0, 1.0])
    # two equals share the average rank: 2 2 1 -> 1.1 1.1 0.8, mean 1
    assert segrl.weigh(*made([2, 2, 1], [1, 1, 1])).tolist() == pytest.approx([1.1, 1.1, 0.8])


def test_a_hard_mask_gives_kept_tokens_one_over_their_share():
    scores, segments = made([3, 1, 2], [1, 3, 1])
    selection = segrl.select(scores, tau=0.8, force=())  # keeps 3 and 2: two of five tokens
    assert segrl.weigh(scores, segments, selection, "hard").tolist() == pytest.approx([2.5, 0, 0, 0, 2.5])
    with pytest.raises(ValueError, match="needs a selection"):
        segrl.weigh(scores, segments, rule="hard")


@given(STRENGTHS, st.data(), st.sampled_from(["uniform", "rank", "hard"]), st.booleans())
def test_weights_keep_the_responses_mean(strength, data, rule, answer):
    lengths = data.draw(st.lists(st.integers(1, 9), min_size=len(strength), max_size=len(strength)))
    scores, segments = made(strength, lengths, answer)
    weighted_T = torch.tensor(data.draw(st.lists(st.booleans(), min_size=segments.tokens, max_size=segments.tokens)))
    weights_T = segrl.weigh(scores, segments, segrl.select(scores), rule, weighted_T=weighted_T)
    assert float(weights_T.min()) >= 0
    assert float(weights_T.double().mean()) == pytest.approx(1, abs=1e-6)
    outside = ~(weighted_T & segments.thought_S[segments.index_T])
    assert bool((weights_T[outside] == 1).all())


@given(STRENGTHS, st.floats(0.001, 1000))
def test_scaling_the_scores_changes_nothing(strength, factor):
    lengths = [2] * len(strength)
    one, other = (segrl.weigh(*made([s * f for s in strength], lengths)) for f in (1.0, factor))
    assert one.tolist() == pytest.approx(other.tolist())


@pytest.mark.parametrize("rule", WEIGHTINGS)
def test_equal_scores_weigh_all_tokens_one(rule):
    scores, segments = made([2, 2, 2], [1, 4, 2])
    weights_T = segrl.weigh(scores, segments, segrl.select(scores, tau=1.0), rule)
    assert weights_T.tolist() == pytest.approx([1.0] * 7)


def test_nothing_to_tell_apart_weighs_one():
    scores, segments = made([3, 1], [2, 2])
    nothing = segrl.select(scores, beta=0.0, tau=0.5, force=())
    assert nothing.keep_S.any()
    empty = torch.zeros(4, dtype=torch.bool)
    assert segrl.weigh(scores, segments, weighted_T=empty).tolist() == [1] * 4
    zeros, _ = made([0, 0], [2, 2])
    dropped = segrl.select(zeros, force=())
    assert segrl.weigh(zeros, segments, dropped, "hard").tolist() == [1] * 4
    assert segrl.weigh(*made([5], [4])).tolist() == [1] * 4


def test_the_answer_weighs_one():
    assert segrl.weigh(*made([3, 1, 9], [1, 1, 2], answer=True)).tolist() == pytest.approx([1.2, 0.8, 1, 1])


@pytest.mark.parametrize(
    ("sign", "advantage", "weighs"),
    [
        ("positive", 1.0, True),
        ("positive", -1.0, False),
        ("positive", 0.0, False),
        ("negative", -1.0, True),
        ("negative", 1.0, False),
        ("both", -1.0, True),
        ("both", 1.0, True),
        ("positive", None, True),
    ],
)
def test_signs(sign, advantage, weighs):
    weights_T = segrl.weigh(*made([3, 1], [1, 1]), advantage=advantage, sign=sign)
    assert weights_T.tolist() == pytest.approx([1.2, 0.8] if weighs else [1, 1])


def test_weights_grow_over_the_warm_up():
    grown = [segrl.weigh(*made([3, 1], [1, 1]), step=step, warmup_steps=4)[0].item() for step in (0, 1, 2, 4, 9)]
    assert grown == pytest.approx([1.0, 1.05, 1.1, 1.2, 1.2])


def test_a_rule_of_ones_own_and_bad_names():
    def first_only(scores, selection, thought_S):
        return torch.tensor([1.0, 0.0])

    assert segrl.weigh(*made([1, 2], [1, 1]), rule=first_only).tolist() == [2, 0]

    def broken(scores, selection, thought_S):
        return torch.tensor([float("nan"), 1.0])

    assert segrl.weigh(*made([1, 2], [1, 1]), rule=broken).tolist() == [1, 1]
    with pytest.raises(ValueError, match="no weighting rule is called 'ranks', did you mean 'rank'"):
        segrl.weigh(*made([1, 2], [1, 1]), rule="ranks")
    with pytest.raises(ValueError, match="sign='plus'"):
        segrl.weigh(*made([1, 2], [1, 1]), sign="plus")

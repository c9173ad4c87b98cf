import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from testkit.tiny import byte_level_tokenizer

import segrl
from segrl import Evidence, Segments, Trace
from segrl.importance import from_strength, token_scores
from segrl.selection import kept_tokens
from segrl.weighting import SIGNS, WEIGHTINGS, Weighable, weigh_together

STRENGTHS = st.lists(st.floats(0, 100).map(lambda x: round(x, 3)), min_size=1, max_size=8)


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


@st.composite
def responses(draw):
    """Scores of a response, by segment or by token, some negative; the tokens that are weighted; a selection."""
    strength = draw(STRENGTHS)
    if draw(st.booleans()):
        strength = [s - 50 for s in strength]
    lengths = draw(st.lists(st.integers(1, 9), min_size=len(strength), max_size=len(strength)))
    scores, segments = made(strength, lengths, answer=draw(st.booleans()))
    if draw(st.booleans()):
        noise_T = torch.rand(segments.tokens, generator=torch.Generator().manual_seed(draw(st.integers(0, 99))))
        scores = token_scores(scores.strength_S[segments.index_T] + noise_T, segments)
    weighted_T = torch.tensor(draw(st.lists(st.booleans(), min_size=segments.tokens, max_size=segments.tokens)))
    selection = segrl.select(
        scores, tau=draw(st.sampled_from([0.1, 0.7, 1.0])), force=draw(st.sampled_from([(), (0,)]))
    )
    return scores, segments, selection, weighted_T


@pytest.mark.parametrize("rule", WEIGHTINGS)
@settings(max_examples=30)
@given(responses(), st.sampled_from([-2.0, 0.5]), st.sampled_from(SIGNS), st.integers(0, 5))
def test_weights_keep_the_responses_mean(rule, response, advantage, sign, step):
    """Whatever is weighed by whatever rule: mean one, none negative, one elsewhere, and A * w has mean A."""
    scores, segments, selection, weighted_T = response
    signed_T = torch.sin(torch.arange(segments.tokens) * 1.7)
    weights_T = segrl.weigh(
        *(scores, segments, selection, rule, advantage, step),
        weighted_T=weighted_T,
        sign=sign,
        signed_T=signed_T,
        warmup_steps=4,
    )
    assert float(weights_T.min()) >= 0
    inside = weighted_T & segments.thought_S[segments.index_T]
    assert bool((weights_T[~inside] == 1).all())
    if bool(inside.any()):
        assert float(weights_T[inside].double().mean()) == pytest.approx(1, abs=1e-6)
    assert float((advantage * weights_T.double()).mean()) == pytest.approx(advantage, abs=1e-5)


@pytest.mark.parametrize("rule", WEIGHTINGS)
@settings(max_examples=30)
@given(responses(), st.sampled_from([0.01, 0.5, 3.0, 1000.0]))
def test_scaling_the_scores_changes_nothing(rule, response, factor):
    scores, segments, _, weighted_T = response
    other = replace(scores, strength_S=scores.strength_S * factor)
    found = [
        segrl.weigh(one, segments, segrl.select(one, tau=0.7), rule, weighted_T=weighted_T) for one in (scores, other)
    ]
    assert found[0].tolist() == pytest.approx(found[1].tolist(), abs=1e-5)


@pytest.mark.parametrize("rule", ["hard", "bilevel", "top", "quantile"])
@settings(max_examples=30)
@given(responses())
def test_of_two_levels_the_higher_is_for_what_is_kept(rule, response):
    scores, segments, selection, _ = response
    weights_T = segrl.weigh(scores, segments, selection, rule)
    thought_T = segments.thought_S[segments.index_T]
    levels = weights_T[thought_T].unique()
    assert len(levels) <= 2
    if rule == "hard" and bool((kept_T := kept_tokens(selection, segments) & thought_T).any()):
        share = float(kept_T[thought_T].double().mean())
        assert weights_T[kept_T].tolist() == pytest.approx([1 / share] * int(kept_T.sum()), rel=1e-6)


@pytest.mark.parametrize("rule", WEIGHTINGS)
def test_equal_scores_weigh_all_tokens_one(rule):
    scores, segments = made([2, 2, 2], [1, 4, 2])
    weights_T = segrl.weigh(scores, segments, segrl.select(scores, tau=1.0), rule)
    assert weights_T.tolist() == pytest.approx([1.0] * 7)


def test_softmax_by_hand():
    """Strengths of 2 and 6 are one standard deviation, 2, below and above their mean: e^2 to one."""
    e, scores = math.e, made([2, 6], [1, 1])
    assert segrl.weigh(*scores, rule="softmax").tolist() == pytest.approx([2 / (1 + e**2), 2 * e**2 / (1 + e**2)])
    cooler = [2 / (1 + e**4), 2 * e**4 / (1 + e**4)]
    assert segrl.weigh(*scores, rule="softmax", temperature=0.5).tolist() == pytest.approx(cooler)
    floored = [0.5 + 0.5 * weight for weight in cooler]
    assert segrl.weigh(*scores, rule="softmax", temperature=0.5, floor=0.5).tolist() == pytest.approx(floored)
    with pytest.raises(ValueError, match="softmax with temperature=0, expected a number above 0"):
        segrl.weigh(*scores, rule="softmax", temperature=0)
    with pytest.raises(ValueError, match=r"softmax with floor=1\.5, expected a share from 0 to 1"):
        segrl.weigh(*scores, rule="softmax", floor=1.5)


@pytest.mark.parametrize(("rule", "option"), [("top", {"share": 20}), ("quantile", {"q": -0.5}), ("bent", {"q": 1.5})])
def test_a_share_outside_its_bounds_is_refused(rule, option):
    [(name, value)] = option.items()
    with pytest.raises(ValueError, match=f"rule '{rule}': {name}={value}, expected"):
        segrl.weigh(*made([2, 6], [1, 1]), rule=rule, **option)


@pytest.mark.parametrize("rule", ["linear", "rank", "zscore"])
@settings(max_examples=30)
@given(st.floats(1e-6, 1e6), st.lists(st.integers(1, 9), min_size=1, max_size=8))
def test_equal_scores_of_any_size_weigh_one(rule, strength, lengths):
    scores, segments = made([strength] * len(lengths), lengths)
    assert segrl.weigh(scores, segments, rule=rule).tolist() == pytest.approx([1.0] * segments.tokens, abs=1e-6)


def test_each_rule_by_hand():
    scores, segments = made([1, 2, 4, 1], [1, 1, 1, 1])
    selection = segrl.select(scores, tau=0.75, force=())  # 4 + 2 of 8

    def weights(rule, **options):
        return segrl.weigh(scores, segments, selection, rule, **options).tolist()

    assert weights("linear") == pytest.approx([0.5, 1, 2, 0.5])
    assert weights("bilevel", inside=3.0, outside=1.0) == pytest.approx([0.5, 1.5, 1.5, 0.5])
    # ranks 0.5 2 3 0.5 of 3 -> 0.8 + 0.4 * rank / 3, mean 1
    assert weights("rank") == pytest.approx([0.8 + 0.2 / 3, 0.8 + 0.8 / 3, 1.2, 0.8 + 0.2 / 3])
    # logs 0 1 2 0 in units of ln 2: mean 3/4, deviation sqrt(11)/4, so z = -3 1 5 -3 over sqrt(11)
    raw = [max(1 + 0.5 * z / 11**0.5, 0.5) for z in (-3, 1, 5, -3)]
    assert weights("zscore") == pytest.approx([one / (sum(raw) / 4) for one in raw])
    assert weights("quantile", q=0.5, inside=1.2, outside=0.8) == pytest.approx([0.8, 1.2, 1.2, 0.8])
    assert weights("top", share=0.2) == pytest.approx([0, 0, 4, 0])
    assert weights("top", share=0.5) == pytest.approx([0, 2, 2, 0])
    assert weights("top", share=0.6) == pytest.approx([1, 1, 1, 1])  # equals of the last are not told apart


def test_zscore_clips_and_takes_signed_scores_as_they_are():
    scores, segments = made([1.0] * 30 + [1e9], [1] * 31)
    weights_T = segrl.weigh(scores, segments, rule="zscore", gain=1.0)
    assert float(weights_T[-1] / weights_T[0]) == pytest.approx(5 / (1 - 1 / 30**0.5), rel=1e-4)  # z = sqrt(30) > 4
    # pmi: -2 0 2 has mean 0 and deviation sqrt(8/3): 1 + z, the first held at 0.5 (gain 1)
    raw = [0.5, 1.0, 1 + 2 / (8 / 3) ** 0.5]
    signed_T = segrl.weigh(*made([-2, 0, 2], [1, 1, 1]), rule="zscore", gain=1.0)
    assert signed_T.tolist() == pytest.approx([one / (sum(raw) / 3) for one in raw])
    none, segments = made([0, 1, 1], [1, 1, 1])
    assert segrl.weigh(none, segments, rule="zscore").tolist() == pytest.approx([0.6, 1.2, 1.2])  # 0.5 1 1


def test_zscore_takes_logarithms_or_not_where_it_is_told_to():
    """0 2 4 2 have mean 2 and deviation sqrt(2). Of -1, 1 and e^2 the last two have logarithms: 0 and 2, z of -1 and 1;
    the first weighs ``low``."""
    plain_T = segrl.weigh(*made([0, 2, 4, 2], [1] * 4), rule="zscore", gain=0.2, low=0.0, logs=False)
    assert plain_T.tolist() == pytest.approx([1 - 0.2 * 2**0.5, 1, 1 + 0.2 * 2**0.5, 1])
    logs_T = segrl.weigh(*made([-1, 1, math.e**2], [1] * 3), rule="zscore", low=0.25, logs=True, mean_one=False)
    assert logs_T.tolist() == pytest.approx([0.25, 0.5, 1.5])


def test_grail_by_hand():
    """Norms of 1, e, e^2 and e^5 have logs 0, 1, 2, 5, of mean 2 and deviation sqrt(3.5)."""
    segments, trace = Segments((0, 2, 4)), segrl.tokenize(Trace("t", "p", "1234"), byte_level_tokenizer())
    norms = Evidence(trace, gradnorm_T=torch.tensor([0.0, 1.0, 2.0, 5.0]).exp())
    scores = segrl.score(norms, segments, "grail", aggregate="token")
    weights_T = segrl.weigh(scores, segments, rule="zscore", mean_one=False)
    assert weights_T.tolist() == pytest.approx([0.5, 0.732739, 1, 1.801784], abs=1e-6)


def test_oar_by_hand():
    """Influences of 0, 1, 3, 7, 15 have log1p of 0 to 4 times ln 2; the bend is 0.4 of their range."""
    log1p = [k * math.log(2) for k in range(5)]
    raw = segrl.weigh(*made(log1p, [1] * 5), rule="bent", mean_one=False)
    assert raw.tolist() == pytest.approx([0.1, 0.625, 4 / 3, 13 / 6, 3])
    held = segrl.weigh(*made(log1p, [1] * 5), rule="bent")
    assert held.tolist() == pytest.approx([0.069204, 0.432526, 0.922722, 1.499423, 2.076125], abs=1e-6)


def test_cliff_blames_from_the_strongest_thought_on():
    weights_T = segrl.weigh(*made([1, 3, 2, 9], [2, 1, 1, 2], answer=True), rule="onward", mean_one=False)
    assert weights_T.tolist() == [0, 0, 1, 1, 1, 1]
    # Raised by the half of the four tokens of the thinking that lies before it; the answer stays at one.
    raised_T = segrl.weigh(*made([1, 3, 2, 9], [2, 1, 1, 2], answer=True), rule="onward", raised=True)
    assert raised_T.tolist() == [0.5, 0.5, 1.5, 1.5, 1, 1]


def test_a_pool_is_ruled_as_if_it_were_one_response():
    """The 20% most uncertain of ten tokens are two, of whichever response; the mean over all ten is one."""
    first = token_scores(torch.tensor([0.1, 0.9, 0.3, 1.4, 0.5]), Segments((0, 5)))
    second = token_scores(torch.tensor([0.2, 2.0, 0.3, 0.4, 0.6]), Segments((0, 5)))
    pool = [Weighable(first, Segments((0, 5)), advantage=1.0), Weighable(second, Segments((0, 5)), advantage=-1.0)]
    weights = weigh_together(pool, "top", sign="both", share=0.2)
    assert [weights_T.tolist() for weights_T in weights] == [[0, 0, 0, 5, 0], [0, 5, 0, 0, 0]]
    unscaled = weigh_together(pool, "top", sign="both", share=0.2, mean_one=False)
    assert [weights_T.tolist() for weights_T in unscaled] == [[0, 0, 0, 1, 0], [0, 1, 0, 0, 0]]
    # Those of the other sign are not in the pool: one of five tokens, and ones.
    right_alone = weigh_together(pool, "top", sign="positive", share=0.2)
    assert [weights_T.tolist() for weights_T in right_alone] == [[0, 0, 0, 5, 0], [1] * 5]


def test_a_pool_of_one_is_the_response_by_itself():
    scores, segments = made([3, 1, 2], [1, 1, 2])
    selection = segrl.select(scores, tau=0.5, force=())
    for rule in WEIGHTINGS:
        alone = segrl.weigh(scores, segments, selection, rule)
        doubled = weigh_together([Weighable(scores, segments, selection)] * 2, rule)
        assert torch.allclose(doubled[0], doubled[1])
        if rule not in ("rank", "bent", "onward"):  # with equals beside it ranks and quantiles are others
            assert torch.allclose(doubled[0], alone), rule


def test_the_most_uncertain_fifth_of_the_tokens():
    segments = Segments((0, 5, 11), ("thought", "answer"))
    scores = token_scores(torch.tensor([0.1, 2.0, 0.3, 0.0, 0.4, 9, 9, 9, 9, 9, 9]), segments)
    assert segrl.weigh(scores, segments, rule="top").tolist() == [0, 5, 0, 0, 0, 1, 1, 1, 1, 1, 1]


def test_controls_reach_weights_through_their_measures():
    """Length by rank: 1, 4 and 2 tokens -> 0.8, 1.2, 1.0; position: 0.8, 1.0, 1.2."""
    segments = Segments((0, 1, 5, 7))
    trace = segrl.tokenize(Trace("t", "p", "1234567"), byte_level_tokenizer())

    def weights(measure, **options):
        scores = segrl.score(Evidence(trace), segments, measure, **options)
        return segrl.weigh(scores, segments)[[0, 1, 5]]

    mean = (0.8 + 4 * 1.2 + 2 * 1.0) / 7
    assert weights("length").tolist() == pytest.approx([0.8 / mean, 1.2 / mean, 1.0 / mean])
    mean = (0.8 + 4 * 1.0 + 2 * 1.2) / 7
    assert weights("position").tolist() == pytest.approx([0.8 / mean, 1.0 / mean, 1.2 / mean])
    assert len({tuple(weights("random", seed=seed).tolist()) for seed in range(20)}) > 3


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
        ("inverted", 1.0, True),
        ("signed", 1.0, True),
        ("positive", None, True),
    ],
)
def test_signs(sign, advantage, weighs):
    weights_T = segrl.weigh(*made([3, 1], [1, 1]), advantage=advantage, sign=sign)
    assert weights_T.tolist() == pytest.approx([1.2, 0.8] if weighs else [1, 1])


def test_a_worse_response_may_be_weighed_the_other_way_round():
    scores, segments = made([3, 1, 2], [1, 1, 2])
    # 1.2 0.8 1.0 becomes 0.8 1.2 1.0
    inverted = segrl.weigh(scores, segments, advantage=-1.0, sign="inverted")
    assert inverted.tolist() == pytest.approx([0.8, 1.2, 1.0, 1.0])
    selection = segrl.select(scores, tau=0.5, force=())
    hard = segrl.weigh(scores, segments, selection, "hard", -1.0, sign="inverted")
    assert hard.tolist() == pytest.approx([0, 4 / 3, 4 / 3, 4 / 3])


def test_a_worse_response_may_be_weighed_where_it_supports_its_answer():
    scores, segments = made([3, 1, 2], [1, 1, 2])
    signed_T = torch.tensor([-0.5, 0.1, 0.2, -0.1])
    weights_T = segrl.weigh(scores, segments, advantage=-1.0, sign="signed", signed_T=signed_T)
    assert weights_T.tolist() == pytest.approx([0, 4 * 0.8 / 1.8, 4 * 1.0 / 1.8, 0])
    none = segrl.weigh(scores, segments, advantage=-1.0, sign="signed", signed_T=-torch.ones(4))
    assert none.tolist() == [1] * 4
    with pytest.raises(ValueError, match=r"sign='signed' reads the sign .* pass signed_T=ig.scores_T"):
        segrl.weigh(scores, segments, advantage=-1.0, sign="signed")


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

    def negative(scores, selection, thought_S):
        return torch.tensor([-0.5, 1.0])

    with pytest.raises(ValueError, match=r"gave -0.5; weights must be zero or more"):
        segrl.weigh(*made([1, 2], [1, 1]), rule=negative)
    with pytest.raises(ValueError, match="no weighting rule is called 'ranks', did you mean 'rank'"):
        segrl.weigh(*made([1, 2], [1, 1]), rule="ranks")
    with pytest.raises(ValueError, match="sign='plus'"):
        segrl.weigh(*made([1, 2], [1, 1]), sign="plus")

import math
from functools import cache
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from testkit.tiny import byte_level_tokenizer
from transformers import AutoTokenizer

import segrl
from segrl import Attribution, Evidence, Segments, Trace, toy
from segrl.importance import MEASURES, segment_scores
from segrl.importance.gathering import NEEDS
from segrl.types import SegmentScores, TokenisedTrace

VALUES = st.lists(st.floats(-10, 10).map(lambda x: round(x, 3)), min_size=3, max_size=12)


def evidence(text="1234567890"):
    return Evidence(segrl.tokenize(Trace(id="t", problem="p", response=text), byte_level_tokenizer()))


@cache
def toy_trace():
    """One with all three classes, and its segments."""
    tokenizer = AutoTokenizer.from_pretrained(toy.MODEL_PATH)
    trace = segrl.tokenize(toy.sample_traces(8, seed=3)[5], tokenizer)
    return trace, segrl.segment(trace)


def attribution(scores_T, trace, path="embeddings"):
    ids = torch.cat([trace.prompt_ids, trace.response_ids])
    return Attribution(
        scores_T,
        0.0,
        0.0,
        trace_id=trace.id,
        target="gold",
        input_ids=ids,
        answer_span=(0, 1),
        logp_input=0.0,
        logp_baseline=-1.0,
        mass_prompt=0.0,
        mass_suffix=0.0,
        evaluations=1,
        path=path,
    )


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
    with pytest.raises(ValueError, match=r"'contribution' reads 'ig', which trace 't' lacks; gather it"):
        segrl.score(evidence(), Segments((0, 10)))
    with pytest.raises(ValueError, match="has 10 tokens, its segments cover 4"):
        segrl.score(evidence(), Segments((0, 4)), "length")


def test_every_measure_says_what_it_reads_and_reads_no_more():
    """Each measure on evidence that holds its needs alone."""
    trace, segments = toy_trace()
    whole = {name: torch.rand(len(segments) if name.endswith("_S") else trace.tokens) for name in NEEDS}
    whole |= {name: attribution(whole[name], trace) for name in ("ig", "contrast")}
    scalars = {
        "answer_logp": -1.0,
        "empty_logp": -9.0,
        "empty_confidence": 0.0,
        "empty_continued": 0.0,
        "empty_value": -9.0,
        "whole_value": 1.0,
    }
    for name, measure in MEASURES.items():
        held = {need: whole[need] for need in measure.needs}
        scores = segrl.score(Evidence(trace, segments=segments, **held, **scalars), segments, name)
        assert len(scores) == (trace.tokens if measure.level == "token" else len(segments)), name
        assert (scores.segment_T is not None) == (measure.level == "token"), name
        assert float(scores.strength_S[~scores.thought_S].abs().sum()) == 0, name


# --- each measure by hand --------------------------------------------------------------------------------------------

SEGMENTS = Segments((0, 2, 3, 5, 6), ("thought", "thought", "thought", "answer"))


def of(measure, segments=SEGMENTS, path="embeddings", **fields):
    text = "x" * segments.tokens
    options = {name: fields.pop(name) for name in ("aggregate", "seed", "inverted") if name in fields}
    trace = TokenisedTrace(
        id="t",
        problem="",
        response=text,
        prompt_ids=torch.tensor([1]),
        response_ids=torch.arange(len(text)),
        offsets_T=torch.stack([torch.arange(len(text)), torch.arange(1, len(text) + 1)], 1),
        trainable_T=torch.ones(len(text), dtype=torch.bool),
        prompt_hash="p",
    )
    for name in {"ig", "contrast"} & fields.keys():
        fields[name] = attribution(torch.tensor(fields[name]), trace, path)
    tensors = {name: torch.tensor(value) if isinstance(value, list) else value for name, value in fields.items()}
    return segrl.score(Evidence(trace, segments=segments, **tensors), segments, measure, **options)


def test_gains_and_losses_by_hand():
    # the answer's log-probability: -8 with nothing, then -6, -7, -1, -1
    prefix = {"prefix_logp_S": [-6.0, -7.0, -1.0, -1.0], "empty_logp": -8.0}
    pmi = of("pmi", **prefix)
    assert pmi.strength_S.tolist() == pytest.approx([2.0, -1.0, 6.0, 0.0])
    assert pmi.share_S.tolist() == pytest.approx([0.25, 0.0, 0.75, 0.0])  # of the positive parts
    gains = [math.exp(-6) - math.exp(-8), math.exp(-7) - math.exp(-6), math.exp(-1) - math.exp(-7), 0]
    assert of("confidence_gain_cheap", **prefix).strength_S.tolist() == pytest.approx(gains)
    sampled = of("confidence_gain", confidence_S=[0.5, 0.25, 1.0, 1.0], empty_confidence=0.125)
    assert sampled.strength_S.tolist() == pytest.approx([0.375, -0.25, 0.75, 0.0])
    loss = of("leave_one_out", without_logp_S=[-3.0, -0.5, -1.0, -1.0], answer_logp=-1.0)
    assert loss.strength_S.tolist() == pytest.approx([2.0, -0.5, 0.0, 0.0])


def test_the_game_of_the_thoughts_by_hand():
    # v of nothing -8, of each alone -5, -9, -6; of all 2, without each 1, 2, -4
    alone = {"alone_value_S": [-5.0, -9.0, -6.0, -8.0], "empty_value": -8.0}
    last = {"without_value_S": [1.0, 2.0, -4.0, 2.0], "whole_value": 2.0}
    assert of("alone", **alone).strength_S.tolist() == [3, -1, 2, 0]
    both = of("first_and_last", **alone, **last)
    assert both.strength_S.tolist() == [2, -0.5, 4, 0]
    assert {name: part_S.tolist() for name, part_S in both.parts.items()} == {
        "alone": [3, -1, 2, 0],
        "without": [1, 0, 6, 0],
    }
    shapley = of("shapley", shapley_S=[2.0, -0.5, 4.0, 0.0])
    assert shapley.strength_S.tolist() == [2, -0.5, 4, 0]
    assert shapley.share_S.tolist() == pytest.approx([1 / 3, 0, 2 / 3, 0])


def test_signed_sums_by_hand():
    scores = [1.0, -2.0, 3.0, -2.0, 2.5, 9.0]
    for measure, need in (("contribution", "ig"), ("mistake", "contrast")):
        signed = of(measure, **{need: scores})
        assert signed.strength_S.tolist() == [-1, 3, 0.5, 0]
        assert signed.share_S.tolist() == pytest.approx([0, 3 / 3.5, 0.5 / 3.5, 0])
        assert signed.consistency_S.tolist() == [0] * 4


def test_an_attribution_by_itself_is_scored_by_any_measure_that_reads_no_more():
    trace, segments = toy_trace()
    scores_T = torch.linspace(-1, 2, trace.tokens)
    bare = attribution(scores_T, trace)
    for name, measure in MEASURES.items():
        if measure.needs == ("ig",):
            alone = segrl.score(bare, segments, name)
            assert torch.equal(alone.strength_S, segrl.score(Evidence(trace, ig=bare), segments, name).strength_S), name
    sums_S = torch.stack([scores_T[piece].double().sum() for piece in segments.slices])
    thoughts = segments.thought_S
    torch.testing.assert_close(segrl.score(bare, segments).strength_S[thoughts], sums_S[thoughts])
    with pytest.raises(ValueError, match="'pmi' reads 'prefix_logp_S', which trace"):
        segrl.score(bare, segments, "pmi")
    with pytest.raises(ValueError, match="tokens, its segments cover 4"):
        segrl.score(bare, Segments((0, 4)))


def test_the_value_path_has_strengths_and_no_consistency():
    scores = [1.0, -2.0, 3.0, 2.0, 2.0, 9.0]
    embeddings, values = of("ig", ig=scores), of("ig", ig=scores, path="values")
    assert torch.equal(values.strength_S, embeddings.strength_S)
    assert values.consistency_S.tolist() == values.excess_S.tolist() == [0] * 4
    assert of("permuted_ig", ig=scores, path="values").consistency_S.tolist() == [0] * 4


def test_perplexity_rises_by_hand():
    # six tokens of log-probability -ln 2: perplexity 2; without the segments 3, 1.5, 2
    found = of("perplexity", logp_T=[-math.log(2)] * 6, perplexity_S=[3.0, 1.5, 2.0, 2.0])
    assert found.strength_S.tolist() == pytest.approx([1.0, -0.5, 0.0, 0.0], abs=1e-6)


def test_sums_over_tokens_by_hand():
    values = [1.0, 3.0, 2.0, 0.0, 4.0, 9.0]
    assert of("entropy", entropy_T=values).strength_S.tolist() == [4, 2, 4, 0]
    assert of("entropy", entropy_T=values, aggregate="mean").strength_S.tolist() == [2, 2, 2, 0]
    assert of("surprise", logp_T=[-value for value in values]).strength_S.tolist() == [4, 2, 4, 0]
    assert of("surprise", logp_T=[-value for value in values], inverted=True).strength_S.tolist() == [-4, -2, -4, 0]
    assert of("attention", attention_T=values).share_S.tolist() == pytest.approx([0.4, 0.2, 0.4, 0])


def test_gradient_measures_by_hand():
    gradient = [1.0, -3.0, 0.0, 2.0, -2.0, 50.0]
    grad_input = of("grad_input", gradient_T=gradient)
    assert grad_input.strength_S.tolist() == pytest.approx([4 / math.sqrt(2), 0, 4 / math.sqrt(2), 0])
    assert grad_input.consistency_S.tolist()[:3] == pytest.approx([0.5, 0, 0])
    # log1p: ln 2, ln 4, ln 1, ln 3, ln 3 over the thinking; min 0, max ln 4
    ln4 = math.log(4)
    oar = of("oar", gradient_T=gradient).strength_S
    assert oar.tolist() == pytest.approx([(math.log(2) / ln4 + 1) / 2, 0, math.log(3) / ln4, 0])
    # norms e, e, e^3, e^3, e^2: logs 1 1 3 3 2, mean 2, deviation sqrt(4/5); z -1, -1, 1, 1, 0 over it
    grail = of("grail", gradnorm_T=[math.exp(power) for power in (1, 1, 3, 3, 2, 7)]).strength_S
    assert grail.tolist() == pytest.approx([-1 / math.sqrt(0.8), 1 / math.sqrt(0.8), 0.5 / math.sqrt(0.8), 0])
    assert of("grail", gradnorm_T=[1.0] * 6).strength_S.tolist() == [0] * 4


def test_ig_and_its_parts_by_hand():
    scores = [1.0, -2.0, 3.0, 2.0, 2.0, 9.0]
    ig = of("ig", ig=scores)
    assert ig.strength_S.tolist() == pytest.approx([3 / math.sqrt(2), 3, 4 / math.sqrt(2), 0])
    assert of("ig", ig=scores, aggregate="sum").strength_S.tolist() == [3, 3, 4, 0]
    assert of("ig", ig=scores, aggregate="top20").strength_S.tolist() == [2, 3, 2, 0]  # a fifth of 2 tokens is 1
    strength = of("strength", ig=scores)
    assert torch.equal(strength.strength_S, ig.strength_S)
    assert strength.consistency_S.tolist() == [0] * 4
    assert ig.consistency_S.tolist()[:3] == pytest.approx([1 / 3, 1, 1])
    tokens = of("ig_tokens", ig=scores)
    assert tokens.strength_S.tolist() == [1, -2, 3, 2, 2, 0]
    assert tokens.segment_T.tolist() == [0, 0, 1, 2, 2, 3]
    assert tokens.thought_S.tolist() == [True] * 5 + [False]
    assert of("abs_ig_tokens", ig=scores).share_S.tolist() == pytest.approx([0.1, 0.2, 0.3, 0.2, 0.2, 0])
    with pytest.raises(ValueError, match="aggregate='max', expected one of sqrt, sum"):
        of("ig", ig=scores, aggregate="max")


def test_permuted_scores_are_the_same_ones_elsewhere():
    scores = [float(value) for value in (1, -2, 3, 2, 2, 9)]
    ig = of("ig", ig=scores)
    dealt = {tuple(of("permuted_ig", ig=scores, seed=seed).strength_S.tolist()) for seed in range(20)}
    assert len(dealt) > 1
    assert all(sorted(one[:3]) == sorted(ig.strength_S.tolist()[:3]) and one[3] == 0 for one in dealt)
    again = [of("permuted_ig", ig=scores).consistency_S.tolist() for _ in range(2)]
    assert again[0] == again[1]


def test_the_oracle_reads_the_planted_kinds():
    trace, segments = toy_trace()
    scores = segrl.score(Evidence(trace), segments, "oracle")
    inverted = segrl.score(Evidence(trace), segments, "oracle", inverted=True)
    worth = {"needed": 1.0, "redundant": 0.0, "other": 0.5}
    expected = [worth[toy.CLASSES[kind]] for kind in trace.meta["kinds"]][:-1]
    assert scores.strength_S.tolist()[:-1] == expected
    assert inverted.strength_S.tolist()[:-1] == [1 - value for value in expected]
    with pytest.raises(ValueError, match=r"trace 't' has no planted kinds .*for traces of segrl\.toy"):
        segrl.score(evidence(), Segments((0, 10)), "oracle")
    with pytest.raises(ValueError, match=r"planted kinds and 1 segments"):
        segrl.score(Evidence(trace), Segments((0, trace.tokens)), "oracle")


def test_the_oracle_knows_what_misled_a_wrong_response():
    [trace] = toy.sample_mistakes(1, seed=3)
    _, tokenizer = toy.load_model()
    tokenised = segrl.tokenize(trace, tokenizer)
    segments = segrl.segment(tokenised, "keywords")
    found = segrl.score(Evidence(tokenised), segments, "oracle", mistakes=True).strength_S.tolist()
    assert found == [float(kind in ("wrong", "carried")) for kind in trace.meta["kinds"]]
    assert 1.0 in found
    assert 0.0 in found[:-1]


def test_first_correct_scores_what_comes_up_to_the_conclusion():
    text = "Okay, we have 7 terms.\n\nWait, so it is 7.\n\nWait, 3 is 7?\n</think> \\boxed{7}"
    trace = segrl.tokenize(Trace("t", "p", text, "7"), byte_level_tokenizer())
    scores = segrl.score(Evidence(trace), segrl.segment(trace), "first_correct")
    assert scores.strength_S.tolist() == [1, 1, 0, 0]


# --- how segments are cut --------------------------------------------------------------------------------------------


@given(VALUES, st.integers(1, 11))
def test_the_plain_sum_does_not_care_how_finely_one_cuts(values, cut):
    scores_T, cut = torch.tensor(values), min(cut, len(values) - 1)
    whole, parts = (
        segment_scores(scores_T, Segments(boundaries), "sum").strength_S.sum()
        for boundaries in ((0, len(values)), (0, cut, len(values)))
    )
    assert float(parts) == pytest.approx(float(whole), abs=1e-9)


def test_two_halves_are_stronger_than_their_whole():
    """Four tokens of 1: 4 / sqrt(4) = 2 in one piece, 2 * 2 / sqrt(2) = 2.83 in two."""
    ones_T = torch.ones(4)
    assert float(segment_scores(ones_T, Segments((0, 4))).strength_S.sum()) == pytest.approx(2)
    assert float(segment_scores(ones_T, Segments((0, 2, 4))).strength_S.sum()) == pytest.approx(2 * math.sqrt(2))


# --- consistency beyond chance ---------------------------------------------------------------------------------------


def exact_excess(values):
    """Over all signs."""
    total = sum(map(abs, values))
    flips = [abs(sum(s * v for s, v in zip(signs, values))) for signs in product((1, -1), repeat=len(values))]  # noqa: B905
    expected = sum(flips) / len(flips) / total
    return max(0.0, (abs(sum(values)) / total - expected) / (1 - expected)) if expected < 1 else 0.0


@pytest.mark.parametrize("values", [[1.0, 1.0], [3.0, -1.0, 1.0], [1.0] * 8, [2.0, 1.0, -1.0, 0.5, 3.0, 1.0, 1.0, 1.0]])
def test_excess_against_all_flips(values):
    scores = segment_scores(torch.tensor(values), Segments((0, len(values))))
    assert float(scores.excess_S[0]) == pytest.approx(exact_excess(values), abs=0.1)  # 256 of them


def test_excess_knows_that_short_segments_are_consistent_by_chance():
    assert segment_scores(torch.tensor([5.0, 0.0]), Segments((0, 1, 2))).excess_S.tolist() == [0.0, 0.0]
    random_T = torch.randn(60 * 3, generator=torch.Generator().manual_seed(0))
    short = segment_scores(random_T, Segments(tuple(range(0, 181, 3))))
    assert float(short.consistency_S.mean()) > 0.5 > 0.35 > float(short.excess_S.mean())
    uniform = segment_scores(torch.ones(400), Segments((0, 400)))
    assert float(uniform.excess_S[0]) == pytest.approx(1.0)


def test_a_measure_that_gives_nan_is_named_with_the_trace():
    def broken(evidence, segments):
        return segment_scores(torch.full((segments.tokens,), math.nan), segments)

    one = evidence()
    with pytest.raises(ValueError, match=r"broken .* on trace 't': .* holds NaN or infinity"):
        segrl.score(one, Segments((0, 2, one.trace.tokens)), broken)

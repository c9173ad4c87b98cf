import pytest
import torch
from testkit.tiny import byte_level_tokenizer

import segrl
from segrl import Attribution, Evidence, Segments, SegmentScores, Selection, TokenisedTrace, Trace


def tokenised(response="Okay.\n\nWait, 7."):
    return segrl.tokenize(Trace(id="t", problem="3+4?", response=response, answer="7"), byte_level_tokenizer())


def test_a_trace_is_tokenised_whole_or_not_at_all():
    with pytest.raises(TypeError, match="unexpected keyword argument 'response_ids'"):
        Trace(id="t", problem="p", response="r", response_ids=torch.tensor([1]))
    with pytest.raises(TypeError, match=r"missing 4 required keyword-only arguments: 'prompt_ids', 'offsets_T'"):
        TokenisedTrace(id="t", problem="p", response="r", response_ids=torch.tensor([1]))


def test_a_trace_says_both_counts_when_offsets_and_ids_disagree():
    trace = tokenised()
    fields = {"prompt_ids": trace.prompt_ids, "response_ids": trace.response_ids, "prompt_hash": "x"}
    with pytest.raises(ValueError, match=rf"got {trace.tokens - 1} for {trace.tokens}"):
        TokenisedTrace("t", "p", trace.response, offsets_T=trace.offsets_T[1:], trainable_T=trace.trainable_T, **fields)


def test_a_trace_whose_tokens_end_before_its_text_is_refused():
    trace = tokenised()
    fields = {name: getattr(trace, name) for name in ("prompt_ids", "response_ids", "offsets_T", "trainable_T")}
    with pytest.raises(ValueError, match="end at character 15, the response has 16"):
        TokenisedTrace("t", "p", trace.response + "!", prompt_hash="x", **fields)


def test_an_untokenised_trace_has_no_token_count():
    with pytest.raises(ValueError, match=r"segrl.tokenize"):
        _ = Trace(id="t", problem="p").tokens


@pytest.mark.parametrize(
    ("boundaries", "sentence"),
    [
        ((), "start at 0"),
        ((1, 3), "start at 0"),
        ((0,), "start at 0"),
        ((0, 2, 2), "2 before 2"),
        ((0, 3, 1), "3 before 1"),
    ],
)
def test_segments_that_are_no_partition_cannot_be_made(boundaries, sentence):
    with pytest.raises(ValueError, match=sentence):
        Segments(boundaries)


def test_segments_know_their_tokens():
    segments = Segments((0, 2, 5, 6), ("thought", "thought", "answer"))
    assert segments.tokens_S.tolist() == [2, 3, 1]
    assert segments.index_T.tolist() == [0, 0, 1, 1, 1, 2]
    assert segments.slices == [slice(0, 2), slice(2, 5), slice(5, 6)]
    assert segments.thought_S.tolist() == [True, True, False]
    assert segments.thought_slices == segments.slices[:2]
    with pytest.raises(ValueError, match="got 1 for 2"):
        Segments((0, 1, 2), ("thought",))


def attribution(scores_T):
    about = {"target": "gold", "input_ids": torch.tensor([1]), "answer_span": (0, 1), "evaluations": 1}
    zeros = dict.fromkeys(("logp_input", "logp_baseline", "mass_prompt", "mass_suffix", "gap", "copy_share"), 0.0)
    return Attribution(trace_id="bad one", scores_T=scores_T, **about, **zeros)


def test_scores_that_are_not_finite_name_the_trace():
    with pytest.raises(ValueError, match=r"'bad one': 2 of 3 attribution scores"):
        attribution(torch.tensor([1.0, float("nan"), float("inf")]))


def test_evidence_belongs_to_its_trace():
    with pytest.raises(ValueError, match=r"evidence ig: got 3 for \d+"):
        Evidence(tokenised(), attribution(torch.ones(3)))
    with pytest.raises(ValueError, match=r"evidence entropy_T: got 2 for \d+"):
        Evidence(tokenised(), entropy_T=torch.ones(2))


def test_shares_sum_to_one_or_are_all_zero():
    tokens_S = torch.tensor([1, 1])
    ones, halves, zeros = torch.ones(2), torch.full((2,), 0.5), torch.zeros(2)
    SegmentScores(ones, halves, zeros, tokens_S)
    SegmentScores(zeros, zeros, zeros, tokens_S)
    with pytest.raises(ValueError, match="sum to 1, got 2"):
        SegmentScores(ones, ones, zeros, tokens_S)
    with pytest.raises(ValueError, match="consistency_S holds NaN"):
        SegmentScores(ones, halves, torch.tensor([0.0, float("nan")]), tokens_S)


def test_a_selection_gives_a_reason_that_fits():
    Selection(torch.tensor([True, False]), ("forced", "consistency"))
    with pytest.raises(ValueError, match="kept has reason 'dropped'"):
        Selection(torch.tensor([True]), ("dropped",))
    with pytest.raises(ValueError, match="got 1 for 2"):
        Selection(torch.tensor([True, True]), ("forced",))

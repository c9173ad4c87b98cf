import re
import time
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from testkit.oracles import slow_offsets
from testkit.real import real_traces
from testkit.tiny import byte_level_tokenizer

import segrl
from segrl import Evidence, Trace
from segrl.segmentation import KEYWORDS, RETRO_SEARCH, SEGMENTERS

PIECES = st.sampled_from(
    ["\n\nWait", "\n\nBut", "\n\nBut wait", "\n\n", "\r\n\r\nHowever", "ing. ", "</think>", "é東🜁", " 7"]
)
TEXTS = st.one_of(st.text(st.characters(codec="utf-8")), st.lists(PIECES, max_size=12).map("".join))


def trace_of(text):
    return segrl.tokenize(Trace(id="t", problem="p", response=text), byte_level_tokenizer())


def pieces(trace, segments):
    """The text of each segment, by the characters of its tokens."""
    starts = [int(trace.offsets_T[b, 0]) for b in segments.boundaries[:-1]]
    return [trace.response[a:b] for a, b in zip(starts, [*starts[1:], len(trace.response)], strict=True)]


# --- text ------------------------------------------------------------------------------------------------------------


@given(TEXTS, st.sampled_from(["keywords", "retro_search", "paragraphs"]))
def test_the_pieces_joined_are_the_text(text, segmenter):
    found = segrl.split(text, segmenter)
    assert "".join(found) == text
    assert all(found)


def test_a_keyword_splits_behind_a_blank_line_only():
    text = "Wait, so.\nWait, no.\n\nWait, yes.\n\nBut wait, hm.\n\nBut no."
    assert segrl.split(text) == ["Wait, so.\nWait, no.", "\n\nWait, yes.", "\n\nBut wait, hm.\n\nBut no."]
    assert segrl.split(text, "retro_search")[-1] == "\n\nBut no."


def test_word_boundary_and_crlf_are_options():
    assert segrl.split("a\n\nWaiting") == ["a", "\n\nWaiting"]
    assert segrl.split("a\n\nWaiting", word_boundary=True) == ["a\n\nWaiting"]
    assert segrl.split("a\n\nWait, b", word_boundary=True) == ["a", "\n\nWait, b"]
    assert segrl.split("a\r\n\r\nWait") == ["a\r\n\r\nWait"]
    assert segrl.split("a\r\n\r\nWait", crlf=True) == ["a", "\r\n\r\nWait"]


def test_each_keyword_of_the_paper_splits():
    for word in (*KEYWORDS, *RETRO_SEARCH):
        segmenter = "keywords" if word in KEYWORDS else "retro_search"
        assert segrl.split(f"a\n\n{word} b", segmenter) == ["a", f"\n\n{word} b"]


def test_a_users_own_function_or_pattern_splits():
    assert segrl.split("a; b; c", "regex", pattern="; ") == ["a", "; b", "; c"]
    assert segrl.split("abc", lambda text: [1, 2]) == ["a", "b", "c"]
    assert segrl.split("abc", lambda text: [0, 3, 9, -1]) == ["abc"]
    with pytest.raises(ValueError, match="did you mean 'keywords'"):
        segrl.split("a", "keyword")
    with pytest.raises(ValueError, match=r"no module 'nowhere'"):
        segrl.split("a", "nowhere:cut")
    with pytest.raises(ValueError, match=r"the module 'math' has no 'cut'"):
        segrl.split("a", "math:cut")
    with pytest.raises(ValueError, match="cuts between tokens"):
        segrl.split("a", "fixed")


def test_keyword_segments_of_real_traces_equal_a_plain_regular_expression_split():
    pattern = f"(?=\n\n(?:{'|'.join(KEYWORDS)}))"
    found = [segrl.split(trace.response) for trace in real_traces()]
    assert found == [[piece for piece in re.split(pattern, trace.response) if piece] for trace in real_traces()]
    assert 20 < sum(map(len, found)) / len(found) < 40


# --- tokens ----------------------------------------------------------------------------------------------------------


@given(TEXTS.filter(bool), st.integers(1, 6), st.sampled_from(["keywords", "retro_search", "paragraphs", "auto"]))
def test_segments_are_a_partition(text, min_tokens, segmenter):
    trace = trace_of(text)
    segments = segrl.segment(trace, segmenter, min_tokens=min_tokens)
    assert segments.boundaries[0] == 0
    assert segments.boundaries[-1] == trace.tokens
    assert sum(segments.tokens_S.tolist()) == trace.tokens
    thoughts = segments.tokens_S[segments.thought_S]
    assert len(thoughts) < 2 or int(thoughts.min()) >= min_tokens


def test_a_straddling_token_belongs_to_the_segment_in_which_it_starts():
    trace = trace_of("= 7.\n\nWait, 3")
    tokens = [trace.response[a:b] for a, b in trace.offsets_T.tolist()]
    assert ".\n\n" in tokens
    first = tokens.index(".\n\n") + 1
    assert segrl.segment(trace).boundaries == (0, first, trace.tokens)


def test_token_boundaries_on_real_traces_agree_with_slow_offsets():
    """The oracle decodes every prefix anew; cut short to bound its square cost."""
    for trace in real_traces()[::8]:
        trace = trace_of(trace.response[:2000])
        _, spans = slow_offsets(trace.response_ids.tolist(), byte_level_tokenizer())
        starts = [m.start() for m in re.finditer(f"\n\n(?:{'|'.join(KEYWORDS)})", trace.response)]
        expected = [next(t for t, (start, _) in enumerate(spans) if start >= char) for char in starts]
        assert segrl.segment(trace).boundaries == (0, *expected, trace.tokens)


def test_rollout_ids_and_text_are_cut_alike():
    trace = trace_of("Okay 東京.\n\nWait, é.\n\nHowever, 7.\n</think> So, \\boxed{7}")
    rollout = Trace.from_ids(
        id="r", problem="p", prompt_ids=[1], response_ids=trace.response_ids, tokenizer=byte_level_tokenizer()
    )
    assert segrl.segment(rollout) == segrl.segment(trace)


def test_what_follows_the_first_end_of_thought_is_one_answer_segment():
    trace = trace_of("Okay.\n\nWait, 7.\n</think> So,\n\nWait, \\boxed{7}</think>")
    segments = segrl.segment(trace)
    assert segments.kinds_S == ("thought", "thought", "answer")
    assert pieces(trace, segments)[-1] == "</think> So,\n\nWait, \\boxed{7}</think>"
    assert segrl.segment(trace_of("</think> 7")).kinds_S == ("answer",)
    assert segrl.segment(trace_of("Okay")).kinds_S == ("thought",)


def test_fixed_length_segments():
    trace = trace_of("1234567")
    assert segrl.segment(trace, "fixed", tokens=3).boundaries == (0, 3, 6, 7)


def test_short_segments_join_the_one_before_and_the_first_takes_in_the_next():
    trace = trace_of("1234567890")

    def cut(trace, evidence=None):
        return [1, 4, 5, 9]

    assert segrl.segment(trace, cut).boundaries == (0, 1, 4, 5, 9, 10)
    assert segrl.segment(trace, cut, min_tokens=2).boundaries == (0, 5, 10)
    assert segrl.segment(trace, cut, min_tokens=99).boundaries == (0, 10)


def test_a_cap_joins_the_shortest_neighbours():
    trace = trace_of("1234567890")

    def cut(trace, evidence=None):
        return [1, 4, 5, 9]  # lengths 1 3 1 4 1

    assert segrl.segment(trace, cut, max_segments=4).boundaries == (0, 4, 5, 9, 10)
    assert segrl.segment(trace, cut, max_segments=2).boundaries == (0, 5, 10)
    with pytest.raises(ValueError, match="max_segments=0"):
        segrl.segment(trace, cut, max_segments=0)
    with pytest.raises(ValueError, match="min_tokens=0"):
        segrl.segment(trace, cut, min_tokens=0)


def test_entropy_cuts_where_uncertainty_rises_after_a_sentence():
    trace = trace_of("1.2345.6789")
    entropy_T = torch.tensor([0.1] * 7 + [2.0] * 4)  # rises at token 7, the first behind the second full stop
    segments = segrl.segment(trace, "entropy", Evidence(trace, entropy_T=entropy_T), window=3)
    assert segments.boundaries == (0, 7, 11)
    shifted = segrl.segment(trace, "entropy", Evidence(trace, entropy_T=entropy_T.roll(1)), window=3)
    assert 8 not in shifted.boundaries  # token 8 starts inside a sentence
    with pytest.raises(ValueError, match=r"reads entropy_T; pass evidence=segrl.gather"):
        segrl.segment(trace, "entropy")
    with pytest.raises(ValueError, match="window=0, expected 1 or more"):
        segrl.segment(trace, "entropy", Evidence(trace, entropy_T=entropy_T), window=0)
    with pytest.raises(ValueError, match="cutpoints=-5, expected 1 or more"):
        segrl.segment(trace, "probability", Evidence(trace, logp_T=-entropy_T), cutpoints=-5)


def test_probability_cuts_at_every_fifth_uncertain_token():
    trace = trace_of("1234567890")
    logp_T = torch.tensor([0.5, 0.99, 0.5, 0.5, 0.95, 0.5, 0.5, 0.99, 0.5, 0.99]).log()  # uncertain: 0 2 3 5 6 8
    evidence = Evidence(trace, logp_T=logp_T)
    assert segrl.segment(trace, "probability", evidence, cutpoints=2).boundaries == (0, 3, 6, 10)


def test_auto_cuts_long_pieces_at_paragraphs():
    paragraph = "1 2 3 4 5 6 7 8 9\n\n"
    trace = trace_of("Okay.\n\nWait, " + paragraph * 6)
    whole = segrl.segment(trace, "auto")
    assert len(whole) == 2  # under 512 tokens: keywords alone
    cut = segrl.segment(trace, "auto", longest=40, shortest=32)
    assert whole.boundaries[1] in cut.boundaries
    assert len(cut) > 2
    assert min(cut.tokens_S[1:].tolist()) >= 32


def test_an_empty_response_is_a_sentence():
    with pytest.raises(ValueError, match="'t' has an empty response"):
        segrl.segment(trace_of(""))
    assert segrl.split("") == []


def test_every_segmenter_that_reads_text_serves_the_whole_text():
    readers = {"keywords", "retro_search", "paragraphs", "regex"}
    assert readers | {"fixed", "entropy", "probability", "auto"} == set(SEGMENTERS)


def test_a_million_rollout_tokens_are_cut_in_seconds():
    """Far above what it takes (under 1 s): Python loops over tokens would take minutes."""
    trace = trace_of("Okay, 3 + 4 = 7.\n\nWait, 東京 again. ")
    ids = trace.response_ids.repeat(1 + 1_000_000 // trace.tokens)
    start = time.perf_counter()
    rollout = Trace.from_ids(id="r", problem="p", prompt_ids=[], response_ids=ids, tokenizer=byte_level_tokenizer())
    assert len(segrl.segment(rollout)) > 10_000
    assert time.perf_counter() - start < 20


def test_meta_travels_along():
    trace = trace_of("a")
    assert replace(trace, meta={"kinds": ("needed",)}).meta["kinds"] == ("needed",)

import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from testkit.oracles import slow_offsets, walked_offsets
from testkit.real import smollm2_tokenizer
from testkit.tiny import byte_level_tokenizer, metaspace_tokenizer

from segrl import Trace, segment, tokenize
from segrl.attribution.target import explain
from segrl.text.decoding import decode, decode_stepwise
from segrl.tokenization import encode, thinking_tokens, tokenize_all
from segrl.types import TokenisedTrace

TEXTS = st.text(st.characters(codec="utf-8"), max_size=60)


@given(TEXTS)
def test_byte_level_offsets_agree_with_walking_the_bytes(text):
    tokenizer = byte_level_tokenizer()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    decoded, offsets_T = decode(torch.tensor(ids, dtype=torch.long), tokenizer)
    assert decoded == text
    assert offsets_T.tolist() == walked_offsets(text, ids, tokenizer)


@given(TEXTS)
def test_encoding_and_decoding_give_the_same_offsets(text):
    tokenizer = byte_level_tokenizer()
    ids, offsets_T = encode(text, tokenizer)
    decoded, decoded_offsets_T = decode(ids, tokenizer)
    assert decoded == text
    assert offsets_T.tolist() == decoded_offsets_T.tolist()


@given(st.lists(st.integers(0, 421), max_size=40))
def test_any_ids_decode_to_the_tokenizers_own_text(ids):
    """Rollouts may break characters anywhere; the text must be what verl's reward sees."""
    tokenizer = byte_level_tokenizer()
    text, offsets_T = decode(torch.tensor(ids, dtype=torch.long), tokenizer)
    assert text == tokenizer.decode(ids, skip_special_tokens=True)
    starts, ends = offsets_T[:, 0].tolist(), offsets_T[:, 1].tolist()
    assert starts == sorted(starts)
    assert ends == sorted(ends)
    assert not ids or max(ends) == len(text)


def test_pieces_of_one_character_all_carry_it():
    tokenizer = byte_level_tokenizer()
    ids, offsets_T = encode("a🜁b", tokenizer)
    pieces = len(ids) - 2
    assert pieces > 1
    assert offsets_T.tolist() == [[0, 1], *[[1, 2]] * pieces, [2, 3]]


def test_special_tokens_stand_for_no_character():
    tokenizer = byte_level_tokenizer()
    ids = [*encode("7.", tokenizer)[0].tolist(), tokenizer.eos_token_id]
    trace = Trace.from_ids(id="r", problem="p", prompt_ids=[1], response_ids=ids, tokenizer=tokenizer)
    assert trace.response == "7."
    assert trace.offsets_T.tolist()[-1] == [2, 2]
    assert trace.response_ids.tolist() == ids


def test_from_ids_keeps_ids_that_another_tokenisation_would_not_give():
    tokenizer = byte_level_tokenizer()
    letters = tokenizer.convert_tokens_to_ids(list("Wait"))
    assert letters != encode("Wait", tokenizer)[0].tolist()
    trace = Trace.from_ids(id="r", problem="p", prompt_ids=[], response_ids=letters, tokenizer=tokenizer)
    assert trace.response == "Wait"
    assert trace.response_ids.tolist() == letters


@given(TEXTS)
@settings(max_examples=50)
def test_other_tokenizers_are_decoded_stepwise(text):
    tokenizer = metaspace_tokenizer()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    decoded, offsets_T = decode_stepwise(torch.tensor(ids, dtype=torch.long), tokenizer)
    assert (decoded, offsets_T.tolist()) == slow_offsets(ids, tokenizer)


def test_spaces_that_a_tokenizer_leaves_out_of_its_offsets_belong_to_the_next_token():
    from segrl.tokenization import _without_gaps

    assert _without_gaps([(0, 2), (3, 5), (6, 7)], 9).tolist() == [[0, 2], [2, 5], [5, 9]]
    assert _without_gaps([], 0).shape == (0, 2)


def test_a_lone_surrogate_is_refused_with_a_cure():
    with pytest.raises(ValueError, match=r"'t': the text holds a lone surrogate.*encode\('utf-8', 'replace'\)"):
        tokenize(Trace("t", "p", "x\ud83d"), byte_level_tokenizer())


def test_eight_million_tokens_take_seconds():
    """A bound far above what it takes (about 3 s): a loop over tokens in Python would take minutes."""
    tokenizer = byte_level_tokenizer()
    ids = encode("Wait, 3 + 4 = 7. 東京\n\nHowever, ", tokenizer)[0].repeat(400_000)[:8_000_000]
    start = time.perf_counter()
    text, offsets_T = decode(ids, tokenizer)
    assert time.perf_counter() - start < 30
    assert int(offsets_T[-1, 1]) == len(text)


@pytest.mark.parametrize("tokenizer", [byte_level_tokenizer(), metaspace_tokenizer()], ids=["byte-level", "metaspace"])
def test_many_at_once_are_what_they_are_one_by_one(tokenizer):
    texts = ["Wait, 7.", "", "<think>\nnaïve 👩‍🚀", " 東京\n\n  "]
    traces = [Trace(id=str(i), problem="p" * i, response=text) for i, text in enumerate(texts)]
    template = "Q: {problem} A:<think>\n"
    for one, other in zip(
        tokenize_all(traces, tokenizer, template), (tokenize(t, tokenizer, template) for t in traces), strict=True
    ):
        assert (one.response, one.prompt_hash) == (other.response, other.prompt_hash)
        for name in ("prompt_ids", "response_ids", "offsets_T", "trainable_T"):
            assert torch.equal(getattr(one, name), getattr(other, name)), name


def test_a_token_that_reaches_into_the_end_of_the_thought_is_no_thinking():
    """Where `</think>` is no token of its own, ` </` can be one: kept as thinking it would open the tag twice."""
    spans = [(0, 3), (3, 4), (4, 7), (7, 12), (12, 13), (13, 15)]  # Six, ., " </", think, >, " 7"
    trace = TokenisedTrace(
        id="t",
        problem="?",
        response="Six. </think> 7",
        prompt_ids=torch.tensor([0]),
        response_ids=torch.arange(6),
        offsets_T=torch.tensor(spans),
        trainable_T=torch.ones(6, dtype=torch.bool),
        prompt_hash="",
    )
    assert thinking_tokens(trace) == 2
    assert segment(trace, "keywords").boundaries == (0, 2, 6)


def test_the_tag_stands_once_in_what_is_explained_of_smollm2():
    tokenizer = smollm2_tokenizer()
    trace = tokenize(Trace(id="t", problem="?", response="Six and one. </think> 7", answer="7"), tokenizer)
    text = tokenizer.decode(explain(trace, tokenizer).input_ids[len(trace.prompt_ids) :])
    assert text == "Six and one.</think> So, the final answer is \\boxed{7}"

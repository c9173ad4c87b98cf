import pytest
import torch
from testkit.tiny import byte_level_tokenizer

from segrl import Trace, tokenize
from segrl.attribution.target import answer_suffix, explain, restating_tokens


def trace_of(response, answer="7"):
    return tokenize(Trace(id="t", problem="3+4?", response=response, answer=answer), byte_level_tokenizer())


@pytest.mark.parametrize("answer", ["7", "-3", "\\pi", "x^{2}", "\\frac{1}{2}", "(3, \\frac{\\pi}{2})", "東京", "12"])
def test_the_explained_tokens_are_those_of_the_answer(answer):
    """Every character of the answer lies in the span, and no whole token of the span lies outside the answer."""
    tokenizer = byte_level_tokenizer()
    ids, first, last = answer_suffix(answer, tokenizer)
    inside = tokenizer.decode(ids[first:last])
    assert answer in inside
    assert answer not in tokenizer.decode(ids[first + 1 : last])
    assert answer not in tokenizer.decode(ids[first : last - 1])


def test_the_sequence_is_prompt_thinking_and_suffix():
    tokenizer = byte_level_tokenizer()
    trace = trace_of("So 3 + 4 = 7.\n</think> It is \\boxed{7}")
    one = explain(trace, tokenizer)
    thinking = tokenizer.decode(one.input_ids[one.thinking])
    assert thinking == "So 3 + 4 = 7.\n"
    assert tokenizer.decode(one.input_ids[one.thinking.stop :]) == "</think> So, the final answer is \\boxed{7}"
    assert tokenizer.decode(one.input_ids[slice(*one.answer_span)]) == "7"
    full = explain(trace, tokenizer, context="full")
    assert tokenizer.decode(full.input_ids[full.thinking]) == trace.response


def test_values_of_all_positions_become_those_of_the_response():
    trace = trace_of("So 7.\n</think> It is \\boxed{7}")
    explained = explain(trace, byte_level_tokenizer())
    start, tokens = len(trace.prompt_ids), explained.thinking_tokens
    assert 0 < tokens < trace.tokens
    values_L2 = torch.arange(1.0, 2 * len(explained) + 1).reshape(-1, 2)
    values_T2 = explained.of_response(values_L2)
    assert torch.equal(values_T2[:tokens], values_L2[start : start + tokens])
    assert values_T2[tokens:].tolist() == [[0, 0]] * (trace.tokens - tokens)
    assert torch.equal(explained.of_response(values_L2[:, 1]), values_T2[:, 1])


def test_the_own_answer_is_the_one_behind_the_thinking():
    tokenizer = byte_level_tokenizer()
    one = explain(trace_of("\\boxed{1}\n</think> \\boxed{12}"), tokenizer, target="own")
    assert one.answer == "12"
    assert explain(trace_of("</think> \\boxed{1} and \\boxed{2}"), tokenizer, target="own").answer == "1, 2"
    for unanswered in ("\\boxed{1}\n</think> no", "<think> maybe \\boxed{1}"):
        with pytest.raises(ValueError, match="boxes no answer of its own"):
            explain(trace_of(unanswered), tokenizer, target="own")
    with pytest.raises(ValueError, match="has no gold answer"):
        explain(trace_of("x", answer=None), tokenizer)
    with pytest.raises(ValueError, match="target='silver'"):
        explain(trace_of("x"), tokenizer, target="silver")
    with pytest.raises(ValueError, match="context='some'"):
        explain(trace_of("x"), tokenizer, context="some")


def test_an_own_template_holds_the_answer_once():
    tokenizer = byte_level_tokenizer()
    ids, first, last = answer_suffix("7", tokenizer, "\n\nAnswer: {answer}.")
    assert tokenizer.decode(ids[first:last]).strip() == "7"
    with pytest.raises(ValueError, match=r"must hold '\{answer\}' once"):
        answer_suffix("7", tokenizer, "Answer:")


def test_tokens_that_restate_the_answer_are_found_wherever_they_stand():
    trace = trace_of("12 and 1 and 12", answer="12")
    tokens = [trace.response[a:b] for a, b in trace.offsets_T.tolist()]
    restating = [
        token.strip() for token, yes in zip(tokens, restating_tokens(trace, "12").tolist(), strict=True) if yes
    ]
    assert restating == ["1", "2", "1", "2"]

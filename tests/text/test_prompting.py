import pytest
from testkit.tiny import CHAT, OPENS_THINK, STRIPS_THOUGHTS, byte_level_tokenizer
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from segrl import Trace, tokenize
from segrl.text.prompting import opens_thought, prompt_hash, render, strip_opening


def test_the_chat_template_renders_up_to_the_assistants_turn():
    assert render("1+1?", byte_level_tokenizer()) == (
        "<|im_start|>user\n1+1?\nPlease reason step by step, and put your final answer within \\boxed{}.<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_braces_in_a_problem_stay_as_they_are():
    assert "f(x) = {x}^{2} {problem}" in render("f(x) = {x}^{2} {problem}", byte_level_tokenizer())
    assert render("{x}", None, "Q: {problem} A:") == "Q: {x} A:"


def test_a_tokenizer_without_chat_template_is_told_what_to_do():
    bare = byte_level_tokenizer(chat_template=None)
    with pytest.raises(ValueError, match="no chat template; pass template=plain"):
        render("1+1?", bare)
    assert render("1+1?", bare, "plain").startswith("1+1?\nPlease reason")
    with pytest.raises(ValueError, match=r"holds no '\{problem\}'"):
        render("1+1?", bare, "Question:")


def test_the_token_that_begins_every_text_begins_a_plain_prompt_too():
    tokenizer = byte_level_tokenizer(chat_template=None)
    copied = Tokenizer.from_str(tokenizer._tokenizer.to_str())
    copied.post_processor = TemplateProcessing(single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)])
    begun = PreTrainedTokenizerFast(tokenizer_object=copied, bos_token="<|im_start|>")
    assert begun("1+1?")["input_ids"][0] == begun.bos_token_id == 1
    for template in ("plain", "Q: {problem}", "<|im_start|>Q: {problem}"):
        ids = tokenize(Trace("t", "1+1?", "2"), begun, template).prompt_ids.tolist()
        assert ids[0] == 1 not in ids[1:]
    assert render("1+1?", tokenizer, "Q: {problem}") == "Q: 1+1?"


def test_a_think_tag_that_the_prompt_opened_is_dropped_from_the_response():
    tokenizer = byte_level_tokenizer(chat_template=OPENS_THINK)
    prompt = render("1+1?", tokenizer)
    assert opens_thought(prompt)
    assert strip_opening("<think>\nOkay", prompt) == "Okay"
    assert strip_opening("Okay <think>", prompt) == "Okay <think>"
    assert tokenize(Trace("t", "1+1?", "<think>\nOkay"), tokenizer).response == "Okay"
    closed = render("1+1?", byte_level_tokenizer(chat_template=CHAT))
    assert strip_opening("<think>\nOkay", closed) == "<think>\nOkay"


def test_a_template_that_strips_thoughts_never_sees_the_response():
    tokenizer = byte_level_tokenizer(chat_template=STRIPS_THOUGHTS)
    trace = tokenize(Trace("t", "1+1?", "I think so.\n</think> 2"), tokenizer)
    assert trace.response == "I think so.\n</think> 2"
    assert tokenizer.decode(trace.response_ids) == trace.response


def test_the_hash_tells_prompts_apart():
    tokenizer = byte_level_tokenizer()
    assert prompt_hash(render("1+1?", tokenizer)) == prompt_hash(render("1+1?", tokenizer))
    assert prompt_hash(render("1+1?", tokenizer)) != prompt_hash(render("1+2?", tokenizer))
    assert prompt_hash("\ud800") != prompt_hash("")

import copy

import pytest
import torch
from testkit.tiny import byte_level_tokenizer, tiny_model

from segrl import Trace
from segrl.generation import sample
from segrl.generation.local import draw
from segrl.text.prompting import render

PROBLEMS = [Trace(id=str(i), problem=f"What is {i}+{'1' * i}?", answer="1", meta={"source": "x"}) for i in range(4)]


def greedy_by_hand(model, tokenizer, problem, tokens, penalty=1.0):
    """One unpadded forward per token."""
    ids = tokenizer(render(problem.problem, tokenizer), add_special_tokens=False)["input_ids"]
    new = []
    for _ in range(tokens):
        with torch.no_grad():
            logits_V = model(torch.tensor([ids + new])).logits[0, -1]
        seen = torch.tensor(sorted({*ids, *new}))
        logits_V[seen] = torch.where(logits_V[seen] > 0, logits_V[seen] / penalty, logits_V[seen] * penalty)
        token = int(logits_V.argmax())
        if token == tokenizer.eos_token_id:
            return new, "stop"
        new.append(token)
    return new, "length"


def test_greedy_responses_equal_a_loop_of_forwards():
    model, tokenizer = tiny_model(), byte_level_tokenizer()
    for trace, problem in zip(sample(model, tokenizer, PROBLEMS, temperature=0, max_tokens=8), PROBLEMS, strict=True):
        ids, finish = greedy_by_hand(model, tokenizer, problem, 8)
        assert trace.response == tokenizer.decode(ids, skip_special_tokens=True)
        assert (trace.id, trace.answer, trace.meta["source"]) == (problem.id, "1", "x")
        assert (trace.meta["finish"], trace.meta["tokens"]) == (finish, len(ids) + (finish == "stop"))


def test_a_repetition_penalty_changes_the_logits_of_what_was_said():
    """Of 0.2, which favours repetition: by itself this random model never repeats a token."""
    model, tokenizer = tiny_model(), byte_level_tokenizer()
    [plain], [penalised] = (
        sample(model, tokenizer, PROBLEMS[:1], temperature=0, max_tokens=8, repetition_penalty=penalty)
        for penalty in (1.0, 0.2)
    )
    ids, _ = greedy_by_hand(model, tokenizer, PROBLEMS[0], 8, penalty=0.2)
    assert penalised.response == tokenizer.decode(ids, skip_special_tokens=True)
    assert penalised.response != plain.response


def test_a_row_ends_where_the_model_has_no_position_left():
    """The model has 512: rows of 500 and 510 tokens go on for 12 and 2, whatever is drawn beside them."""
    model, tokenizer = tiny_model(), byte_level_tokenizer()
    rows = [[20] * 500, [20] * 510]
    drawn = draw(model, tokenizer, rows, temperature=0, max_tokens=20)
    assert [len(ids) for ids in drawn] == [12, 2]
    assert [drawn[1]] == draw(model, tokenizer, rows[1:], temperature=0, max_tokens=20)
    with pytest.raises(ValueError, match="a prompt has 512 tokens, the model takes 512"):
        draw(model, tokenizer, [[20] * 512], temperature=0, max_tokens=20)


def test_samples_repeat_by_seed():
    model, tokenizer = tiny_model(), byte_level_tokenizer()
    one, same, other = (sample(model, tokenizer, PROBLEMS, max_tokens=8, seed=seed) for seed in (1, 1, 2))
    assert [t.response for t in one] == [t.response for t in same]
    assert [t.response for t in one] != [t.response for t in other]


def test_a_response_ends_where_the_model_stops():
    model, tokenizer = tiny_model(), byte_level_tokenizer()
    with torch.no_grad():
        model.lm_head.weight.zero_()
    stops = torch.nn.functional.one_hot(torch.tensor(tokenizer.eos_token_id), model.config.vocab_size)
    model.lm_head.bias = torch.nn.Parameter(stops.float())
    [trace] = sample(model, tokenizer, PROBLEMS[:1], temperature=0, max_tokens=8)
    assert (trace.response, trace.meta["finish"], trace.meta["tokens"]) == ("", "stop", 1)


def test_a_tokenizer_without_a_pad_token_serves_and_one_without_an_end_is_a_sentence():
    model, bare = tiny_model(), copy.deepcopy(byte_level_tokenizer())
    bare.pad_token = None
    one, other = (sample(model, t, PROBLEMS, temperature=0, max_tokens=6) for t in (bare, byte_level_tokenizer()))
    assert [t.response for t in one] == [t.response for t in other]
    bare.eos_token = None
    with pytest.raises(ValueError, match="no end-of-text token"):
        sample(model, bare, PROBLEMS)


def test_a_stop_text_ends_its_own_response_and_is_cut_off():
    model, tokenizer = tiny_model(), byte_level_tokenizer()
    whole = sample(model, tokenizer, PROBLEMS, temperature=0, max_tokens=8)
    stop = whole[0].response[3:5]
    assert not all(stop in trace.response for trace in whole)
    for cut, trace in zip(
        sample(model, tokenizer, PROBLEMS, temperature=0, max_tokens=8, stop=[stop]), whole, strict=True
    ):
        assert cut.response == trace.response.partition(stop)[0]
        if stop in trace.response:
            ids = greedy_by_hand(model, tokenizer, trace, cut.meta["tokens"])[0]
            assert stop in tokenizer.decode(ids)
            assert stop not in tokenizer.decode(ids[:-1])
            assert cut.meta["finish"] == "stop"
        else:
            assert cut.meta == trace.meta


def test_what_a_model_ships_besides_its_weights_changes_no_sample():
    model, tokenizer = tiny_model(), byte_level_tokenizer()
    plain = sample(model, tokenizer, PROBLEMS, max_tokens=8)
    model.generation_config.repetition_penalty, model.generation_config.min_p = 9.0, 0.9
    assert [t.response for t in sample(model, tokenizer, PROBLEMS, max_tokens=8)] == [t.response for t in plain]
    assert model.generation_config.repetition_penalty == 9.0


def test_every_end_that_a_model_knows_ends_a_response():
    model, tokenizer = tiny_model(), byte_level_tokenizer()
    ids, _ = greedy_by_hand(model, tokenizer, PROBLEMS[0], 4)
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, ids[2]]
    [trace] = sample(model, tokenizer, PROBLEMS[:1], temperature=0, max_tokens=8)
    kept = ids[: ids.index(ids[2])]
    assert (trace.response, trace.meta["finish"]) == (tokenizer.decode(kept), "stop")
    assert trace.meta["tokens"] == len(kept) + 1

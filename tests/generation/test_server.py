"""Against a real server over a real socket that samples from the toy model (tests/support/testkit/completions.py)."""

import socket
import time

import pytest
from testkit.completions import serving

from segrl import toy
from segrl.commands.cli import main
from segrl.data import load_traces
from segrl.generation import Sampling, sample, samples, server
from segrl.text.prompting import prompt_hash, render

pytestmark = pytest.mark.filterwarnings("ignore:.*max_new_tokens.*")

DEFAULTS = {
    "endpoint": "completions",
    "prompt": "ids",
    "model": "toy",
    "key_variable": "A_KEY",
    "extra": {},
    "concurrency": 3,
    "retries": 2,
    "backoff": 0.01,
    "timeout": 20,
}


def asked_of(url, n=2, problems=3, max_tokens=12, temperature=1.0, stop=(), penalty=1.0, **changed):
    asked = samples(toy.sample_problems(problems, seed=7), n, seed=5)
    sampling = Sampling(str(toy.MODEL_PATH), "chat", temperature, 1.0, max_tokens, stop, penalty)
    traces = list(server.generate([asked], sampling, **{**DEFAULTS, "server": url, **changed}))
    return asked, sorted(traces, key=lambda trace: [one.id for one in asked].index(trace.id))


def alone(asked, **options):
    """What the transformers backend samples for it by itself."""
    [trace] = sample(*toy.load_model(), [asked], max_tokens=12, seed=asked.meta["seed"], **options)
    return trace.response, trace.meta["finish"], trace.meta["tokens"]


@pytest.mark.e2e
@pytest.mark.parametrize("prompt", ["ids", "text"])
def test_the_server_is_sent_our_prompt_and_a_seed_for_each_sample(prompt):
    with serving() as there:
        asked, traces = asked_of(there.url, prompt=prompt, extra={"top_k": -1})
    _, tokenizer = toy.load_model()
    for one, trace in zip(asked, traces, strict=True):
        assert (trace.response, trace.meta["finish"], trace.meta["tokens"]) == alone(one)
        assert (trace.id, trace.answer) == (one.id, one.answer)
        assert trace.meta["prompt_hash"] == prompt_hash(render(one.problem, tokenizer))
    assert {body["seed"] for body in there.bodies} == {one.meta["seed"] for one in asked}
    assert {(type(body["prompt"]), body["model"], body["top_k"]) for body in there.bodies} == {
        (list if prompt == "ids" else str, "toy", -1)
    }


def test_a_stop_text_and_a_repetition_penalty_reach_the_server(monkeypatch):
    monkeypatch.setenv("A_KEY", "secret")
    with serving() as there:
        asked, traces = asked_of(there.url, n=1, stop=["e"], temperature=0.0)
        assert there.keys == {"Bearer secret"}
        assert not any("repetition_penalty" in body for body in there.bodies)  # OpenAI's own servers know none
        asked_of(there.url, n=1, problems=1, max_tokens=1, penalty=1.1)
        assert there.bodies[-1]["repetition_penalty"] == 1.1
    for one, trace in zip(asked, traces, strict=True):
        whole, _, _ = alone(one, temperature=0.0)
        assert trace.response == whole.partition("e")[0]


def test_what_may_pass_is_tried_again():
    with serving(plans=[503, "hang up", {}]) as there:  # the last: not what the protocol says
        with pytest.raises(ConnectionError, match=r"gave a reply that is not one choice .* usage.completion_tokens"):
            asked_of(there.url, concurrency=1)
        assert len(there.bodies) == 3
    with serving(plans=[429, "hang up"]) as there:
        asked, traces = asked_of(there.url, n=1, concurrency=1)
        assert [trace.response for trace in traces] == [alone(one)[0] for one in asked]
        assert len(there.bodies) == len(asked) + 2


def test_what_will_not_pass_is_not():
    with serving(plans=[400]) as there:
        with pytest.raises(ConnectionError, match=r"no answer in 1 of 3 attempts, at last status 400: .*as planned"):
            asked_of(there.url, concurrency=1)
        assert len(there.bodies) == 1


def test_a_server_that_drips_is_given_up_in_time():
    began = time.monotonic()
    with serving(plans=["drip"]) as there, pytest.raises(ConnectionError, match=r"gave no answer within 0.3 s"):
        asked_of(there.url, concurrency=1, timeout=0.3)
    assert time.monotonic() - began < 5


def test_a_model_that_is_not_served_is_named():
    with (
        serving(models=("big", "small")) as there,
        pytest.raises(ValueError, match=r"serves 'big', 'small', not 'toy'"),
    ):
        asked_of(there.url)


def test_a_chat_sends_messages_and_keeps_a_thought_that_the_server_has_parsed():
    said = {"reasoning_content": "3 + 4", "content": "\\boxed{7}"}
    whole = {"choices": [{"message": said, "finish_reason": "stop"}], "usage": {"completion_tokens": 9}}
    cut = {
        "choices": [{"message": {"reasoning": "3 +", "content": None}, "finish_reason": "length"}],
        "usage": {"completion_tokens": 4},
    }
    with serving(plans=[whole, cut]) as there:
        _, traces = asked_of(there.url, n=2, problems=1, endpoint="chat", concurrency=1)
    assert [trace.response for trace in traces] == ["<think>3 + 4</think>\\boxed{7}", "<think>3 +"]
    assert [(trace.meta["finish"], trace.meta["tokens"]) for trace in traces] == [("stop", 9), ("length", 4)]
    assert there.bodies[0]["messages"][0]["content"].startswith(traces[0].problem)
    assert "prompt_hash" not in traces[0].meta


# --- the command -----------------------------------------------------------------------------------------------------


def command(url, out, *more):
    fast = ["generation.openai.backoff=0.01", "generation.openai.retries=1", "generation.openai.concurrency=1"]
    asked = ["generate", "backend=openai", f"model_path={toy.MODEL_PATH}", "generation.openai.model=toy", "limit=4"]
    size = ["generation.n=2", "generation.batch=2", "generation.max_tokens=12"]
    return main([*asked, *size, *fast, f"server={url}", f"out={out}", *more])


@pytest.mark.e2e
def test_after_a_server_died_the_same_command_goes_on_to_the_same_samples(tmp_path, capsys):
    with serving() as there:
        assert command(there.url, tmp_path / "whole") == 0
    with serving(lives=5) as there:
        assert command(there.url, tmp_path / "torn") == 2
    shown = capsys.readouterr().err
    assert "What is written stays; the same command goes on from there" in shown
    assert "Traceback" not in shown
    assert len(load_traces(tmp_path / "torn")) == 4
    with serving() as there:
        assert command(there.url, tmp_path / "torn") == 0
        assert len(there.bodies) == 4
    whole, torn = load_traces(tmp_path / "whole"), load_traces(tmp_path / "torn")
    assert [(t.id, t.response, dict(t.meta)) for t in whole] == [(t.id, t.response, dict(t.meta)) for t in torn]
    assert len({trace.response for trace in whole}) > 1


def test_nobody_there_is_a_sentence(tmp_path, capsys):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    assert command(url, tmp_path / "out") == 2
    assert f"no server answers at {url} ([Errno 111] Connection refused)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["server=localhost:8000"], "server='localhost:8000', expected an address like http"),
        (["server=null"], "backend=openai needs server="),
        (["generation.openai.endpoint=chatt"], "endpoint='chatt', expected one of completions, chat"),
        (["generation.openai.concurrency=0"], "concurrency=0, expected 1 or more"),
    ],
)
def test_bad_settings_are_sentences(tmp_path, capsys, more, sentence):
    with serving() as there:
        assert command(there.url, tmp_path / "out", *more) == 2
    assert sentence in capsys.readouterr().err

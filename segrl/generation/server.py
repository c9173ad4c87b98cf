"""Sampling from a server that speaks OpenAI's protocol: one request for each sample, several at once.

``completions`` sends the prompt as segrl renders it. ``chat`` is for servers without completions: the server's own
template is used, and the traces carry no prompt hash.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from queue import SimpleQueue
from threading import Event, Thread
from typing import Any

from segrl.generation.http import Server, ServerError
from segrl.generation.sampling import Sampling, answered
from segrl.loading import load_tokenizer
from segrl.text.prompting import render, user_message
from segrl.types import Trace

ENDPOINTS = ("completions", "chat")
PROMPTS = ("ids", "text")
FINISHES = {"stop": "stop", "length": "length", "eos_token": "stop", "stop_sequence": "stop", "content_filter": "stop"}

Request = tuple[Trace, str, dict[str, Any]]  # the sample, its rendered prompt, the fields that only its request has


def generate(
    groups: Iterable[Sequence[Trace]],
    sampling: Sampling,
    *,
    server: str | None,
    endpoint: str,
    prompt: str,
    model: str | None,
    key_variable: str,
    extra: Mapping[str, Any],
    concurrency: int,
    retries: int,
    backoff: float,
    timeout: float,
) -> Iterator[Trace]:
    """The traces as they finish; each sample is a request with its own seed, and the prefix cache shares its prompt."""
    for name, value, known in (("endpoint", endpoint, ENDPOINTS), ("prompt", prompt, PROMPTS)):
        if value not in known:
            raise ValueError(f"generation.openai.{name}={value!r}, expected one of {', '.join(known)}")
    model = model or sampling.model_path
    if server is None or model is None:
        raise ValueError("backend=openai needs server=http://host:port/v1 and model_path=, the model that it serves")
    connection = Server(server, os.environ.get(key_variable), retries, backoff, timeout)
    connection.check(model)
    fields = {"model": model, **_parameters(sampling), **extra}
    requests = _messages if endpoint == "chat" else partial(_rendered, sampling, prompt == "ids")
    samples = [trace for group in groups for trace in group]
    yield from in_parallel(partial(_answer, connection, fields), requests(samples), concurrency)


def in_parallel(answer: Callable[[Request], Trace], requests: Iterable[Request], threads: int) -> Iterator[Trace]:
    """``answer(request)`` for each request, as they finish. The first failure is raised, and nothing new is begun.

    The threads are daemons, unlike those of ``concurrent.futures``: Ctrl-C ends a command whose requests take an hour.
    """
    if threads < 1:
        raise ValueError(f"concurrency={threads}, expected 1 or more")
    waiting = deque(requests)  # made before the threads start: a tokenizer serves one thread at a time
    expected = len(waiting)
    finished: SimpleQueue[Trace | BaseException] = SimpleQueue()
    over = Event()

    def serve() -> None:
        while not over.is_set():
            try:
                request = waiting.popleft()
            except IndexError:
                return
            try:
                finished.put(answer(request))
            except BaseException as error:  # raised again in the caller's thread
                over.set()
                finished.put(error)

    for _ in range(min(threads, expected)):
        Thread(target=serve, daemon=True).start()
    try:
        for _ in range(expected):
            trace = finished.get()
            if isinstance(trace, BaseException):
                raise trace
            yield trace
    finally:
        over.set()


def _rendered(sampling: Sampling, as_ids: bool, samples: Sequence[Trace]) -> Iterator[Request]:
    if sampling.model_path is None:
        raise ValueError("model_path must be given: its tokenizer renders the prompts; or use endpoint=chat")
    tokenizer = load_tokenizer(sampling.model_path)
    for sample in samples:
        prompt = render(sample.problem, tokenizer, sampling.template)
        # Ids, because a server would put a second begin-of-text before the template's own.
        ids_or_text = tokenizer(prompt, add_special_tokens=False)["input_ids"] if as_ids else prompt
        yield sample, prompt, {"prompt": ids_or_text}


def _messages(samples: Sequence[Trace]) -> Iterator[Request]:
    return ((sample, "", {"messages": [user_message(sample.problem)]}) for sample in samples)


def _parameters(sampling: Sampling) -> dict[str, Any]:
    parameters: dict[str, Any] = {name: getattr(sampling, name) for name in ("temperature", "top_p", "max_tokens")}
    if sampling.repetition_penalty != 1:  # no field of OpenAI's; vLLM, SGLang and llama.cpp take it
        parameters["repetition_penalty"] = sampling.repetition_penalty
    return {**parameters, "stop": list(sampling.stop)} if sampling.stop else parameters


def _answer(server: Server, fields: Mapping[str, Any], request: Request) -> Trace:
    sample, prompt, content = request
    path = "chat/completions" if "messages" in content else "completions"
    reply = server.post(path, {**fields, **content, "seed": sample.meta["seed"]})
    try:
        [choice], tokens = reply["choices"], int(reply["usage"]["completion_tokens"])
        finish = FINISHES[choice["finish_reason"]]
        text = _whole_response(choice["message"], finish) if "messages" in content else choice["text"]
    except (KeyError, TypeError, ValueError) as error:
        raise ServerError(
            f"{server.url} gave a reply that is not one choice with its text, its finish_reason "
            f"({', '.join(FINISHES)}) and usage.completion_tokens ({error!r}): {reply!r:.300}"
        ) from error
    return answered(sample, text, finish, tokens, prompt)


def _whole_response(message: Mapping[str, Any], finish: str) -> str:
    """The thought and the answer in one text, also where the server's parser has separated them."""
    thought = message.get("reasoning_content") or message.get("reasoning")
    content = message.get("content") or ""
    if not thought:
        return content
    return f"<think>{thought}</think>{content}" if content or finish == "stop" else f"<think>{thought}"

"""Sampling from a server that speaks OpenAI's protocol: one request a sample, several at once.

``completions`` sends the prompt as segrl renders it. ``chat`` is for servers without completions: the template is then
the server's own, and no prompt hash travels with the traces.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from segrl.generation.http import Server, ServerError
from segrl.generation.parallel import in_parallel
from segrl.generation.sampling import Sampling, answered
from segrl.loading import load_tokenizer
from segrl.text.prompting import render, user_message
from segrl.types import Trace

ENDPOINTS = ("completions", "chat")
PROMPTS = ("ids", "text")
FINISHES = {"stop": "stop", "length": "length", "eos_token": "stop", "stop_sequence": "stop", "content_filter": "stop"}


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
    """Each sample is a request with its own seed; the server's prefix cache shares the prompt."""
    for name, value, known in (("endpoint", endpoint, ENDPOINTS), ("prompt", prompt, PROMPTS)):
        if value not in known:
            raise ValueError(f"generation.openai.{name}={value!r}, expected one of {', '.join(known)}")
    model = model or sampling.model_path
    if server is None or model is None:
        raise ValueError("backend=openai needs server=http://host:port/v1 and model_path=, the model that it serves")
    there = Server(server, os.environ.get(key_variable), retries, backoff, timeout)
    there.check(model)
    common = {"model": model, **_parameters(sampling), **extra}
    prompts = _messages if endpoint == "chat" else partial(_rendered, sampling, prompt == "ids")
    requests = prompts([trace for group in groups for trace in group])
    yield from in_parallel(partial(_answer, there, common), requests, concurrency)


# What is sent for each sample, made before the threads start: a tokenizer serves one thread at a time.
Request = tuple[Trace, str, dict[str, Any]]


def _rendered(sampling: Sampling, as_ids: bool, asked: Sequence[Trace]) -> Iterator[Request]:
    if sampling.model_path is None:
        raise ValueError("model_path must be given: its tokenizer renders the prompts; or use endpoint=chat")
    tokenizer = load_tokenizer(sampling.model_path)
    for trace in asked:
        prompt = render(trace.problem, tokenizer, sampling.template)
        # Ids, because a server would put a second begin-of-text before the template's own.
        ids_or_text = tokenizer(prompt, add_special_tokens=False)["input_ids"] if as_ids else prompt
        yield trace, prompt, {"prompt": ids_or_text}


def _messages(asked: Sequence[Trace]) -> Iterator[Request]:
    return ((trace, "", {"messages": [user_message(trace.problem)]}) for trace in asked)


def _answer(there: Server, common: Mapping[str, Any], request: Request) -> Trace:
    asked, prompt, own = request
    what = "chat/completions" if "messages" in own else "completions"
    reply = there.ask(what, {**common, **own, "seed": asked.meta["seed"]})
    try:
        [choice], tokens = reply["choices"], int(reply["usage"]["completion_tokens"])
        finish = FINISHES[choice["finish_reason"]]
        text = _spoken(choice["message"], finish) if "messages" in own else choice["text"]
    except (KeyError, TypeError, ValueError) as error:
        raise ServerError(
            f"{there.url} answered with something else than one choice with its text, its finish_reason "
            f"({', '.join(FINISHES)}) and usage.completion_tokens ({error!r}): {reply!r:.300}"
        ) from error
    return answered(asked, text, finish, tokens, prompt)


def _spoken(message: Mapping[str, Any], finish: str) -> str:
    """The whole response, also where the server's parser has taken the thought out of it."""
    thought = message.get("reasoning_content") or message.get("reasoning")
    said = message.get("content") or ""
    if not thought:
        return said
    return f"<think>{thought}</think>{said}" if said or finish == "stop" else f"<think>{thought}"


def _parameters(sampling: Sampling) -> dict[str, Any]:
    named = {"temperature": sampling.temperature, "top_p": sampling.top_p, "max_tokens": sampling.max_tokens}
    return {**named, "stop": list(sampling.stop)} if sampling.stop else named

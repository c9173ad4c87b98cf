"""Sampling with plain transformers: the default, which needs no server and no vLLM."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch

from segrl.generation.sampling import Sampling, answered
from segrl.loading import load_model, position_limit
from segrl.text.ending import end_tokens, finish_of
from segrl.text.prompting import render
from segrl.types import Trace, given


def generate(groups: Iterable[Sequence[Trace]], sampling: Sampling, *, dtype: str, device: str) -> Iterator[Trace]:
    """The traces, one batch for each group, seeded by its first sample: a resumed run draws the same as a whole run."""
    model, tokenizer = load_model(given(sampling.model_path), dtype, device)
    for group in groups:
        yield from sample(
            model,
            tokenizer,
            group,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            repetition_penalty=sampling.repetition_penalty,
            max_tokens=sampling.max_tokens,
            stop=sampling.stop,
            seed=group[0].meta["seed"],
            template=sampling.template,
        )


def sample(
    model,
    tokenizer,
    problems: Sequence[Trace],
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    repetition_penalty: float = 1.0,
    max_tokens: int = 256,
    stop: Sequence[str] = (),
    seed: int = 0,
    template: str = "chat",
) -> list[Trace]:
    """One response to each problem, all in one batch; ``temperature=0`` is greedy.

    ``meta["finish"]`` says ``stop`` or ``length``, ``meta["tokens"]`` how many tokens were sampled.
    """
    prompts = [render(problem.problem, tokenizer, template) for problem in problems]
    encoded = [tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in prompts]
    torch.manual_seed(seed)
    drawn = draw(
        model,
        tokenizer,
        encoded,
        temperature=temperature,
        top_p=top_p,
        repetition_penalty=repetition_penalty,
        max_tokens=max_tokens,
        stop=stop,
    )
    ends = end_tokens(tokenizer, model.generation_config)
    rows = zip(problems, prompts, drawn, strict=True)
    return [answered(problem, *_response(ids, tokenizer, ends, stop), prompt) for problem, prompt, ids in rows]


@torch.no_grad()
def draw(
    model,
    tokenizer,
    rows: Sequence[Sequence[int]],
    *,
    temperature: float,
    max_tokens: int,
    top_p: float = 1.0,
    repetition_penalty: float = 1.0,
    stop: Sequence[str] = (),
) -> list[list[int]]:
    """The tokens drawn behind each row of ids, all in one batch, each with the token that ended it. A row ends where
    the model has no position left."""
    room = _room(model, rows, max_tokens)
    padding, ends = _padding(tokenizer), end_tokens(tokenizer, model.generation_config)
    width = max(map(len, rows))
    ids_BL = torch.tensor([[padding] * (width - len(ids)) + list(ids) for ids in rows], device=model.device)
    real_BL = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in rows], device=model.device)
    greedy = temperature == 0
    drawing = {} if greedy else {"temperature": temperature, "top_p": top_p, "top_k": 0}
    stopping = {"stop_strings": list(stop), "tokenizer": tokenizer} if stop else {}
    with _without_generation_config(model):
        output = model.generate(
            input_ids=ids_BL,
            attention_mask=real_BL,
            do_sample=not greedy,
            repetition_penalty=repetition_penalty,
            max_new_tokens=max(room),
            pad_token_id=padding,
            eos_token_id=sorted(ends),
            **drawing,
            **stopping,
        )
    drawn = zip(output[:, width:].tolist(), room, strict=True)
    return [ids[: min(1 + _first_end(ids, ends), most)] for ids, most in drawn]


def _room(model, rows: Sequence[Sequence[int]], max_tokens: int) -> list[int]:
    """How many tokens may be drawn behind each row."""
    limit = position_limit(model.config)
    if limit is None:
        return [max_tokens] * len(rows)
    longest = max(map(len, rows))
    if longest >= limit:
        raise ValueError(f"a prompt has {longest} tokens, the model takes {limit}; leave it out, or shorten it")
    return [min(max_tokens, limit - len(ids)) for ids in rows]


def _first_end(ids: Sequence[int], ends: Collection[int]) -> int:
    return next((k for k, id in enumerate(ids) if id in ends), len(ids))


def _response(ids: list[int], tokenizer, ends: Collection[int], stop: Sequence[str]) -> tuple[str, str, int]:
    """The text, how it finished, and how many tokens were sampled."""
    count = _first_end(ids, ends)
    text = _text(ids[:count], tokenizer)
    cut = min((text.index(end) for end in stop if end in text), default=None)
    if cut is None:
        return text, finish_of(ids, ends), len(ids)
    tokens = next(k for k in range(1, count + 1) if any(end in _text(ids[:k], tokenizer) for end in stop))
    return text[:cut], "stop", tokens


def _text(ids: list[int], tokenizer) -> str:
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


@contextmanager
def _without_generation_config(model) -> Iterator[None]:
    """A context without the model's ``generation_config.json``, which may set a repetition penalty or a top-k."""
    from transformers import GenerationConfig

    shipped, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = shipped


def _padding(tokenizer) -> int:
    """The token that pads shorter prompts on the left; it is masked, so any token would do."""
    if tokenizer.eos_token_id is None:
        raise ValueError(f"the tokenizer {tokenizer.name_or_path!r} has no end-of-text token; no response would end")
    return tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id

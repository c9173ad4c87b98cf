"""Sampling with plain transformers: the embedded default, which needs no server and no vLLM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from segrl.prompting import render
from segrl.types import Trace


@torch.no_grad()
def sample(
    model,
    tokenizer,
    problems: Sequence[Trace],
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    max_tokens: int = 256,
    seed: int = 0,
    template: str = "chat",
) -> list[Trace]:
    """One response to each problem, all in one batch; ``temperature=0`` is greedy.

    ``meta["finish"]`` says ``stop`` or ``length``, ``meta["tokens"]`` how many tokens were sampled.
    """
    prompts = [render(problem.problem, tokenizer, template) for problem in problems]
    encoded = [tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in prompts]
    filler = _filler(tokenizer)
    width = max(map(len, encoded))
    ids_BL = torch.tensor([[filler] * (width - len(ids)) + ids for ids in encoded], device=model.device)
    real_BL = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in encoded], device=model.device)
    greedy = temperature == 0
    drawing = {} if greedy else {"temperature": temperature, "top_p": top_p, "top_k": 0}
    torch.manual_seed(seed)
    output = model.generate(
        input_ids=ids_BL,
        attention_mask=real_BL,
        do_sample=not greedy,
        max_new_tokens=max_tokens,
        pad_token_id=filler,
        eos_token_id=tokenizer.eos_token_id,
        **drawing,
    )
    new_ids = output[:, width:].tolist()
    return [_respond(problem, ids, tokenizer) for problem, ids in zip(problems, new_ids, strict=True)]


def _respond(problem: Trace, ids: list[int], tokenizer) -> Trace:
    stopped = tokenizer.eos_token_id in ids
    ids = ids[: ids.index(tokenizer.eos_token_id)] if stopped else ids
    response = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    meta = {**problem.meta, "finish": "stop" if stopped else "length", "tokens": len(ids) + stopped}
    return replace(problem, response=response, meta=meta)


def _filler(tokenizer) -> int:
    """What stands before shorter prompts, unseen: any token would do."""
    if tokenizer.eos_token_id is None:
        raise ValueError(f"the tokenizer {tokenizer.name_or_path!r} has no end-of-text token; no response would end")
    return tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id

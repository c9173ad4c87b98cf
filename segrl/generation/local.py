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
    padded = {"padding": True, "padding_side": "left", "return_tensors": "pt"}
    inputs = tokenizer(prompts, add_special_tokens=False, **padded).to(model.device)
    greedy = temperature == 0
    drawing = {} if greedy else {"temperature": temperature, "top_p": top_p, "top_k": 0}
    torch.manual_seed(seed)
    output = model.generate(
        **{name: inputs[name] for name in ("input_ids", "attention_mask")},
        do_sample=not greedy,
        max_new_tokens=max_tokens,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **drawing,
    )
    new_ids = output[:, inputs["input_ids"].shape[1] :].tolist()
    return [_respond(problem, ids, tokenizer) for problem, ids in zip(problems, new_ids, strict=True)]


def _respond(problem: Trace, ids: list[int], tokenizer) -> Trace:
    stopped = tokenizer.eos_token_id in ids
    ids = ids[: ids.index(tokenizer.eos_token_id)] if stopped else ids
    response = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    meta = {**problem.meta, "finish": "stop" if stopped else "length", "tokens": len(ids) + stopped}
    return replace(problem, response=response, meta=meta)

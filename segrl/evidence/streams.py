"""How likely the model finds each token, and how sure it was: of a response, and of one with a segment taken out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from segrl.attribution.evaluator import unwrapped
from segrl.types import Segments, Trace

LOGITS = 2**26  # held at once, in float32: 256 MiB


def likelihoods(model, traces: Sequence[Trace], tokenizer=None, segments=None) -> list[dict[str, Any]]:
    """Log-probability and entropy of each token, from one forward."""
    found = [token_streams(model, trace) for trace in traces]
    cost = {"logp_T": 1.0, "entropy_T": 1.0}
    return [{"logp_T": logp_T, "entropy_T": entropy_T, "cost": cost} for logp_T, entropy_T in found]


def perplexities(model, traces: Sequence[Trace], tokenizer, segments: Sequence[Segments]) -> list[dict[str, Any]]:
    """The response's perplexity without each of its thoughts, one forward each."""
    return [_perplexities(model, trace, own) for trace, own in zip(traces, segments, strict=True)]


def _perplexities(model, trace: Trace, segments: Segments) -> dict[str, Any]:
    whole = torch.exp(-token_streams(model, trace)[0].double().mean())
    values, read = [], len(trace.prompt_ids) + trace.tokens
    for s, thought in enumerate(segments.thought_S.tolist()):
        rest = trace.response_ids[segments.index_T != s]
        if thought and len(rest):
            values.append(torch.exp(-_streams(model, trace.prompt_ids, rest)[0].double().mean()))
            read += len(trace.prompt_ids) + len(rest)
        else:  # what is never taken out, or leaves nothing to read, changes nothing
            values.append(whole)
    cost = read / (len(trace.prompt_ids) + trace.tokens)
    return {"perplexity_S": torch.stack(values), "cost": {"perplexity_S": cost}}


def token_streams(model, trace: Trace) -> tuple[Tensor, Tensor]:
    """The log-probability of each response token and the entropy of the distribution it was drawn from."""
    if not len(trace.prompt_ids):
        raise ValueError(f"trace {trace.id!r} renders to an empty prompt, so nothing predicts its first token")
    return _streams(model, trace.prompt_ids, trace.response_ids)


@torch.no_grad()
def _streams(model, prompt_ids: Tensor, response_ids: Tensor) -> tuple[Tensor, Tensor]:
    """In pieces, each reading the cache of those before it, so that no more than ``LOGITS`` logits are held."""
    device = next(model.parameters()).device
    ids_L = torch.cat([prompt_ids, response_ids]).to(device)
    pieces = ids_L[:-1].split(max(1, LOGITS // unwrapped(model).config.get_text_config().vocab_size))
    logp, entropy, cache, at = [], [], None, 1
    for piece in pieces:
        output = model(input_ids=piece[None], past_key_values=cache, use_cache=len(pieces) > 1)
        cache = output.past_key_values
        logp_TV = torch.log_softmax(output.logits[0].float(), -1)
        logp.append(logp_TV.gather(-1, ids_L[at : at + len(piece), None]).squeeze(-1).cpu())
        entropy.append(torch.special.entr(logp_TV.exp()).sum(-1).cpu())
        at += len(piece)
    tokens = len(response_ids)
    return torch.cat(logp)[-tokens:], torch.cat(entropy)[-tokens:]

"""One number a token from the model's forward: its log-probability, the entropy before it, the attention to it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from segrl.attribution.evaluator import left_padded, padded_inputs, unwrapped
from segrl.attribution.path import evaluating
from segrl.attribution.target import Explained
from segrl.importance.reading import Reading, attending, read_on
from segrl.types import Segments, TokenisedTrace

LOGITS = 2**26  # held at once, in float32: 256 MiB


def likelihoods(model, traces: Sequence[TokenisedTrace], tokenizer, segments, reading: Reading) -> list[dict[str, Any]]:
    """Log-probability and entropy of each token, from one forward."""
    streams = [token_streams(model, trace) for trace in traces]
    cost = {"logp_T": 1.0, "entropy_T": 1.0}
    return [{"logp_T": logp_T, "entropy_T": entropy_T, "cost": cost} for logp_T, entropy_T in streams]


def perplexities(
    model, traces: Sequence[TokenisedTrace], tokenizer, segments: Sequence[Segments], reading: Reading
) -> list[dict[str, Any]]:
    """The response's perplexity without each of its thoughts, one forward each."""
    return [_perplexities(model, trace, trace_segments) for trace, trace_segments in zip(traces, segments, strict=True)]


def _perplexities(model, trace: TokenisedTrace, segments: Segments) -> dict[str, Any]:
    """The perplexity fields of one trace, and their cost in forwards over it."""
    whole = torch.exp(-token_streams(model, trace)[0].double().mean())
    values, read = [], len(trace.prompt_ids) + trace.tokens
    for s, thought in enumerate(segments.thought_S.tolist()):
        rest = trace.response_ids[segments.index_T != s]
        if thought and len(rest):
            values.append(torch.exp(-_streams(model, trace.prompt_ids, rest)[0].double().mean()))
            read += len(trace.prompt_ids) + len(rest)
        else:  # the answer is never taken out, and without its only segment a response would be empty
            values.append(whole)
    cost = read / (len(trace.prompt_ids) + trace.tokens)
    return {"perplexity_S": torch.stack(values), "cost": {"perplexity_S": cost}}


def supports(
    model, traces: Sequence[TokenisedTrace], tokenizer, segments: Sequence[Segments], reading: Reading
) -> list[dict[str, Any]]:
    """What all that follows each segment loses without it, one forward each."""
    return [_supports(model, trace, trace_segments) for trace, trace_segments in zip(traces, segments, strict=True)]


def _supports(model, trace: TokenisedTrace, segments: Segments) -> dict[str, Any]:
    rests = without_each(trace.response_ids, segments.boundaries)
    logps = [_streams(model, trace.prompt_ids, rest)[0] for rest in rests]
    read = sum(len(trace.prompt_ids) + len(rest) for rest in rests)
    cost = read / (len(trace.prompt_ids) + trace.tokens)
    return {"support_S": losses(logps, segments.boundaries), "cost": {"support_S": cost}}


def without_each(response_ids: Tensor, boundaries: Sequence[int]) -> list[Tensor]:
    """The response, then the response without each segment that something follows."""
    inner = list(pairwise(boundaries))[:-1]
    return [response_ids, *(torch.cat([response_ids[:start], response_ids[end:]]) for start, end in inner)]


def losses(logps: Sequence[Tensor], boundaries: Sequence[int]) -> Tensor:
    """What the tokens after each segment lose without it, from the log-probabilities of ``without_each``'s tokens;
    nothing follows the last."""
    whole_T, *without = (logp_T.double() for logp_T in logps)
    inner = list(pairwise(boundaries))[:-1]
    lost = [whole_T[end:].sum() - rest_T[start:].sum() for rest_T, (start, end) in zip(without, inner, strict=True)]
    return torch.stack([*lost, whole_T.new_zeros(())])


@torch.no_grad()
def logps_of(model, rows: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """The log-probability of each response token after its prompt, from one forward; ``rows`` hold the tokens."""
    ids = [torch.cat(row) for row in rows]
    padded = left_padded(ids, 0, model.get_input_embeddings().weight.device)
    with evaluating(model):
        logits = model(**padded_inputs(model, *padded, keep=max(len(row[1]) for row in rows) + 1)).logits
    logps = []
    for (_, response_ids), logits_LV in zip(rows, logits, strict=True):
        predicting_TV = logits_LV[-1 - len(response_ids) : -1]
        logps.append(_of_logits(predicting_TV, response_ids.to(predicting_TV.device))[0].cpu())
    return logps


def token_streams(model, trace: TokenisedTrace) -> tuple[Tensor, Tensor]:
    """The log-probability of each response token and the entropy of the distribution it was drawn from."""
    if not len(trace.prompt_ids):
        raise ValueError(f"trace {trace.id!r} renders to an empty prompt, so nothing predicts its first token")
    return _streams(model, trace.prompt_ids, trace.response_ids)


@torch.no_grad()
def _streams(model, prompt_ids: Tensor, response_ids: Tensor) -> tuple[Tensor, Tensor]:
    """The log-probability and entropy of each response token, read in pieces of at most ``LOGITS`` logits."""
    ids_L = torch.cat([prompt_ids, response_ids]).to(next(model.parameters()).device)
    pieces = ids_L[:-1].split(max(1, LOGITS // unwrapped(model).config.get_text_config().vocab_size))
    streams, cache, at = [], None, 1
    for piece in pieces:
        output = model(input_ids=piece[None], past_key_values=cache, use_cache=len(pieces) > 1)
        cache = output.past_key_values
        streams.append(_of_logits(output.logits[0], ids_L[at : at + len(piece)]))
        at += len(piece)
        del output  # before the next piece's logits are made
    logp_L, entropy_L = (torch.cat(pieces_T).cpu() for pieces_T in zip(*streams, strict=True))
    return logp_L[-len(response_ids) :], entropy_L[-len(response_ids) :]


def _of_logits(logits_TV: Tensor, ids_T: Tensor) -> tuple[Tensor, Tensor]:
    """The log-probability of each token and the entropy, in parts of a quarter of ``LOGITS``: each is copied twice."""
    streams = []
    rows = max(1, LOGITS // 4 // logits_TV.shape[-1])
    for part_TV, part_T in zip(logits_TV.split(rows), ids_T.split(rows), strict=True):
        logp_TV = torch.log_softmax(part_TV.float(), -1)
        logp_T = logp_TV.gather(-1, part_T[:, None]).squeeze(-1)
        streams.append((logp_T, torch.special.entr(logp_TV.exp_()).sum(-1)))
    logp_T, entropy_T = (torch.cat(parts_T) for parts_T in zip(*streams, strict=True))
    return logp_T, entropy_T


# --- how much the answer attends to each token of the thinking -------------------------------------------------------


def attentions(model, traces: Sequence[TokenisedTrace], tokenizer, segments, reading: Reading) -> list[dict[str, Any]]:
    """The answer's attention to each token of the thinking."""
    explained = reading.explained(model, traces, tokenizer)
    return [
        {"attention_T": sequence.of_response(answer_attention(model, sequence)), "cost": {"attention_T": 1.0}}
        for sequence in explained
    ]


@torch.no_grad()
def answer_attention(model, sequence: Explained) -> Tensor:
    """The attention to each position from those that predict the answer's tokens, mean over them, layers and heads.

    Attention weights are computed for the predicting positions only; the model's fast attention reads all positions
    before them.
    """
    first, last = sequence.answer_span
    inner = unwrapped(model)
    ids_L = sequence.input_ids.to(inner.device)
    before, ids_A = ids_L[: first - 1], ids_L[first - 1 : last - 1]
    cache = read_on(inner, before)
    with attending(inner, "eager"):  # which returns its weights
        output = inner.base_model(input_ids=ids_A[None], past_key_values=cache, use_cache=True, output_attentions=True)
    layers = [layer.float().mean((0, 1, 2)).cpu() for layer in output.attentions if layer is not None]
    total_L = torch.zeros(len(sequence))
    for attention_L in layers:  # a layer with a sliding window has only the last positions
        total_L[last - 1 - len(attention_L) : last - 1] += attention_L / len(layers)
    return total_L

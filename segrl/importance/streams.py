"""One number a token from the model's forward: its log-probability, the entropy before it, the attention to it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from segrl.attribution.evaluator import check_length, computing_device, left_padded, padded_inputs, unwrapped
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
    """What the segments after each one lose without it, from at most ``forwards`` forwards and one over the whole."""
    pairs = zip(traces, segments, strict=True)
    return [_supports(model, trace, trace_segments, reading.forwards) for trace, trace_segments in pairs]


def _supports(model, trace: TokenisedTrace, segments: Segments, forwards: int) -> dict[str, Any]:
    check_length(model, trace.id, len(trace.prompt_ids) + trace.tokens)
    kept = kept_in_turn(segments.boundaries, forwards)
    logps = [_streams(model, trace.prompt_ids, trace.response_ids[kept_T])[0] for kept_T in kept]
    read = sum(len(trace.prompt_ids) + int(kept_T.sum()) for kept_T in kept)
    cost = read / (len(trace.prompt_ids) + trace.tokens)
    support_S = losses(logps, kept, segments.boundaries, trace.trainable_T)
    return {"support_S": support_S, "cost": {"support_S": cost}}


def kept_in_turn(boundaries: Sequence[int], forwards: int) -> list[Tensor]:
    """The tokens that stay: all of them, then all but those of every n-th segment, the first of which is each in turn;
    n is ``forwards``, or the number of segments but the last, which always stays."""
    last = len(boundaries) - 2
    index_T = torch.arange(last + 1).repeat_interleave(torch.tensor(boundaries).diff())
    turns = min(forwards, last)
    out = [(index_T % turns == turn) & (index_T < last) for turn in range(turns)]
    return [torch.ones_like(index_T, dtype=torch.bool), *(~out_T for out_T in out)]


def losses(logps: Sequence[Tensor], kept: Sequence[Tensor], boundaries: Sequence[int], written_T: Tensor) -> Tensor:
    """What the tokens after each segment lose without it, up to the next that is out as well; nothing follows the last.

    ``logps`` are the log-probabilities of the tokens that ``kept_in_turn`` keeps; those that the model wrote count.
    """
    (whole_T, *without), (_, *kept) = (logp_T.double() for logp_T in logps), kept
    support_S = whole_T.new_zeros(len(boundaries) - 1)
    for turn, (logp_T, kept_T) in enumerate(zip(without, kept, strict=True)):
        lost_T = torch.zeros_like(whole_T)
        lost_T[kept_T] = (whole_T[kept_T] - logp_T) * written_T[kept_T]
        starts = range(turn, len(support_S) - 1, len(kept))
        ends = [*(boundaries[s] for s in starts[1:]), boundaries[-1]]
        for s, end in zip(starts, ends, strict=True):
            support_S[s] = lost_T[boundaries[s + 1] : end].sum()
    return support_S


@torch.no_grad()
def logps_of(model, rows: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """The log-probability of each response token after its prompt, from one forward; ``rows`` hold the tokens."""
    ids = [torch.cat(row) for row in rows]
    padded = left_padded(ids, 0, computing_device(model))
    with evaluating(model):
        logits = model(**padded_inputs(model, *padded, keep=max(len(row[1]) for row in rows) + 1)).logits
    logps = []
    for (_, response_ids), logits_LV in zip(rows, logits, strict=True):
        parts = _in_parts(logits_LV[-1 - len(response_ids) : -1], response_ids.to(logits_LV.device))
        logps.append(torch.cat([logp_T for logp_T, _ in parts]).cpu())
    return logps


def token_streams(model, trace: TokenisedTrace) -> tuple[Tensor, Tensor]:
    """The log-probability of each response token and the entropy of the distribution it was drawn from."""
    if not len(trace.prompt_ids):
        raise ValueError(f"trace {trace.id!r} renders to an empty prompt, so nothing predicts its first token")
    check_length(model, trace.id, len(trace.prompt_ids) + trace.tokens)
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
    """The log-probability of each token and the entropy of the distribution it was drawn from."""
    parts = _in_parts(logits_TV, ids_T)
    streams = [(logp_T, torch.special.entr(logp_TV.exp_()).sum(-1)) for logp_T, logp_TV in parts]
    logp_T, entropy_T = (torch.cat(parts_T) for parts_T in zip(*streams, strict=True))
    return logp_T, entropy_T


def _in_parts(logits_TV: Tensor, ids_T: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The log-probability of each token, and of the whole vocabulary there, in parts of a quarter of ``LOGITS``: each
    is copied twice."""
    rows = max(1, LOGITS // 4 // logits_TV.shape[-1])
    for part_TV, part_T in zip(logits_TV.split(rows), ids_T.split(rows), strict=True):
        logp_TV = torch.log_softmax(part_TV.float(), -1)
        yield logp_TV.gather(-1, part_T[:, None]).squeeze(-1), logp_TV


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

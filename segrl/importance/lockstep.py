"""The streams that measures read of many rollouts, on one model, in a number of forwards that is known beforehand.

Every rank of a process group must run the same number of forwards, or FSDP's collectives wait for each other for ever.
So there is no refinement and no retry, and ranks agree on the number of parts before the first forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from segrl.attribution import attribute
from segrl.attribution.evaluator import Row
from segrl.attribution.target import answer_suffix, explain
from segrl.importance.discriminating import coefficients, vectors_of
from segrl.importance.keeping import in_one_forward, keeping
from segrl.importance.reader import Reader
from segrl.importance.streams import kept_in_turn, logps_of, losses
from segrl.types import Stream, TokenisedTrace, given

AT_THE_INPUT = ("gradient_T", "gradnorm_T")  # what the Reader gives, in its order
AFTER_PREFIXES = "prefix_logp_S"
SUPPORT = "support_S"
OF_SEGMENTS = (AFTER_PREFIXES, SUPPORT)
UNKNOWN = float("nan")
FILLER_ANSWER = "0"  # explained in rows that only fill up the ranks, whose scores are not read


@dataclass(frozen=True)
class Request:
    """What the driver asks of every rank."""

    # or contrast, with target=contrast; gradient_T and gradnorm_T, of gradient x embedding at the input itself;
    # prefix_logp_S, the answer's value after each prefix; support_S, what follows each segment loses without it; or
    # coefficient_T, which compares responses
    need: str = "ig"
    model: str = "live"  # or ref
    alphas: tuple[float, ...] = (0.5,)
    weights: tuple[float, ...] = (1.0,)
    target: str = "own"  # or gold, or contrast
    path: str = "embeddings"
    output: str = "logp"
    begin: float = 0.0
    interpolate: str | None = "response"
    forwards: int = 4  # of support_S
    logps_given: bool = False  # of support_S: those of the whole responses come with the rollouts, and are not read
    tokens: int = 16_384  # of one forward
    checkpointing: bool = False
    certificate: bool = False
    agree: bool = True  # whether the ranks agree on the number of parts

    @property
    def about(self) -> dict[str, Any]:
        """What of an :func:`explained` trace is attributed, and along which path: options of ``attribute``."""
        target = "contrast" if self.target == "contrast" else "gold"  # gold: the answer that stands in the trace
        path = {name: getattr(self, name) for name in ("path", "output", "begin", "interpolate")}
        return {"target": target, **path}


def explained(traces: Sequence[TokenisedTrace], target: str, golds: Sequence[str], tokenizer) -> list[TokenisedTrace]:
    """The traces, each with the answer to explain: the response's own, or the gold one; both in a contrast."""
    if target == "own":
        return [replace(trace, answer=trace.answer or FILLER_ANSWER) for trace in traces]
    pairs = [(trace, gold if gold.strip() else FILLER_ANSWER) for trace, gold in zip(traces, golds, strict=True)]
    if target == "contrast":
        return [_contrasted(trace, gold, tokenizer) for trace, gold in pairs]
    return [replace(trace, answer=gold) for trace, gold in pairs]


def _contrasted(trace: TokenisedTrace, gold: str, tokenizer) -> TokenisedTrace:
    """The trace with both answers. Where they part at no token, the gold one is explained, as for a right response."""
    own_answer = trace.answer or FILLER_ANSWER
    ids = [answer_suffix(answer, tokenizer)[0].tolist() for answer in (own_answer, gold)]
    parted = any(id != gold_id for id, gold_id in zip(*ids, strict=False))
    return replace(trace, answer=gold, meta={**trace.meta, "own_answer": own_answer if parted else gold})


def attribute_in_lockstep(
    model,
    traces: Sequence[TokenisedTrace],
    tokenizer,
    request: Request,
    boundaries: Sequence[Sequence[int]] | None = None,
    logps: Sequence[Tensor] | None = None,
) -> list[Stream]:
    """One stream a trace; its scores are NaN where the model's were not finite. ``boundaries``: those of each trace's
    segments, for a need of segments. ``logps``: those of each response, where they are given."""
    if request.need == AFTER_PREFIXES:
        return _after_prefixes(model, traces, tokenizer, request, given(boundaries))
    if request.need == SUPPORT:
        return _supports(model, traces, request, given(boundaries), logps)
    streams: list[Any] = [None] * len(traces)
    read = _at_the_input if request.need in AT_THE_INPUT else _along_the_path
    for part in parts(traces, request.tokens, request.agree):
        for i, stream in zip(part, read(model, [traces[i] for i in part], tokenizer, request), strict=True):
            streams[i] = stream
    return streams


def _along_the_path(model, traces: list[TokenisedTrace], tokenizer, request: Request) -> list[Stream]:
    nodes = tuple(torch.tensor(values, dtype=torch.float64) for values in (request.alphas, request.weights))
    attributions = attribute(
        model,
        traces,
        tokenizer,
        quadrature=nodes,
        certificate=request.certificate,
        tolerance=None,
        batch_rows=len(traces),
        checkpointing=request.checkpointing,
        finite=False,  # an overflow in one trace must neither end the run nor cost the others their scores
        **request.about,
    )
    return [
        Stream(a.scores_T + (UNKNOWN if "not_finite" in a.flags else 0.0), a.gap, a.copy_share, a.path)
        for a in attributions
    ]


def _at_the_input(model, traces: list[TokenisedTrace], tokenizer, request: Request) -> list[Stream]:
    """Gradient x embedding of each token of the thinking: its sum, or its norm."""
    sequences = [explain(trace, tokenizer, target=request.about["target"]) for trace in traces]
    rows = [Row(index, 1.0, 1.0) for index in range(len(sequences))]
    _, products = Reader(model, sequences)(rows, request.checkpointing)
    column = AT_THE_INPUT.index(request.need)
    pairs = zip(sequences, products, strict=True)
    return [Stream(sequence.of_response(products_L2[:, column])) for sequence, products_L2 in pairs]


def _after_prefixes(
    model, traces: Sequence[TokenisedTrace], tokenizer, request: Request, boundaries: Sequence[Sequence[int]]
) -> list[Stream]:
    """The answer's value after an empty thinking and after each segment, from one forward a trace."""
    streams = []
    for trace, ends in zip(traces, boundaries, strict=True):
        sequence = explain(trace, tokenizer, target=request.about["target"])
        thinking = sequence.thinking_tokens
        inside = [min(int(end), thinking) for end in ends]
        distinct = sorted({*inside, thinking})  # the whole thinking is read, in rows that only fill up the ranks too
        kept = [keeping(sequence, torch.arange(thinking) < end) for end in distinct]
        values = dict(zip(distinct, in_one_forward(model, kept, request.output).tolist(), strict=True))
        streams.append(Stream(torch.tensor([values[end] for end in inside])))
    return streams


def _supports(
    model,
    traces: Sequence[TokenisedTrace],
    request: Request,
    boundaries: Sequence[Sequence[int]],
    logps: Sequence[Tensor] | None,
) -> list[Stream]:
    """What follows each segment loses without it, after a zero for the first boundary."""
    cuts = [[int(end) for end in ends] for ends in boundaries]
    # A row that only fills up the ranks has no segment, and is read once as one.
    cuts = [ends if len(ends) > 1 else [0, trace.tokens] for trace, ends in zip(traces, cuts, strict=True)]
    kept = [kept_in_turn(ends, request.forwards) for ends in cuts]
    known = [[] if logps is None or len(of_trace) == 1 else [logps[t]] for t, of_trace in enumerate(kept)]
    unread = [of_trace[len(whole) :] for of_trace, whole in zip(kept, known, strict=True)]
    pairs = zip(traces, unread, strict=True)
    rows = [(trace.prompt_ids, trace.response_ids[kept_T]) for trace, of_trace in pairs for kept_T in of_trace]
    read: list[Any] = [None] * len(rows)
    for part in agreed([len(prompt) + len(rest) for prompt, rest in rows], request.tokens, request.agree):
        for i, logp_T in zip(part, logps_of(model, [rows[i] for i in part]), strict=True):
            read[i] = logp_T
    remaining = iter(read)
    supports = [
        losses([*whole, *islice(remaining, len(of_trace) - len(whole))], of_trace, ends, trace.trainable_T)
        for trace, whole, of_trace, ends in zip(traces, known, kept, cuts, strict=True)
    ]
    return [Stream(torch.cat([torch.zeros(1), support_S.float()])) for support_S in supports]


def compare_in_lockstep(
    model,
    traces: Sequence[TokenisedTrace],
    logps: Sequence[Tensor],
    advantages: Sequence[float],
    request: Request,
) -> list[Stream]:
    """One stream of DelTA's coefficients a trace, computed over the traces of all ranks.

    ``logps``: the log-probabilities of each response's tokens. Tokens that are not trained take no part, nor does a
    trace whose vectors are not finite: its scores are NaN.
    """
    vectors: list[Any] = [None] * len(traces)
    for part in parts(traces, request.tokens, request.agree):
        read = vectors_of(model, [traces[i] for i in part], [logps[i] for i in part])
        for i, vectors_TD in zip(part, read, strict=True):
            vectors[i] = vectors_TD
    advantages_T = [trace.trainable_T * advantage for trace, advantage in zip(traces, advantages, strict=True)]
    broken = [i for i, vectors_TD in enumerate(vectors) if not bool(torch.isfinite(vectors_TD).all())]
    for i in broken:
        vectors[i], advantages_T[i] = torch.zeros_like(vectors[i]), torch.zeros_like(advantages_T[i])
    compared = coefficients(vectors, advantages_T, over_ranks if request.agree else torch.clone)
    return [Stream(scores_T.float() + (UNKNOWN if i in broken else 0.0)) for i, scores_T in enumerate(compared)]


# --- how rollouts are put together -----------------------------------------------------------------------------------


def parts(traces: Sequence[TokenisedTrace], tokens: int, agree: bool) -> list[list[int]]:
    """Indices of the rollouts that share each forward. With ``agree`` every rank has the same number of parts."""
    return agreed([len(trace.prompt_ids) + trace.tokens for trace in traces], tokens, agree)


def agreed(lengths: Sequence[int], tokens: int, agree: bool) -> list[list[int]]:
    """Indices of the rows that share each forward. A rank with fewer rows than another has forwards reads its first row
    again."""
    groups = together(lengths, tokens)
    count = _most_on_any_rank(len(groups)) if agree else len(groups)
    again = [[0]] * max(count - len(lengths), 0)
    return split_until(groups, count - len(again)) + again


def together(lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """Indices in parts, longest first. A part padded to its longest holds at most ``tokens``, or is one rollout."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    groups: list[list[int]] = []
    while order:
        fit = max(1, tokens // lengths[order[0]])
        groups.append(order[:fit])
        order = order[fit:]
    return groups


def split_until(groups: list[list[int]], count: int) -> list[list[int]]:
    """The groups, with the largest halved repeatedly until there are ``count``."""
    groups = list(groups)
    while len(groups) < count:
        largest = max(range(len(groups)), key=lambda g: len(groups[g]))
        group = groups.pop(largest)
        assert len(group) > 1, f"{count} parts asked of fewer rollouts"
        groups += [group[: len(group) // 2], group[len(group) // 2 :]]
    return groups


def _most_on_any_rank(count: int) -> int:
    if not _in_group():
        return count
    most = torch.tensor([count])
    torch.distributed.all_reduce(most, op=torch.distributed.ReduceOp.MAX)
    return int(most)


def over_ranks(values: Tensor) -> Tensor:
    """The sum of a tensor over the ranks; the tensor itself without a process group."""
    if _in_group():
        torch.distributed.all_reduce(values)
    return values


def _in_group() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()

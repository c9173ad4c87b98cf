"""(model, traces, needs) -> evidence: everything measures read, computed once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from segrl.attribution import attribute
from segrl.types import Evidence, Trace

NEEDS = ("ig", "logp", "entropy")


def gather(model, traces: Sequence[Trace], tokenizer=None, needs: Sequence[str] = ("ig",), **options) -> list[Evidence]:
    """What ``needs`` asks for, of each trace; ``options`` go to :func:`segrl.attribute`."""
    for need in needs:
        if need not in NEEDS:
            raise ValueError(f"needs={need!r}, expected some of {NEEDS}")
    igs = attribute(model, traces, tokenizer, **options) if "ig" in needs else [None] * len(traces)
    streams = [token_streams(model, trace) if {"logp", "entropy"} & set(needs) else (None, None) for trace in traces]
    return [
        Evidence(trace, ig, logp_T if "logp" in needs else None, entropy_T if "entropy" in needs else None)
        for trace, ig, (logp_T, entropy_T) in zip(traces, igs, streams, strict=True)
    ]


@torch.no_grad()
def token_streams(model, trace: Trace) -> tuple[Tensor, Tensor]:
    """The log-probability of each response token and the entropy of the distribution it was drawn from."""
    assert trace.prompt_ids is not None
    assert trace.response_ids is not None
    device = next(model.parameters()).device
    ids = torch.cat([trace.prompt_ids, trace.response_ids])[None].to(device)
    logits = model(input_ids=ids, use_cache=False).logits[0, -trace.tokens - 1 : -1].float()
    logp_TV = torch.log_softmax(logits, -1)
    entropy_T = -(logp_TV.exp() * logp_TV).sum(-1)
    return logp_TV.gather(-1, ids[0, -trace.tokens :, None]).squeeze(-1).cpu(), entropy_T.cpu()

"""The options of the gatherers: what is explained of a trace, how much one forward holds, how answers are drawn."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor

from segrl.attribution.evaluator import OUTPUTS, Batching, evaluator
from segrl.attribution.target import TEMPLATE, Explained
from segrl.types import TokenisedTrace


@dataclass(frozen=True)
class EvidenceSettings:
    """How parts of the thinking are read for a measure: the section ``evidence``."""

    # of pmi, confidence_gain_cheap: read a trace once, not each prefix (long traces: many times as fast)
    shared_prefixes: bool = False
    output: str = "logp"  # what pmi and others without a path read of the answer: logp or log_odds
    subset_output: str = "log_odds"  # the same of alone, first_and_last and shapley
    # of shapley: subsets of the thoughts that are read, exact where these are all; of support: in how many forwards the
    # segments are taken out, one in each where these suffice, else every n-th together
    forwards: int = 64
    samples: int = 32  # only for measure=confidence_gain: answers forced after each prefix of the thinking
    continuations: int = 8  # only for measure=continuation_gain: samples of the response from each prefix on
    continued_tokens: int = 256  # tokens of such a sample at most
    temperature: float = 0.6  # of forced answers and of continuations
    answer_tokens: int = 32  # tokens of a forced answer; one that is not closed by then is wrong
    seed: int = 0  # of all that is drawn


@dataclass(frozen=True)
class Reading(EvidenceSettings):
    """The options of all gatherers but integrated gradients, whose options are those of :func:`segrl.attribute`."""

    target: str = "gold"
    template: str = TEMPLATE
    context: str = "think"
    batch_tokens: int | None = None
    batch_rows: int | None = None  # rows a forward, whatever their lengths: a process group needs a fixed number
    checkpointing: bool | None = None

    def __post_init__(self) -> None:
        for name in ("output", "subset_output"):
            if getattr(self, name) not in OUTPUTS:
                raise ValueError(f"{name}={getattr(self, name)!r}, expected one of {OUTPUTS}")
        if self.forwards < 2:
            raise ValueError(f"forwards={self.forwards}, expected 2 or more")
        for name in ("continuations", "continued_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}, expected 1 or more")
        if self.samples < 1 or self.temperature <= 0 or self.answer_tokens < 1:
            raise ValueError(
                f"samples={self.samples}, temperature={self.temperature}, answer_tokens={self.answer_tokens}: expected "
                "one or more samples and tokens, and a temperature above 0"
            )

    @property
    def batching(self) -> Batching:
        return Batching(self.batch_tokens, self.batch_rows, self.checkpointing)

    def explained(self, model, traces: Sequence[TokenisedTrace], tokenizer) -> list[Explained]:
        """The sequence that is explained of each trace, checked. No position moves, so the baseline has no effect."""
        options = {name: getattr(self, name) for name in ("target", "output", "template", "context")}
        return evaluator(model, traces, tokenizer, baseline="mean", **options).explained


def seed_of(seed: int, id: str) -> int:
    """The seed of what is drawn for a trace: the same in every process, another for every trace."""
    return zlib.crc32(f"{seed} {id}".encode("utf-8", "surrogatepass"))


def read_on(model, ids_L: Tensor, cache=None):
    """The cache with the keys and values of these tokens added; no logits are computed."""
    if not len(ids_L):
        return cache
    ids_BL = ids_L[None].to(model.device)
    return model.base_model(input_ids=ids_BL, past_key_values=cache, use_cache=True).past_key_values


@contextmanager
def attending(model, implementation: str) -> Iterator[None]:
    """A context of another attention implementation; restored at its end."""
    before = model.config._attn_implementation
    model.set_attn_implementation(implementation)
    try:
        yield
    finally:
        model.set_attn_implementation(before)

"""The options of the gatherers: what is explained of a trace, how much one forward holds, how answers are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from segrl.attribution.evaluator import OUTPUTS, Batching, evaluator
from segrl.attribution.target import TEMPLATE, Explained
from segrl.types import TokenisedTrace


@dataclass(frozen=True)
class EvidenceSettings:
    """The section ``evidence`` of a command's config: how prefixes and subsets of the thoughts are read, and how
    confidence is sampled, which only confidence_gain asks for.
    """

    # pmi, confidence_gain_cheap: read a trace once, not each prefix (long traces: many times as fast)
    shared_prefixes: bool = False
    # or logp: what alone, first_and_last and shapley read of the answer; all other measures read attribution.output
    subset_output: str = "log_odds"
    forwards: int = 64  # of shapley alone: subsets of the thoughts that are read; exact where that is all of them
    samples: int = 32  # of confidence_gain alone: answers forced after each prefix of the thinking
    temperature: float = 0.6
    answer_tokens: int = 32  # an answer not closed by then is wrong
    seed: int = 0


@dataclass(frozen=True)
class Reading(EvidenceSettings):
    """The options of all gatherers but integrated gradients, whose options are those of :func:`segrl.attribute`."""

    target: str = "gold"
    output: str = "logp"
    template: str = TEMPLATE
    context: str = "think"
    batch_tokens: int | None = None
    batch_rows: int | None = None  # rows a forward, whatever their lengths: a process group needs a fixed number
    checkpointing: bool | None = None

    def __post_init__(self) -> None:
        if self.subset_output not in OUTPUTS:
            raise ValueError(f"subset_output={self.subset_output!r}, expected one of {OUTPUTS}")
        if self.samples < 1 or self.temperature <= 0 or self.answer_tokens < 1:
            raise ValueError(
                f"samples={self.samples}, temperature={self.temperature}, answer_tokens={self.answer_tokens}: expected "
                "one or more samples and tokens, and a temperature above 0"
            )

    @property
    def batching(self) -> Batching:
        return Batching(self.batch_tokens, self.batch_rows, self.checkpointing)

    def explained(self, model, traces: Sequence[TokenisedTrace], tokenizer) -> list[Explained]:
        """The sequence that is explained of each trace, checked. No position moves, so any baseline does."""
        options = {name: getattr(self, name) for name in ("target", "output", "template", "context")}
        return evaluator(model, traces, tokenizer, baseline="mean", **options).explained


def read_on(model, ids_L: Tensor, cache=None):
    """The cache with the keys and values of these tokens added; no logits are computed."""
    if not len(ids_L):
        return cache
    ids_BL = ids_L[None].to(model.device)
    return model.base_model(input_ids=ids_BL, past_key_values=cache, use_cache=True).past_key_values

"""Frozen attributors: Ray actors with a model that never changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from segrl.attribution.cluster import ModelPool
from segrl.attribution.lockstep import Request, attribute_in_lockstep, split_until, together
from segrl.credit.checks import check_vocabulary
from segrl.credit.settings import CreditSettings
from segrl.loading import load_tokenizer
from segrl.types import Stream, TokenisedTrace, given


class FrozenAttributors:
    """``attributor_workers`` actors, each on ``attributor_gpus``; on the CPU on one core each."""

    def __init__(self, settings: CreditSettings, tokenizer, on_cpu: bool) -> None:
        path = given(settings.attributor_path)
        check_vocabulary(tokenizer, load_tokenizer(path), path)
        dtype, device = ("float32", "cpu") if on_cpu else (settings.attributor_dtype, "auto")
        # An attribution changes nothing: where the process dies, a new process gets the same call again, once.
        self.pool = ModelPool(
            {"path": path, "dtype": dtype, "device": device},
            settings.attributor_workers,
            num_cpus=1,
            num_gpus=0 if on_cpu else settings.attributor_gpus,
            max_restarts=1,
            max_task_retries=1,
        )

    def attribute(self, traces: Sequence[TokenisedTrace], request: Request) -> list[Stream]:
        """One stream a trace; traces of like length share a call to an actor."""
        lengths = [len(trace.prompt_ids) + trace.tokens for trace in traces]
        groups = together(lengths, request.tokens)
        groups = split_until(groups, min(len(self.pool.actors), len(traces)))
        request = replace(request, agree=False)
        calls = {g: ([traces[i] for i in group], request) for g, group in enumerate(groups)}
        streams: dict[int, Stream] = {}
        for g, of_group in self.pool.run(_attribute, calls):
            streams.update(zip(groups[g], of_group, strict=True))
        return [streams[i] for i in range(len(traces))]


def _attribute(model, tokenizer, traces: Sequence[TokenisedTrace], request: Request) -> list[Stream]:
    return attribute_in_lockstep(model, traces, tokenizer, request)

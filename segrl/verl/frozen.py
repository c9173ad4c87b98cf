"""A frozen attributor: a model of its own that never changes, in Ray actors of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import ray

from segrl.attribution.lockstep import Request, attributed, split_until, together
from segrl.credit.settings import Credit
from segrl.loading import load_model, load_tokenizer
from segrl.types import Stream, TokenisedTrace, given


class FrozenAttributor:
    def __init__(self, path: str, dtype: str, device: str) -> None:
        self.model, self.tokenizer = load_model(path, dtype, device)

    def attributed(self, traces: Sequence[TokenisedTrace], request: Request) -> list[Stream]:
        return attributed(self.model, traces, self.tokenizer, request)


class FrozenAttributors:
    """``attributor_workers`` of them, each on ``attributor_gpus``; on the CPU on one core each."""

    def __init__(self, credit: Credit, tokenizer, on_cpu: bool) -> None:
        path = given(credit.attributor_path)
        check_vocabulary(tokenizer, load_tokenizer(path), path)
        where = {"num_cpus": 1, "num_gpus": 0 if on_cpu else credit.attributor_gpus}
        model = (path, "float32" if on_cpu else credit.attributor_dtype, "cpu" if on_cpu else "auto")
        # An attribution changes nothing: where the process dies, a new one may be asked the same again, once.
        remote = ray.remote(**where, max_restarts=1, max_task_retries=1)(FrozenAttributor)
        self.actors = [remote.remote(*model) for _ in range(credit.attributor_workers)]

    def attributed(self, traces: Sequence[TokenisedTrace], request: Request) -> list[Stream]:
        """Groups of like length go to the actors in turn."""
        lengths = [len(trace.prompt_ids) + trace.tokens for trace in traces]
        groups = together(lengths, request.tokens)
        groups = split_until(groups, min(len(self.actors), len(traces)))
        request = replace(request, agree=False)
        pending = [
            self.actors[g % len(self.actors)].attributed.remote([traces[i] for i in group], request)
            for g, group in enumerate(groups)
        ]
        found: dict[int, Stream] = {}
        for group, ones in zip(groups, ray.get(pending), strict=True):
            found.update(zip(group, ones, strict=True))
        return [found[i] for i in range(len(traces))]


def check_vocabulary(policy, attributor, path: str) -> None:
    """Rollout ids are not tokenised again, so both models must read them alike."""
    ours: Mapping[str, int] = policy.get_vocab()
    theirs: Mapping[str, int] = attributor.get_vocab()
    if ours == theirs:
        return
    differing = [token for token in ours if theirs.get(token) != ours[token]]
    differing += [token for token in theirs if token not in ours]
    raise ValueError(
        f"the attributor {path} has another vocabulary than the policy: {len(differing)} of {len(ours)} tokens differ, "
        f"like {differing[0]!r}; a frozen attributor must read the same ids"
    )

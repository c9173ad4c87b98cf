"""The sampling settings, the samples that a backend is given, and the traces that it returns."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from segrl.text.prompting import prompt_hash
from segrl.types import Trace

FINISHES = ("stop", "length")


@dataclass(frozen=True)
class Sampling:
    """The settings of all backends. ``temperature=0`` is greedy; a ``stop`` text ends a response and is cut off.

    ``repetition_penalty`` divides positive logits of tokens that prompt or response hold, and multiplies the others.
    """

    model_path: str | None
    template: str = "chat"
    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 256
    stop: Sequence[str] = ()
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ValueError(f"temperature={self.temperature}, expected 0 (greedy) or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p}, expected more than 0 and at most 1 (all tokens)")
        if self.repetition_penalty <= 0:
            raise ValueError(f"repetition_penalty={self.repetition_penalty}, expected more than 0; 1 is none")
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens={self.max_tokens}, expected 1 or more")
        if not all(self.stop):
            raise ValueError(f"stop={list(self.stop)} holds an empty text, which would end every response at once")


def samples(problems: Iterable[Trace], n: int, seed: int) -> list[Trace]:
    """``n`` samples to draw for each problem, with the ids ``problem#k``, each with its own seed."""
    if n < 1:
        raise ValueError(f"n={n} samples a problem, expected 1 or more")
    return [_sample_of(problem, k, seed) for problem in problems for k in range(n)]


def _sample_of(problem: Trace, k: int, seed: int) -> Trace:
    id = f"{problem.id}#{k}"
    # From the id, so that a sample does not depend on which others are drawn.
    digest = hashlib.sha256(f"{seed} {id}".encode("utf-8", "surrogatepass")).digest()
    sample_seed = int.from_bytes(digest[:4], "big") >> 1
    meta = {**problem.meta, "problem_id": problem.id, "sample": k, "seed": sample_seed}
    return Trace(id=id, problem=problem.problem, answer=problem.answer, meta=meta)


def answered(sample: Trace, response: str, finish: str, tokens: int, prompt: str = "") -> Trace:
    """The sample with its response; the rendered ``prompt`` and its hash are added to ``meta``."""
    assert finish in FINISHES, finish
    rendered = {"prompt": prompt, "prompt_hash": prompt_hash(prompt)} if prompt else {}
    return replace(sample, response=response, meta={**sample.meta, **rendered, "finish": finish, "tokens": tokens})


def whole_groups(
    groups: Mapping[int, Sequence[Trace]], traces: Iterable[Trace]
) -> Iterator[tuple[int, Sequence[Trace]]]:
    """Each group, in its order, as soon as the last of its traces has come."""
    group_of = {sample.id: i for i, group in groups.items() for sample in group}
    came: dict[int, dict[str, Trace]] = {i: {} for i in groups}
    for trace in traces:
        i = group_of.pop(trace.id)  # fails for a trace that comes twice or was not among the samples
        came[i][trace.id] = trace
        if len(came[i]) == len(groups[i]):
            by_id = came.pop(i)
            yield i, [by_id[sample.id] for sample in groups[i]]
    if group_of:
        raise ValueError(f"the backend gave no response to {len(group_of)} samples, the first {next(iter(group_of))!r}")

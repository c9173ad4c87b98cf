"""What every backend is asked for, and what it gives back."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from segrl.text.prompting import prompt_hash
from segrl.types import Trace

FINISHES = ("stop", "length")


@dataclass(frozen=True)
class Sampling:
    """What is drawn, whoever draws it. ``temperature=0`` is greedy; a ``stop`` text ends a response and is cut off."""

    model_path: str | None
    template: str = "chat"
    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 256
    stop: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ValueError(f"temperature={self.temperature}, expected 0 (greedy) or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p}, expected more than 0 and at most 1 (all tokens)")
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens={self.max_tokens}, expected 1 or more")
        if not all(self.stop):
            raise ValueError(f"stop={list(self.stop)} holds an empty text, which would end every response at once")


def samples(problems: Iterable[Trace], n: int, seed: int) -> list[Trace]:
    """``n`` samples to ask for of each problem, called ``problem#k``, each with a seed of its own."""
    if n < 1:
        raise ValueError(f"n={n} samples a problem, expected 1 or more")
    return [_sample_of(problem, k, seed) for problem in problems for k in range(n)]


def _sample_of(problem: Trace, k: int, seed: int) -> Trace:
    id = f"{problem.id}#{k}"
    # By name, so that a sample stays the same whichever others are asked for beside it.
    own = int.from_bytes(hashlib.sha256(f"{seed} {id}".encode("utf-8", "surrogatepass")).digest()[:4], "big") >> 1
    meta = {**problem.meta, "problem_id": problem.id, "sample": k, "seed": own}
    return Trace(id=id, problem=problem.problem, answer=problem.answer, meta=meta)


def answered(asked: Trace, response: str, finish: str, tokens: int, prompt: str = "") -> Trace:
    """The asked sample with its response; ``prompt`` is the rendered one, which travels with it, as does its hash."""
    assert finish in FINISHES, finish
    rendered = {"prompt": prompt, "prompt_hash": prompt_hash(prompt)} if prompt else {}
    return replace(asked, response=response, meta={**asked.meta, **rendered, "finish": finish, "tokens": tokens})


def whole_groups(
    groups: Mapping[int, Sequence[Trace]], traces: Iterable[Trace]
) -> Iterator[tuple[int, Sequence[Trace]]]:
    """Each group, in its own order, as soon as the last of its traces has come."""
    home = {asked.id: i for i, group in groups.items() for asked in group}
    came: dict[int, dict[str, Trace]] = {i: {} for i in groups}
    for trace in traces:
        i = home.pop(trace.id)  # a backend that gives a sample twice, or another one, fails here
        came[i][trace.id] = trace
        if len(came[i]) == len(groups[i]):
            found = came.pop(i)
            yield i, [found[asked.id] for asked in groups[i]]
    if home:
        raise ValueError(f"the backend gave no response to {len(home)} samples, the first {next(iter(home))!r}")

"""The toy world as a world of truth: right solutions, or solutions with a mistake that is carried on."""

from __future__ import annotations

from segrl import toy
from segrl.types import Trace
from segrl.worlds.halves import generated, short


def traces(
    half: str, n: int | None, seed: int, *, ask: str = "all", wrong: bool = False, most: int | None = None
) -> list[Trace]:
    """n toy traces; ``ask`` is for ``all`` values or the ``last``, ``most`` a bound on their thoughts."""

    def sample(count: int, seed: int) -> list[Trace]:
        draw = toy.sample_mistakes if wrong else toy.sample_traces
        return short(lambda drawn: draw(drawn, seed, ask=ask), count, most)

    return generated(sample, half, n, seed)

"""Worlds of truth: traces with answers to check measures on, each world split once into a dev and a test half.

Choices (nodes, signs, aggregates) are made on dev halves, and tables come from test halves. To add a world: a function
``(half, n, seed, **options) -> traces`` and a line in ``WORLDS``.

>>> traces = segrl.worlds.world_traces("worded", half="dev", n=40, seed=0, wrong=True)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from segrl.resolving import check_options, near
from segrl.segmentation import segment
from segrl.types import Segments, TokenisedTrace, Trace
from segrl.worlds import toy
from segrl.worlds.halves import HALVES
from segrl.worlds.lines import lines
from segrl.worlds.real import real
from segrl.worlds.worded import worded


@dataclass(frozen=True)
class World:
    """Where traces come from, how they are cut, and what is known of their thoughts.

    ``truths`` are ``planted`` (``meta["kinds"]`` says which thoughts are needed), ``mistake`` (with ``wrong=true`` it
    says which one is the first wrong step) and ``shapley`` (how much the model's answer depends on each thought: exact
    values of few thoughts, sampled ones of many).
    """

    name: str
    traces: Callable[..., list[Trace]]
    segmenter: str
    options: Mapping[str, Any] = field(default_factory=dict)  # of the segmenter
    truths: tuple[str, ...] = ()

    def cut(self, trace: TokenisedTrace) -> Segments:
        """The segments of a trace of this world."""
        return segment(trace, self.segmenter, **self.options)


AFTER_EACH_NEWLINE = {"pattern": r"(?<=\n)"}
WORLDS = {
    world.name: world
    for world in (
        World("toy", toy.traces, "keywords", truths=("planted", "mistake", "shapley")),
        World("worded", worded, "paragraphs", truths=("planted", "mistake", "shapley")),
        World("lines", lines, "regex", AFTER_EACH_NEWLINE, truths=("shapley",)),
        World("real", real, "auto", truths=("shapley",)),
    )
}


def world_named(name: str) -> World:
    """The world of that name."""
    if name not in WORLDS:
        raise ValueError(f"there is no world {name!r}{near(name, WORLDS)}")
    return WORLDS[name]


def world_traces(world: str | World, half: str, n: int | None, seed: int, **options) -> list[Trace]:
    """At most n traces of a half of the world, drawn by ``seed``; all of them where n is None.

    Give generated worlds seeds under 500,000: training may have seen the problems of larger ones.
    """
    world = world if isinstance(world, World) else world_named(world)
    if half not in HALVES:
        raise ValueError(f"half={half!r}, expected one of {', '.join(HALVES)}")
    if n is not None and n < 1:
        raise ValueError(f"n={n} traces of world={world.name}, expected 1 or more, or None for all")
    check_options(f"world={world.name}", world.traces, (half, n, seed), options)
    return world.traces(half, n, seed, **options)


__all__ = ["HALVES", "WORLDS", "World", "world_named", "world_traces"]

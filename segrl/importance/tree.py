"""Rows of tokens as trees: what rows begin with alike stands once, and each token sees its ancestors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import takewhile

import torch
from torch import Tensor


class Tree:
    """Rows that are read in one forward. A node is a token; a row's path leads from a root to its last token."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.parents: list[int] = []  # -1 of a root
        self.paths: list[list[int]] = []

    def __len__(self) -> int:
        return len(self.ids)

    def add(self, row: Sequence[int], same: int) -> None:
        """Add a row whose first ``same`` tokens are those of the row before."""
        path = self.paths[-1][:same] if same else []
        for id in row[same:]:
            self.parents.append(path[-1] if path else -1)
            path.append(len(self.ids))
            self.ids.append(id)
        self.paths.append(path)

    @property
    def depths(self) -> Tensor:
        """How many ancestors each node has, which is its place in every row."""
        depth_N = torch.zeros(len(self), dtype=torch.long)
        for path in self.paths:
            depth_N[path] = torch.arange(len(path))
        return depth_N

    @property
    def sees(self) -> Tensor:
        """(N, N): whether a node reads another: itself and its ancestors."""
        sees_NN = torch.eye(len(self), dtype=torch.bool)
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                sees_NN[node] |= sees_NN[parent]
        return sees_NN


def trees(rows: Sequence[Sequence[int]], most: int) -> Iterator[Tree]:
    """Trees of at most ``most`` tokens, or of one row, that hold the rows in order. Sorted rows share all they can."""
    tree, before = Tree(), rows[0][:0]
    for row in rows:
        same = beginning(before, row)
        if tree.paths and len(tree) + len(row) - same > most:
            yield tree
            tree, same = Tree(), 0
        tree.add(row, same)
        before = row
    yield tree


def beginning(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two rows begin with alike."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))

"""Rows of tokens as trees: a beginning that rows share stands once, and each token sees its ancestors."""

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
        """The number of each node's ancestors, which is its position in every row."""
        depth_N = torch.zeros(len(self), dtype=torch.long)
        for path in self.paths:
            depth_N[path] = torch.arange(len(path))
        return depth_N

    @property
    def sees(self) -> Tensor:
        """A mask (N, N): a node sees itself and its ancestors."""
        sees_NN = torch.eye(len(self), dtype=torch.bool)
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                sees_NN[node] |= sees_NN[parent]
        return sees_NN


def trees(rows: Sequence[Sequence[int]], most: int) -> Iterator[Tree]:
    """Trees of at most ``most`` tokens, or of one row, that hold the rows in order. Sorted rows share the most."""
    tree, before = Tree(), rows[0][:0]
    for row in rows:
        same = beginning(before, row)
        if tree.paths and len(tree) + len(row) - same > most:
            yield tree
            tree, same = Tree(), 0
        tree.add(row, same)
        before = row
    yield tree


def beginning(first: Sequence[int], second: Sequence[int]) -> int:
    """The length of the beginning that two rows share."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))

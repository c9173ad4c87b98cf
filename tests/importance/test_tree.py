import torch
from hypothesis import given
from hypothesis import strategies as st

from segrl.importance.tree import trees

ROWS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=12).map(sorted)


def test_a_tree_by_hand():
    # 5 - 6 - 7 and 5 - 6 - 8 - 9: nodes 0 1 2 and 0 1 3 4
    [tree] = trees([[5, 6, 7], [5, 6, 8, 9]], most=9)
    assert tree.ids == [5, 6, 7, 8, 9]
    assert tree.parents == [-1, 0, 1, 1, 3]
    assert tree.paths == [[0, 1, 2], [0, 1, 3, 4]]
    assert tree.depths.tolist() == [0, 1, 2, 2, 3]
    assert tree.sees.long().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 0, 1, 0],
        [1, 1, 0, 1, 1],
    ]


@given(ROWS, st.integers(1, 20))
def test_paths_are_the_rows_and_see_themselves_alone(rows, most):
    cut = list(trees(rows, most))
    assert [[tree.ids[node] for node in path] for tree in cut for path in tree.paths] == rows
    for tree in cut:
        assert len(tree) <= most or len(tree.paths) == 1
        for path in tree.paths:
            for depth, node in enumerate(path):
                assert tree.sees[node].nonzero().flatten().tolist() == path[: depth + 1]
        assert torch.equal(tree.depths + 1, tree.sees.sum(1))


@given(ROWS)
def test_what_begins_alike_stands_once(rows):
    [tree] = trees(rows, most=100)
    assert len(tree) == len({tuple(row[:end]) for row in rows for end in range(1, len(row) + 1)})

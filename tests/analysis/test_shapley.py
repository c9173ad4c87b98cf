from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import segrl
from segrl import toy
from segrl.analysis.shapley import dependence, shapley, subsets
from segrl.attribution.target import TEMPLATE
from segrl.importance.reading import Reading


def game(n, value):
    """The values of all subsets, given as sets of players."""
    return [value({i for i in range(n) if k >> i & 1}) for k in range(2**n)]


def test_an_additive_game_gives_each_player_what_it_adds():
    worth = [3.0, -1.0, 0.5]
    assert shapley(game(3, lambda held: 7 + sum(worth[i] for i in held))) == pytest.approx(worth)


def test_the_glove_game_by_hand():
    # One left glove (0) and two right ones (1, 2): a pair is worth 1. Of six orders, the left glove completes the pair
    # in four (whenever it does not come first), each right one in one (as the first after the left one).
    values = game(3, lambda held: float(0 in held and bool(held & {1, 2})))
    assert shapley(values) == pytest.approx([4 / 6, 1 / 6, 1 / 6])


def test_players_who_can_be_exchanged_get_the_same_and_one_who_adds_nothing_gets_nothing():
    found = shapley(game(4, lambda held: float(len(held & {0, 1, 2})) ** 2))
    assert found == pytest.approx([3, 3, 3, 0])


@given(st.integers(1, 4).flatmap(lambda n: st.lists(st.floats(-5, 5), min_size=2**n, max_size=2**n)))
def test_it_is_the_mean_over_all_orders_and_sums_to_the_whole(values):
    n = len(values).bit_length() - 1
    expected = np.zeros(n)
    orders = list(permutations(range(n)))
    for order in orders:
        held = 0
        for i in order:
            expected[i] += (values[held | 1 << i] - values[held]) / len(orders)
            held |= 1 << i
    found = shapley(values)
    assert found == pytest.approx(expected, abs=1e-9)
    assert found.sum() == pytest.approx(values[-1] - values[0], abs=1e-9)


def test_subsets_are_the_bits_of_their_numbers():
    assert subsets(2).tolist() == [[False, False], [True, False], [False, True], [True, True]]
    with pytest.raises(ValueError, match=r"20 segments take 2\*\*20 evaluations"):
        subsets(20)


@pytest.mark.e2e
def test_the_dependence_of_the_model_is_that_of_its_own_forwards():
    """Every subset spelled out as text, tokenised anew and read by a plain forward."""
    model, tokenizer = toy.load_model()
    trace = min(toy.sample_traces(30, seed=3), key=lambda one: len(one.meta["kinds"]))
    trace = segrl.tokenize(trace, tokenizer)
    segments = segrl.segment(trace)
    pieces = [trace.response_ids[piece] for piece in segments.slices][:-1]
    suffix = torch.tensor(tokenizer(TEMPLATE.replace("{answer}", trace.answer), add_special_tokens=False)["input_ids"])
    digits = len(trace.answer)

    def logp(held):
        ids = torch.cat([trace.prompt_ids, *(piece for i, piece in enumerate(pieces) if i in held), suffix])
        with torch.no_grad():
            found = torch.log_softmax(model(ids[None]).logits[0], -1)
        at = len(ids) - 1 - digits + torch.arange(digits)  # the closing brace is the last token
        return float(found[at - 1, ids[at]].sum())

    found = dependence(model, tokenizer, trace, segments, Reading())
    assert found["shapley"] == pytest.approx(shapley(game(len(pieces), logp)), abs=1e-3)
    assert found["with"] - found["without"] == pytest.approx(sum(found["shapley"]), abs=1e-3)
    # Of the prompt all but a token is read once, the suffix by every subset, each thought by half of them.
    prompt, thinking, every = len(trace.prompt_ids), sum(map(len, pieces)), 2 ** len(pieces)
    read = prompt - 1 + every * (1 + len(suffix) + thinking / 2)
    assert found["evaluations"] == pytest.approx(read / (prompt + thinking + len(suffix)))

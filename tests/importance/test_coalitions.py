"""Shapley values from sampled coalitions against exact ones, over all subsets."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from segrl.analysis import shapley as exact
from segrl.importance.coalitions import coalitions, kernel_shapley


def drawn(thoughts, forwards=64, seed=0):
    return coalitions(thoughts, forwards, torch.Generator().manual_seed(seed))


def of_table(game, values):
    """The values of a game's coalitions, from the table of all subsets."""
    return values[game.kept_KS.long() @ 2 ** torch.arange(game.kept_KS.shape[1])]


def random_game(thoughts, seed):
    """Log-odds with interactions of two and of three thoughts, as a log-probability, which saturates."""
    generator = torch.Generator().manual_seed(seed)
    kept_KS = exact.subsets(thoughts).double()
    each_S, pairs_SS = (torch.randn(*shape, generator=generator).double() for shape in ((thoughts,), (thoughts,) * 2))
    together = kept_KS[:, :3].prod(1)
    return torch.nn.functional.logsigmoid(kept_KS @ each_S + ((kept_KS @ pairs_SS) * kept_KS).sum(1) / 2 + 3 * together)


def test_the_glove_game_by_hand():
    # One left glove (0), two right ones (1, 2): 4/6, 1/6, 1/6, as in tests/analysis/test_shapley.py.
    values = torch.tensor([0.0, 0, 0, 1, 0, 1, 0, 1])
    shapley_S, error_S = kernel_shapley(drawn(3), of_table(drawn(3), values))
    assert shapley_S.tolist() == pytest.approx([4 / 6, 1 / 6, 1 / 6])
    assert error_S.tolist() == [0, 0, 0]


@given(st.integers(1, 6), st.integers(0, 99))
def test_all_coalitions_give_exact_values(thoughts, seed):
    values = torch.randn(2**thoughts, generator=torch.Generator().manual_seed(seed)).double()
    game = drawn(thoughts)
    assert len(game.kept_KS) == len(game.kept_KS.unique(dim=0)) == 2**thoughts
    shapley_S, error_S = kernel_shapley(game, of_table(game, values))
    assert shapley_S.tolist() == pytest.approx(exact.shapley(values).tolist(), abs=1e-9)
    assert float(error_S.sum()) == 0


def test_no_thoughts_have_no_values():
    assert [len(column) for column in kernel_shapley(drawn(0), torch.zeros(2))] == [0, 0]


def test_an_additive_game_is_known_from_few_coalitions():
    worth_S = torch.randn(10, generator=torch.Generator().manual_seed(1)).double()
    game = drawn(10, forwards=32)
    shapley_S, error_S = kernel_shapley(game, 5 + game.kept_KS.double() @ worth_S)
    assert shapley_S.tolist() == pytest.approx(worth_S.tolist(), abs=1e-9)
    assert float(error_S.max()) < 1e-9


@given(st.integers(7, 15), st.integers(0, 99))
def test_sampled_values_sum_to_the_whole(thoughts, seed):
    game = drawn(thoughts, seed=seed)
    values = torch.randn(len(game.kept_KS), generator=torch.Generator().manual_seed(seed)).double()
    shapley_S, error_S = kernel_shapley(game, values)
    assert float(shapley_S.sum()) == pytest.approx(float(values[1] - values[0]), abs=1e-9)
    assert float(error_S.min()) > 0


def test_pairs_are_complements_without_repeats_drawn_as_the_kernel_has_it():
    # S = 4: sizes 1, 2, 3 weigh 1/3, 1/4, 1/3 of 11/12, so a pair {i}, the rest has 2/11 and a pair of twos 1/11.
    game = drawn(4, forwards=10)
    assert len(game.kept_KS) == len(game.kept_KS.unique(dim=0)) == 10
    assert torch.equal(game.kept_KS[2::2], ~game.kept_KS[3::2])
    assert game.kept_KS[:2].tolist() == [[False] * 4, [True] * 4]
    first = [game.kept_KS[2].sum().item() for game in (drawn(4, 10, seed) for seed in range(2000))]
    assert sum(size == 2 for size in first) / 2000 == pytest.approx(3 / 11, abs=0.04)
    whole = drawn(4, forwards=16)
    assert sorted(whole.weight_P.tolist()) == pytest.approx([1 / 11] * 3 + [2 / 11] * 4)


def test_errors_cover_two_thirds_of_the_exact_values():
    inside, ratios = [], []
    for seed in range(60):
        values = random_game(9, seed)
        exact_S = torch.tensor(exact.shapley(values))
        game = drawn(9, seed=seed)
        shapley_S, error_S = kernel_shapley(game, of_table(game, values))
        inside += ((shapley_S - exact_S).abs() <= error_S).tolist()
        ratios += ((shapley_S - exact_S) / error_S).tolist()
    assert 0.62 < sum(inside) / len(inside) < 0.82
    assert abs(torch.tensor(ratios).mean()) < 0.15  # not to one side


def test_more_forwards_come_closer():
    def miss(forwards):
        games = [(random_game(9, seed), drawn(9, forwards, seed)) for seed in range(20)]
        return sum(
            float((kernel_shapley(game, of_table(game, values))[0] - torch.tensor(exact.shapley(values))).norm())
            for values, game in games
        )

    assert miss(512) < 1e-6 < 2 * miss(128) < miss(32)


def test_too_few_forwards_are_a_sentence():
    with pytest.raises(ValueError, match="of 40 thoughts take 82 forwards or more, got forwards=64; give more"):
        drawn(40)

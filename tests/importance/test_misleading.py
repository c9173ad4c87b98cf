"""Which thought misled: shares and deals by hand, and no more marks than promised where readings are random."""

import pytest
import torch

from segrl.importance.misleading import mean_share, suspect

NEVER = [False] * 20


def at(*thoughts, of):
    """Readings that each score one thought alone."""
    return torch.eye(of)[list(thoughts)]


def test_shares_by_hand():
    # 3 of 4 above zero and nothing of 0; the second reading has nothing above zero; halves of the third
    readings = torch.tensor([[3.0, 1, -5], [-1, -2, -3], [0, 2, 2]])
    assert mean_share(readings).tolist() == pytest.approx([0.75 / 3, (0.25 + 0.5) / 3, 0.5 / 3])


def test_what_deals_reach_by_hand():
    """Three readings of one thought out of n meet by chance in 1 of n^2 deals, and some two of them in 3 (n - 1)."""
    # n = 5: all three meet in 4% of deals, so that 95% stay at two thirds or below
    assert suspect(at(2, 2, 2, of=5), NEVER) == (2, 1.0, pytest.approx(2 / 3, abs=1e-6), False)
    assert suspect(at(2, 2, 2, of=5), NEVER).marked
    # n = 4: in 6.25%, so that agreement of all three is not enough
    assert suspect(at(2, 2, 2, of=4), NEVER)[1:3] == (1.0, 1.0)
    assert not suspect(at(2, 2, 2, of=4), NEVER).marked
    # two of three, n = 20: in 1 - 19 * 18 / 400 = 14.5% of deals
    assert not suspect(at(7, 7, 3, of=20), NEVER).marked
    assert suspect(at(7, 7, 3, of=20), NEVER).thought == 7


def test_what_comes_to_the_answer_is_not_marked():
    concludes = [False, False, True, False, False]
    suspected = suspect(at(2, 2, 2, of=5), concludes)
    assert suspected.beats_chance
    assert not suspected.marked


def test_random_readings_are_marked_at_most_at_the_level():
    """300 traces of heavy-tailed scores: 5% are 15, and a binomial of them stays below 26 in 99.5 of 100 runs."""
    generator = torch.Generator().manual_seed(1)
    scores = torch.randn(300, 3, 8, generator=generator, dtype=torch.float64).pow(5)
    assert 0 < sum(suspect(readings, NEVER).marked for readings in scores) < 26

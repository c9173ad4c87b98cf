"""The numbers of scripts/gradient_quality.py, by hand."""

import pytest
import torch
from testkit.script_files import loaded


@pytest.fixture(scope="module")
def script():
    pytest.importorskip("verl")
    return loaded("gradient_quality")


def test_cosine_and_variance_by_hand(script):
    own = [torch.tensor([2.0, 0.0]), torch.tensor([0.0, 2.0])]
    found = script.against(torch.tensor([1.0, 0.0]), own)
    assert found["cosine"] == [1.0, 0.0]
    assert found["variance"] == pytest.approx(2.0)  # each is (1, -1) or (-1, 1) from the mean


def test_differences_are_paired_by_batch(script):
    results = {
        "uniform": {"variance": 20.0, "cosine": [0.1, 0.5], "reward_change": [0.0, 0.2]},
        "oracle": {"variance": 19.0, "cosine": [0.2, 0.6], "reward_change": [0.1, 0.1]},
    }
    said = script.line("oracle", results)
    assert "cosine 0.4000 ± 0.2000, minus uniform 0.1000 ± 0.0000" in said
    assert "reward_change 0.1000 ± 0.0000, minus uniform 0.0000 ± 0.1000" in said
    assert "minus" not in script.line("uniform", results)


def test_a_reward_counts_against_its_own_group(script):
    class One:
        def __init__(self, group, reward):
            self.group, self.reward = group, reward

    assert script.group_means([One("a", 1.0), One("b", 0.0), One("a", 0.0)]).tolist() == [0.5, 0.0, 0.5]

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from testkit import paper
from testkit.tiny import byte_level_tokenizer, tiny_model

import segrl
from segrl import Trace
from segrl.attribution.quadrature import midpoint, thirds, unevenness, worst


def traces(n=3):
    texts = [f"Okay, 3 + 4.\n\nWait, {' 1' * 3 * i} it is 7.\n\nHowever, x.\n</think> \\boxed{{7}}" for i in range(n)]
    made = [Trace(id=f"t{i}", problem="What is 3+4?", response=text, answer="77") for i, text in enumerate(texts)]
    return [segrl.tokenize(trace, byte_level_tokenizer()) for trace in made]


def error(found, expected):
    """The share of all mass that lies elsewhere."""
    return float((found - expected).abs().sum() / expected.abs().sum())


def test_unevenness_by_hand():
    # Neighbours differ by 2, then by 1 (both positions): the middle cell takes the larger. Total mass (0 + 2 + 3) / 3.
    masses_JL = torch.tensor([[0.0, 0.0], [1.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
    widths_J = torch.full((3,), 1 / 3, dtype=torch.float64)
    expected = torch.tensor([2, 2, 1]) / 3 / 4 / (5 / 3)
    assert torch.allclose(unevenness(masses_JL, widths_J), expected.double())


def test_one_node_knows_nothing_of_its_path():
    assert unevenness(torch.ones(1, 5), torch.ones(1)).tolist() == [1]


def test_an_even_path_has_no_unevenness():
    widths_J = torch.full((12,), 1 / 12, dtype=torch.float64)
    assert float(unevenness(torch.ones(12, 3, dtype=torch.float64), widths_J).sum()) == 0


def test_the_worst_cells_hold_half_of_it_and_are_as_few_as_can_be():
    assert worst(torch.tensor([0.1, 0.5, 0.2, 0.2]), room=9) == [1]
    assert worst(torch.tensor([0.1, 0.4, 0.3, 0.2]), room=9) == [1, 2]
    assert worst(torch.tensor([0.1, 0.4, 0.3, 0.2]), room=1) == [1]
    assert worst(torch.ones(4), room=9) == [0, 1]  # the earlier of equals


@given(st.integers(1, 40), st.data())
def test_cells_cut_in_three_still_cover_the_path_once(nodes, data):
    alphas_J, widths_J = midpoint(nodes)
    cells = dict(zip(alphas_J.tolist(), widths_J.tolist(), strict=True))
    for _ in range(5):
        alpha = data.draw(st.sampled_from(sorted(cells)))
        width = cells[alpha]
        cells |= dict.fromkeys((*thirds(alpha, width), alpha), width / 3)
    edge = 0.0
    for alpha in sorted(cells):
        assert alpha - cells[alpha] / 2 == pytest.approx(edge, abs=1e-12)
        edge = alpha + cells[alpha] / 2
    assert edge == pytest.approx(1)


def test_nodes_are_spent_on_the_traces_that_miss_and_bring_them_closer():
    model, tokenizer = tiny_model(), byte_level_tokenizer()
    plain = paper.attribute(model, traces(), tokenizer, nodes=2, tolerance=None)
    wide = sorted(max(one.gap, one.unevenness) for one in plain)
    tolerance = (wide[0] + wide[1]) / 2
    refined = paper.attribute(model, traces(), tokenizer, nodes=2, tolerance=tolerance, max_nodes=18)
    right = paper.attribute(model, traces(), tokenizer, nodes=300, tolerance=None)
    for before, after, fine in zip(plain, refined, right, strict=True):
        assert (after.evaluations == 4) == (max(before.gap, before.unevenness) <= tolerance)
        assert after.evaluations <= 20
        if after.evaluations > 4:
            assert error(after.scores_T, fine.scores_T) < error(before.scores_T, fine.scores_T)


def test_cutting_every_cell_is_the_grid_three_times_as_fine():
    """A tolerance of nothing and room for it all: whatever the order of cuts, 2 nodes become 6."""
    model, tokenizer = tiny_model(), byte_level_tokenizer()
    [found] = paper.attribute(model, traces(1), tokenizer, nodes=1, tolerance=0.0, max_nodes=3)
    [direct] = paper.attribute(model, traces(1), tokenizer, nodes=3, tolerance=None)
    assert found.evaluations == 2 + 3
    assert error(found.scores_T, direct.scores_T) < 1e-5


@pytest.mark.e2e
def test_on_the_toy_model_few_nodes_in_the_right_place_do_what_hundreds_do():
    """Against 324 even nodes: at most a quarter of them, and closer than 108 even ones, trace by trace in the mean."""
    model, tokenizer = segrl.toy.load_model()
    some = [segrl.tokenize(trace, tokenizer) for trace in segrl.toy.sample_traces(4, seed=11)]
    local, even, right = (
        paper.attribute(model, some, tokenizer, **options)
        for options in ({}, {"nodes": 108, "tolerance": None}, {"nodes": 324, "tolerance": None})
    )
    assert sum(one.evaluations for one in local) / len(local) < 81
    misses = [[error(a.scores_T, b.scores_T) for a, b in zip(found, right, strict=True)] for found in (local, even)]
    assert sum(misses[0]) < sum(misses[1])


def test_without_a_certificate_the_ends_are_not_evaluated():
    model, tokenizer = tiny_model(), byte_level_tokenizer()
    [short] = paper.attribute(model, traces(1), tokenizer, nodes=2, tolerance=None, certificate=False)
    [whole] = paper.attribute(model, traces(1), tokenizer, nodes=2, tolerance=None)
    assert (short.evaluations, whole.evaluations) == (2, 4)
    assert torch.equal(short.scores_T, whole.scores_T)
    assert short.gap is None
    with pytest.raises(ValueError, match=r"tolerance=0\.2 needs a certificate"):
        paper.attribute(model, traces(1), tokenizer, certificate=False)

from itertools import combinations

import pytest
import torch
from testkit import paper
from testkit.tiny import byte_level_tokenizer, tiny_model

import segrl
from segrl import Trace
from segrl.attribution.calibration import (
    calibrate,
    calibration_of,
    fit_nodes,
    masses_on_grid,
    nearest_node,
)
from segrl.attribution.quadrature import midpoint, nodes_of
from segrl.data.files import write_json


def traces(n=4):
    texts = [f"Okay, 3 + 4.\n\nWait, {' 1' * 2 * i} it is 7.\n\nHowever, x." for i in range(n)]
    made = [Trace(id=f"t{i}", problem="What is 3+4?", response=text, answer="77") for i, text in enumerate(texts)]
    return [segrl.tokenize(trace, byte_level_tokenizer()) for trace in made]


def misfit(masses_JX, chosen, weights):
    return float((weights @ masses_JX[chosen] - masses_JX.mean(0)).square().sum())


def test_two_shapes_need_two_nodes():
    """Every row is a mix of two shapes, so two rows and the right weights give the mean exactly; one row does not."""
    torch.manual_seed(0)
    shapes = torch.randn(2, 30, dtype=torch.float64)
    mix_J = torch.linspace(0, 1, 12, dtype=torch.float64) ** 3
    masses_JX = mix_J[:, None] * shapes[0] + (1 - mix_J)[:, None] * shapes[1]
    two, weights = fit_nodes(masses_JX, 2)
    assert misfit(masses_JX, two, weights) == pytest.approx(0, abs=1e-12)
    single, weight = fit_nodes(masses_JX, 1)
    assert misfit(masses_JX, single, weight) > 1e-3


def test_the_chosen_nodes_are_the_best_of_all():
    torch.manual_seed(1)
    masses_JX = torch.randn(9, 40, dtype=torch.float64).cumsum(0)
    for count in (1, 2):
        chosen, weights = fit_nodes(masses_JX, count)
        every = [misfit(masses_JX, list(c), best_weights(masses_JX, list(c))) for c in combinations(range(9), count)]
        assert misfit(masses_JX, chosen, weights) == pytest.approx(min(every), rel=1e-6)


def best_weights(masses_JX, chosen):
    return torch.linalg.lstsq(masses_JX[chosen].T, masses_JX.mean(0)[:, None]).solution[:, 0]


def test_a_single_node_stands_where_the_path_is_steep():
    """Two tokens move at the fourth of five nodes; a third moves a little at the others, which in squares are nearer to
    the mean of all.
    """
    quiet, steep = torch.tensor([0.0, 0.0, 0.1]), torch.tensor([2.0, 3.0, 0.0])
    masses_JL = torch.stack([quiet, quiet, quiet, steep, quiet]).double()
    distance_J = (masses_JL - masses_JL.mean(0)).square().sum(1)
    assert int(distance_J.argmin()) != 3
    assert calibration_of([masses_JL], counts=(1,))["rules"]["1"] == {"alphas": [pytest.approx(0.7)], "weights": [1.0]}


def test_traces_of_any_size_have_one_voice_in_the_single_node():
    """Two traces are steep at the first node, one with a hundred times their masses at the second."""
    first, second = torch.tensor([[3.0, 1.0], [0.0, 0.5]]), torch.tensor([[0.0, 0.5], [3.0, 1.0]])
    chosen, _ = nearest_node([first.double(), first.double(), 100 * second.double()])
    assert chosen == [0]


def test_masses_on_the_grid_average_to_the_midpoint_rule():
    model, tokenizer = tiny_model(), byte_level_tokenizer()
    grid = masses_on_grid(model, traces(), tokenizer, midpoint(6)[0].tolist())
    for masses_JL, attribution in zip(
        grid, paper.attribute(model, traces(), tokenizer, nodes=6, tolerance=None), strict=True
    ):
        scores_T = masses_JL.mean(0)[-len(masses_JL[0]) :]
        total = float(attribution.scores_T.double().sum()) + attribution.mass_prompt + attribution.mass_suffix
        assert float(scores_T.sum()) == pytest.approx(total, rel=1e-4)


def test_a_calibration_is_a_rule(tmp_path):
    model, tokenizer = tiny_model(), byte_level_tokenizer()
    file = tmp_path / "deep" / "calibration.json"
    calibration = calibrate(model, traces(), tokenizer, grid=12, counts=(1, 4))
    write_json(file, calibration)
    alphas_J, weights_J = nodes_of(str(file), 4)
    assert len(alphas_J) == len(weights_J) == 4
    reference = paper.attribute(model, traces(), tokenizer, nodes=96, tolerance=None)
    errors = {}
    for name, options in {"even": {}, "calibrated": {"quadrature": str(file)}}.items():
        few = paper.attribute(model, traces(), tokenizer, nodes=4, tolerance=None, **options)
        assert few[0].evaluations == 6
        pairs = zip(few, reference, strict=True)
        errors[name] = sum(float((a.scores_T - b.scores_T).abs().sum()) for a, b in pairs)
    assert errors["calibrated"] < errors["even"]


def test_a_trace_that_a_calibration_misses_gets_a_midpoint_grid(tmp_path):
    model, tokenizer = tiny_model(), byte_level_tokenizer()
    rule = (torch.tensor([0.99], dtype=torch.float64), torch.ones(1, dtype=torch.float64))
    [refined] = paper.attribute(model, traces(1), tokenizer, quadrature=rule, nodes=1, tolerance=1e-6, max_nodes=3)
    [direct] = paper.attribute(model, traces(1), tokenizer, nodes=3, tolerance=None)
    assert refined.evaluations == 2 + 1 + 3
    assert refined.scores_T.tolist() == pytest.approx(direct.scores_T.tolist(), rel=1e-4)


def test_bad_calibrations_are_sentences(tmp_path):
    with pytest.raises(FileNotFoundError, match="segrl attribute calibrate out="):
        nodes_of(str(tmp_path / "none.json"), 4)
    write_json(tmp_path / "c.json", {"rules": {"4": {"alphas": [0.5] * 4, "weights": [0.25] * 4}}})
    with pytest.raises(ValueError, match="has calibrated rules of 4 nodes, not of 6"):
        nodes_of(str(tmp_path / "c.json"), 6)

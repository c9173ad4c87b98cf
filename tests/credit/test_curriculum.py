"""Difficulty, orders, phases, and a stream of problems that goes on from every position as if never interrupted."""

import io
import re
from collections import Counter
from itertools import islice
from math import ceil, exp, floor
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

import segrl
from segrl.credit.curriculum import (
    ORDERS,
    Curriculum,
    CurriculumSettings,
    Difficulty,
    Phases,
    easy_to_hard,
    gaussian,
    pass_rates,
    shuffled,
    systematic,
)
from segrl.credit.settings import CreditSettings, credit_from


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def rates(*values):
    return torch.tensor(values, dtype=torch.float64)


def written_and_read(state):
    """As verl's checkpoint keeps it; no object but tensors and plain values."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


# --- difficulty ------------------------------------------------------------------------------------------------------


def test_the_average_moves_towards_each_visits_pass_rate():
    difficulty = Difficulty(decay=0.75, unseen=0.4)
    assert (difficulty.rate(7), difficulty.visits.get(7)) == (0.4, None)
    difficulty.update(7, 1.0)
    assert difficulty.rate(7) == 1.0  # the first is the average; `unseen` has no part in it
    difficulty.update(7, 0.0)
    assert difficulty.rate(7) == 0.75  # 0.75 x 1 + 0.25 x 0
    difficulty.update(7, 0.5)
    assert difficulty.rate(7) == 0.6875  # 0.75 x 0.75 + 0.25 x 0.5
    assert (difficulty.visits[7], difficulty.rate(8)) == (3, 0.4)


def test_without_decay_the_last_pass_rate_is_the_average():
    difficulty = Difficulty(decay=0.0, unseen=0.5)
    for passed in (1.0, 0.25):
        difficulty.update(0, passed)
    assert difficulty.rate(0) == 0.25


def test_a_problem_is_solved_after_its_visits_at_the_threshold():
    difficulty = Difficulty(decay=0.5, unseen=1.0)
    assert not difficulty.solved(0, threshold=0.9, visits=1)  # never seen
    difficulty.update(0, 1.0)
    assert difficulty.solved(0, threshold=0.9, visits=1)
    assert not difficulty.solved(0, threshold=0.9, visits=2)
    difficulty.update(0, 0.8)
    assert difficulty.rate(0) == pytest.approx(0.9)
    assert not difficulty.solved(0, threshold=0.91, visits=2)
    assert difficulty.solved(0, threshold=0.89, visits=2)


def test_a_share_that_is_none_is_refused():
    with pytest.raises(ValueError, match=r"problem 3: a share of 2.0 of its rollouts passed, expected one from 0 to 1"):
        Difficulty(0.5, 0.5).update(3, 2.0)


def test_a_problems_sessions_count_once_each_whatever_their_turns():
    # problem 4: session a (two turns) right, b and c not; problem 9: one session, right
    problems, sessions = [4, 4, 4, 4, 9], ["u_0", "u_0", "u_1", "u_2", "v_0"]
    assert pass_rates(problems, sessions, [1.0, 1.0, 0.0, 0.4, 0.5], 0.5) == {4: pytest.approx(1 / 3), 9: 1.0}
    # two groups of one problem in a batch are one visit
    assert pass_rates([4, 4], ["u_0", "v_0"], [1.0, 0.0], 0.5) == {4: 0.5}


# --- orders ----------------------------------------------------------------------------------------------------------


def test_easy_problems_come_first_and_equal_ones_at_random():
    assert easy_to_hard(rates(0.1, 0.9, 0.5, 0.0), 2, seeded()) == [1, 2, 0, 3]
    ties = [easy_to_hard(rates(0.5, 1.0, 0.5, 0.5), 1, seeded(seed)) for seed in range(60)]
    assert {order[0] for order in ties} == {1}
    assert {tuple(order[1:]) for order in ties} == {
        *((0, 2, 3), (0, 3, 2), (2, 0, 3)),
        *((2, 3, 0), (3, 0, 2), (3, 2, 0)),
    }


def test_a_shuffled_pass_has_every_problem_once_at_any_place():
    firsts = Counter()
    for seed in range(400):
        order = shuffled(rates(0.0, 1.0, 0.5, 0.5), 2, seeded(seed))
        assert sorted(order) == [0, 1, 2, 3]
        firsts[order[0]] += 1
    assert all(60 <= firsts[problem] <= 140 for problem in range(4))  # 100 +- 4.6 standard deviations


def test_problems_solved_half_of_the_time_are_drawn_as_often_as_the_gaussian_says():
    # rates 0.5, 0.25, 0 at width 0.25: weights 1, exp(-1/2), exp(-2); of 1000 draws 574.26, 348.31, 77.72 by shares
    weights = [1, exp(-0.5), exp(-2)]
    drawn = Counter(gaussian(rates(0.5, 0.25, 0.0), 1000, seeded()))
    for problem, weight in enumerate(weights):
        assert drawn[problem] in (floor(1000 * weight / sum(weights)), ceil(1000 * weight / sum(weights)))
    easier = Counter(gaussian(rates(0.5, 0.25, 0.0), 1000, seeded(), centre=0.0, width=0.5))
    assert easier[2] > easier[1] > easier[0]
    # far from the centre weights differ, where their exponentials are all zero
    assert set(gaussian(rates(0.2, 0.0), 8, seeded(), width=0.001)) == {0}


@given(
    st.lists(st.floats(0.0, 1.0), min_size=1, max_size=40),
    st.integers(1, 60),
    st.integers(0, 2**32),
    st.floats(0.05, 2.0),
)
def test_every_problem_is_drawn_as_often_as_its_weight_says_up_to_rounding(values, count, seed, width):
    drawn = Counter(gaussian(rates(*values), count, seeded(seed), width=width))
    weights = [exp(-((value - 0.5) ** 2) / (2 * width**2)) for value in values]
    assert sum(drawn.values()) == count
    for problem, weight in enumerate(weights):
        expected = count * weight / sum(weights)
        assert floor(expected - 1e-9) <= drawn[problem] <= ceil(expected + 1e-9)


def test_over_many_draws_the_shares_come_out_and_places_are_even():
    shares, drawn, last = rates(0.1, 0.2, 0.3, 0.4), Counter(), Counter()
    for seed in range(3000):
        positions = systematic(shares, 3, seeded(seed))
        drawn.update(positions)
        last[positions[-1]] += 1
    for problem, share in enumerate(shares.tolist()):
        assert drawn[problem] == pytest.approx(9000 * share, abs=120)
        assert last[problem] == pytest.approx(3000 * share, abs=120)


# --- phases ----------------------------------------------------------------------------------------------------------


def test_convergence_begins_with_its_step_and_stays():
    phases, began = Phases(step=4), []
    for step in range(1, 7):
        began.append(phases.converging)
        phases.after(step, entropy=5.0)
    assert began == [False, False, False, True, True, True]
    assert Phases(step=1).converging


def test_convergence_begins_after_the_first_step_of_little_entropy_and_stays():
    phases, began = Phases(entropy=0.3), []
    for step, entropy in enumerate([0.5, None, 0.3, 0.29, 0.9], start=1):
        phases.after(step, entropy)
        began.append(phases.converging)
    assert began == [False, False, False, True, True]  # 0.3 is not below 0.3
    both = Phases(step=100, entropy=0.3)
    both.after(1, 0.1)
    assert both.converging
    resumed = Phases(step=100, entropy=0.3)
    resumed.load_state_dict(both.state_dict())
    assert resumed.converging


# --- the stream ------------------------------------------------------------------------------------------------------


def curriculum(rows=12, batch=4, seed=3, **settings):
    return Curriculum(CurriculumSettings(**{"order": "shuffled"} | settings), rows, batch, seed)


def taken(stream, count):
    return list(islice(iter(stream), count))


def test_passes_follow_each_other_and_the_second_goes_from_easy_to_hard():
    stream = curriculum(order="easy_to_hard")
    first = taken(stream, 12)
    assert sorted(first) == list(range(12))
    assert first != list(range(12))  # nothing is known: all count as half solved, and equal ones come at random
    stream.observe({row: row / 11 for row in range(12)}, step=1)
    assert taken(stream, 12) == list(range(11, -1, -1))


def test_problems_that_were_never_seen_stand_between_the_easy_and_the_hard():
    stream = curriculum(rows=5, order="easy_to_hard", unseen=0.5)
    stream.observe({0: 0.25, 3: 0.75}, step=1)
    order = taken(stream, 5)
    assert (order[0], order[-1]) == (3, 0)
    assert set(order[1:4]) == {1, 2, 4}


def test_a_solved_problem_comes_no_more_even_in_the_pass_that_has_begun():
    stream = curriculum(rows=4, drop_solved=0.9, drop_visits=2)
    passed = taken(stream, 1)
    others = sorted({0, 1, 2, 3} - set(passed))
    stream.observe({others[0]: 1.0, others[1]: 0.5}, step=1)
    assert stream.metrics()["segrl/solved_share"] == 0.0  # one visit
    stream.observe({others[0]: 1.0}, step=2)
    assert stream.metrics() == {
        "segrl/pass_rate_mean": 0.75,
        "segrl/seen_share": 0.5,
        "segrl/solved_share": 0.25,
        "segrl/phase": 0.0,
    }
    left = taken(stream, 2)
    assert sorted(left) == others[1:]
    assert set(taken(stream, 30)) == {0, 1, 2, 3} - {others[0]}


def test_where_all_are_solved_all_come_again():
    stream = curriculum(rows=3, drop_solved=0.5, drop_visits=1)
    stream.observe(dict.fromkeys(range(3), 1.0), step=1)
    assert sorted(taken(stream, 3)) == [0, 1, 2]
    assert stream.metrics()["segrl/solved_share"] == 1.0


def test_a_gaussian_step_avoids_what_is_always_or_never_solved():
    stream = curriculum(rows=40, batch=8, order="gaussian", options={"width": 0.1})
    stream.observe({row: float(row % 2) for row in range(30)}, step=1)  # rows 30 to 39 stay unseen: half solved
    for _ in range(6):
        step = taken(stream, 8)
        assert set(step) <= set(range(30, 40))
        assert len(set(step)) == 8  # each of the ten at most once


def test_a_new_phase_draws_by_its_own_order_at_once():
    second = {"convergence": "easy_to_hard", "convergence_step": 3}
    stream = curriculum(rows=8, batch=2, order="shuffled", **second)
    known = {row: row / 7 for row in range(8)}
    taken(stream, 2)
    stream.observe(known, step=1)
    rest = taken(stream, 2)
    assert stream.metrics()["segrl/phase"] == 0.0
    stream.observe({}, step=2)
    assert stream.metrics()["segrl/phase"] == 1.0
    assert len(rest) == 2
    assert taken(stream, 4) == [7, 6, 5, 4]  # a pass of its own, not what the shuffled one had left


def by_the_middle(rates_Q, count, generator, offset=0.0):
    return (rates_Q - 0.5 - offset).abs().argsort()[:count].tolist()


def test_an_order_of_ones_own():
    name = f"{__name__}:by_the_middle"
    stream = curriculum(rows=4, batch=1, order=name, options={"offset": 0.3})
    stream.observe({0: 0.5, 1: 0.75, 2: 0.0, 3: 1.0}, step=1)
    assert taken(stream, 3) == [1, 1, 1]


ARMS = [
    {"order": "shuffled"},
    {"order": "easy_to_hard", "drop_solved": 0.8},
    {"order": "gaussian", "decay": 0.7, "drop_solved": 0.8, "drop_visits": 1},
    {"order": "shuffled", "drop_solved": 0.8, "convergence": "gaussian", "convergence_entropy": 0.5},
]


def told(stream, batch, step):
    """The results of a step, as a policy that gets better would have them; its entropy falls."""
    passed = {row: min(1.0, (row % 5) / 8 + 0.05 * step) for row in batch}
    stream.observe(passed, step, entropy=1.0 - 0.09 * step)


def goes_on(stream, so_far, position, rows):
    """The next ``rows`` rows from a position of the run, and the metrics after each step."""
    found, steps, batch = [], [], so_far
    for row in islice(iter(stream), rows):
        found.append(row)
        batch.append(row)
        position += 1
        if len(batch) == 4:
            told(stream, batch, position // 4)
            steps.append(stream.metrics())
            batch.clear()
    return found, steps


@pytest.mark.parametrize("arm", ARMS, ids=lambda arm: "-".join(map(str, arm.values())))
def test_a_run_that_goes_on_from_any_position_is_the_uninterrupted_one(arm):
    """12 rows in steps of 4: 48 rows are four passes, over the change of phase and the first dropped problems."""
    whole, steps = goes_on(curriculum(**arm), [], 0, 48)
    stream, batch = curriculum(**arm), []
    for position in range(48):
        saved, waits = written_and_read(stream.state_dict()), list(batch)
        resumed = curriculum(seed=99, **arm)
        resumed.load_state_dict(saved)
        assert goes_on(resumed, waits, position, 48 - position) == (whole[position:], steps[position // 4 :]), position
        goes_on(stream, batch, position, 1)
    if "drop_solved" in arm:
        assert 0 < steps[-1]["segrl/solved_share"] < 1
    if "convergence" in arm:
        assert {step["segrl/phase"] for step in steps} == {0.0, 1.0}


def test_what_was_saved_is_not_changed_by_what_comes_after():
    stream = curriculum(order="gaussian")
    state = stream.state_dict()
    before = written_and_read(state)
    told(stream, taken(stream, 7), step=1)
    assert str(state) == str(before)


def test_a_training_set_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"the checkpoint's curriculum is of 12 rows, the training set has 13"):
        curriculum(rows=13).load_state_dict(curriculum().state_dict())


def test_phases_that_were_taken_out_of_the_config_are_over():
    before = curriculum(convergence="gaussian", convergence_step=1)
    stream = curriculum()
    stream.load_state_dict(before.state_dict())
    assert stream.metrics()["segrl/phase"] == 0.0
    assert sorted(taken(stream, 12)) == list(range(12))


# --- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "sentence"),
    [
        ({"ordr": "gaussian"}, "segrl.curriculum.ordr is not a setting, did you mean 'order'?"),
        ({"order": "gausian"}, "no order of problems is called 'gausian', did you mean 'gaussian'?"),
        ({"order": "gaussian", "options": {"sigma": 1}}, "segrl.curriculum.order=gaussian with the options"),
        ({"order": "gaussian", "options": {"width": 0}}, "gaussian with width=0, expected more than 0"),
        ({"drop_solved": 95}, "segrl.curriculum.drop_solved=95.0, expected a number from 0 to 1"),
        ({"decay": -0.1}, "segrl.curriculum.decay=-0.1, expected a number from 0 to 1"),
        ({"decay": 1.0}, "segrl.curriculum.decay=1 leaves every average at the first pass rate"),
        ({"drop_visits": 0}, "segrl.curriculum.drop_visits=0, expected 1 or more"),
        ({"order": "shuffled", "convergence": "gaussian"}, "a second phase needs an order, and a step or an entropy"),
        ({"order": "shuffled", "convergence_step": 10}, "segrl.curriculum.convergence=None with convergence_step=10"),
        ({"convergence": "gaussian", "convergence_step": 9}, "without segrl.curriculum.order, the order of the"),
    ],
)
def test_a_wrong_setting_is_named(section, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        credit_from(OmegaConf.create({"segrl": {"curriculum": section}}))


def test_settings_that_are_not_given_keep_their_defaults_and_by_default_there_is_no_curriculum():
    assert CreditSettings().curriculum.order is None
    settings = credit_from(OmegaConf.create({"segrl": {"curriculum": {"order": "gaussian", "drop_solved": 0.95}}}))
    assert settings == CreditSettings(curriculum=CurriculumSettings(order="gaussian", drop_solved=0.95))


def test_the_orders_of_the_table_are_the_settings_of_the_page():
    page = (Path(segrl.__file__).parents[1] / "docs" / "verl.md").read_text()
    assert all(f"`{name}`" in page for name in ORDERS)


def test_every_metric_is_explained_and_none_is_taken_for_a_sum_by_verl():
    page = (Path(segrl.__file__).parents[1] / "docs" / "metrics.md").read_text()
    stream = curriculum(drop_solved=0.9)
    stream.observe({0: 1.0}, step=1)
    assert len(stream.metrics()) == 4
    for name in stream.metrics():
        assert f"`{name}`" in page, name
        assert not re.search("max|min|sum|total", name), name

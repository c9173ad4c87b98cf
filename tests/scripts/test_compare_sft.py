"""The table of scripts/compare_sft.py, from made-up cells."""

import json
import math

import pytest
from testkit.script_files import loaded

pytest.importorskip("verl")


@pytest.fixture(scope="module")
def script():
    return loaded("compare_sft")


def cells(folder, **accuracies):
    """One file a cell: arm=[accuracy of seed 0, of seed 1, ...]; responses of 10 tokens, one of seed 1 of 20."""
    (folder / "cells").mkdir()
    base = {"accuracy": 0.4, "length": 30, "problems": 100}
    (folder / "base.json").write_text(json.dumps(base))
    for arm, found in accuracies.items():
        for seed, accuracy in enumerate(found):
            one = {"arm": arm, "seed": seed, "steps": 8, "kept": 45, "tokens": 100, "accuracy": accuracy}
            one |= {"length": 15 if seed else 10, "right": [True, True], "lengths": [10, 20 if seed else 10]}
            (folder / "cells" / f"{arm}-{seed}.json").write_text(json.dumps(one))


def test_the_interval_is_students_by_hand(script):
    # mean 2 points, standard deviation 1, three seeds: 4.30 / sqrt(3) = 2.48 to either side
    assert script.interval([0.01, 0.02, 0.03]) == "+2.0 [-0.5, +4.5]"
    assert script.interval([1.0, 2.0, 3.0], 1) == "+2.0 [-0.5, +4.5]"
    assert script.interval([0.05]) == "+5.0 [one seed]"
    half = script.T[9] / math.sqrt(10)
    assert script.interval([0.01, -0.01] * 5) == f"+0.0 [{-100 * half * 0.010541:+.1f}, {100 * half * 0.010541:+.1f}]"


def test_differences_are_paired_by_seed_and_a_seed_that_full_lacks_is_left_out(script, tmp_path):
    cells(tmp_path, full=[0.3, 0.5], oracle=[0.4, 0.61, 0.9], random=[0.3])
    table = script.table(tmp_path, script.arms_of("training"))
    assert "| the bundled model |  | 0 |  | 40.0% |  |  | 30 |  |" in table
    assert "| full | 2 | 8 | 45% | 40.0% |  |  | 12 |  |" in table
    assert "| oracle | 3 | 8 | 45% | 63.7% | +10.5 [+4.1, +16.9] | +10.0 [one seed] | 13 | +0.0 [+0.0, +0.0] |" in table
    assert "| random | 1 | 8 | 45% | 30.0% | +0.0 [one seed] |  | 10 | +0.0 [one seed] |" in table
    assert "selective" not in table
    assert "The planted segments beat full SFT" in table


def test_where_oracle_does_not_beat_full_the_table_says_so(script, tmp_path):
    cells(tmp_path, full=[0.3, 0.5], oracle=[0.4, 0.4])
    assert "cannot rank measures" in script.table(tmp_path, script.arms_of("training"))


def test_a_budget_counts_right_answers_that_end_within_it(script, tmp_path):
    # of seed 0 both responses end within 15 tokens, of seed 1 one of two
    cells(tmp_path, full=[1.0, 1.0], planted=[1.0])
    table = script.table(tmp_path, script.arms_of("power"), budget=15)
    assert "| right within 15 tokens | minus full, points |" in table
    assert "| full | 2 | 8 | 45% | 100.0% |  |  | 12 |  | 75.0% |  |" in table
    assert (
        "| planted | 1 | 8 | 45% | 100.0% | +0.0 [one seed] |  | 10 | +0.0 [one seed] | 100.0% | +0.0 [one seed] |"
        in table
    )


def test_arms_of_power_keep_as_many_tokens_as_are_needed(script):
    arms = script.arms_of("power")
    keeping = {name for name, arm in arms.items() if f"selection.match_tokens={script.NEEDED}" in arm.selection}
    measured = {"first_and_last", "alone", "contribution", "support"}
    assert keeping == measured | {"ig", "permuted_ig", "random", "ig per trace"}
    assert {name for name, arm in arms.items() if arm.normalise == "trace"} == {
        name for name in arms if "per" in name[-9:]
    }
    assert {name for name, arm in arms.items() if arm.attribution == "default"} == measured


def test_only_short_problems_are_drawn_where_asked(script):
    from types import SimpleNamespace

    from segrl import toy

    def sample(n):
        return toy.sample_traces(n, seed=0, redundancy="detours")

    short = script.short(sample, 40, SimpleNamespace(most_steps=3))
    assert [trace.meta["n_steps"] for trace in short] == [3] * 40
    every = [trace.id for trace in sample(400) if trace.meta["n_steps"] == 3]
    assert [trace.id for trace in short] == every[:40]

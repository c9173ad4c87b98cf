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
    """One file a cell: arm=[accuracy of seed 0, of seed 1, ...]."""
    (folder / "cells").mkdir()
    (folder / "base.json").write_text(json.dumps({"accuracy": 0.4, "problems": 100}))
    for arm, found in accuracies.items():
        for seed, accuracy in enumerate(found):
            one = {"arm": arm, "seed": seed, "steps": 8, "kept": 45, "tokens": 100, "accuracy": accuracy}
            (folder / "cells" / f"{arm}-{seed}.json").write_text(json.dumps(one))


def test_the_interval_is_students_by_hand(script):
    # mean 2 points, standard deviation 1, three seeds: 4.30 / sqrt(3) = 2.48 to either side
    assert script.interval([0.01, 0.02, 0.03]) == "+2.0 [-0.5, +4.5]"
    assert script.interval([0.05]) == "+5.0 [one seed]"
    half = script.T[9] / math.sqrt(10)
    assert script.interval([0.01, -0.01] * 5) == f"+0.0 [{-100 * half * 0.010541:+.1f}, {100 * half * 0.010541:+.1f}]"


def test_differences_are_paired_by_seed_and_a_seed_that_full_lacks_is_left_out(script, tmp_path):
    cells(tmp_path, full=[0.3, 0.5], oracle=[0.4, 0.61, 0.9], random=[0.3])
    table = script.table(tmp_path, script.arms_of("training"))
    assert "| the bundled model | | 0 | | 40.0% | | |" in table
    assert "| full | 2 | 8 | 45% | 40.0% |  |  |" in table
    assert "| oracle | 3 | 8 | 45% | 63.7% | +10.5 [+4.1, +16.9] | +10.0 [one seed] |" in table
    assert "| random | 1 | 8 | 45% | 30.0% | +0.0 [one seed] |  |" in table
    assert "selective" not in table
    assert "The planted segments beat full SFT" in table


def test_where_oracle_does_not_beat_full_the_table_says_so(script, tmp_path):
    cells(tmp_path, full=[0.3, 0.5], oracle=[0.4, 0.4])
    assert "cannot rank measures" in script.table(tmp_path, script.arms_of("training"))

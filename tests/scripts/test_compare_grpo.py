"""The statistics of scripts/compare_grpo.py, and its page from made-up cells."""

import json

import numpy as np
import pytest
from omegaconf import OmegaConf
from testkit.readme import ROOT
from testkit.script_files import loaded

from segrl.commands.config import compose
from segrl.credit.settings import credit_from

SPEC = OmegaConf.to_container(OmegaConf.load(ROOT / "examples" / "segment_grpo.yaml"))


@pytest.fixture(scope="module")
def script():
    return loaded("compare_grpo")


def test_holm_by_hand(script):
    # sorted: 0.01 x 3, 0.02 x 2, 0.5 x 1
    assert script.holm([0.5, 0.01, 0.02]) == pytest.approx([0.5, 0.03, 0.04])
    assert script.holm([0.03, 0.02]) == pytest.approx([0.04, 0.04])  # never below one before it


def test_the_bootstrap_has_the_standard_error_of_a_mean(script):
    generator = np.random.default_rng(1)
    one_seed = generator.normal(0.0, 1.0, (1, 400))
    drawn = script.bootstrap(one_seed, np.random.default_rng(0))
    assert drawn.mean() == pytest.approx(one_seed.mean(), abs=0.005)
    assert drawn.std() == pytest.approx(one_seed.std() / 20, rel=0.05)
    by_seed = np.repeat(generator.normal(0.0, 1.0, (25, 1)), 100, axis=1)  # the seeds differ, the problems do not
    assert script.bootstrap(by_seed, np.random.default_rng(0)).std() == pytest.approx(by_seed.std() / 5, rel=0.05)


def test_a_difference_is_paired(script):
    ours = {0: {"a": 1.0, "b": 1.0, "only here": 1.0}, 1: {"a": 1.0, "b": 0.0}}
    theirs = {0: {"a": 0.0, "b": 1.0}, 1: {"a": 1.0, "b": 0.0}, 2: {"a": 1.0, "b": 1.0}}
    found = script.difference("ig", ours, theirs)
    assert (found.seeds, found.mean) == (2, 0.25)


def test_an_outcome_is_the_share_of_a_problems_samples_at_the_last_validation(script, tmp_path):
    (tmp_path / "validation").mkdir()
    for step, rows in ((2, [("a", 1)]), (10, [("a", 1), ("b", 1), ("a", 0), ("b", 1)])):
        lines = [json.dumps({"input": name, "acc": acc}) for name, acc in rows]
        (tmp_path / "validation" / f"{step}.jsonl").write_text("\n".join(lines))
    assert script.problems(tmp_path) == {"a": 0.5, "b": 1.0}


def cell(folder, right: float, step: int = 4):
    (folder / "validation").mkdir(parents=True)
    rows = [{"input": f"p{i}", "acc": float(i < right)} for i in range(50)]
    (folder / "validation" / f"{step}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    lines = [{"step": s, "data": {"critic/score/mean": s / 10, "actor/ppo_kl": 0.1}} for s in range(1, step + 1)]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (folder / "done").write_text("4\n")


@pytest.mark.parametrize(
    ("oracle", "sentence"), [(40, "oracle beats uniform"), (25, "this world cannot rank measures")]
)
def test_the_first_line_says_whether_the_world_can_rank_measures(script, tmp_path, capsys, oracle, sentence):
    for arm, right in (("uniform", 25), ("oracle", oracle), ("ig", 27)):
        for seed in (0, 1):
            cell(tmp_path / arm / f"seed-{seed}", right)
    (tmp_path / "random" / "seed-0").mkdir(parents=True)  # begun, not done
    script.compare(tmp_path, SPEC)
    page = capsys.readouterr().out
    assert page == (tmp_path / "comparison.md").read_text()
    assert sentence in page.splitlines()[2]
    assert "| ig | 2 | 54.0% | +4.0" in page
    assert "random" not in page
    assert (tmp_path / "curves.png").stat().st_size > 0


def test_one_seed_ranks_nothing(script):
    control = script.Difference("oracle", seeds=1, mean=0.1, low=0.05, high=0.15, p=0.01, detectable=0.09)
    assert script.verdict(SPEC, control).startswith("**One seed:")


def test_what_is_done_is_not_done_again(script, tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(script, "run_cell", lambda cell, overrides, seed, steps: ran.append((cell.parent.name, steps)))
    cell(tmp_path / "oracle" / "seed-0", 1)
    script.run(tmp_path, SPEC, "short")
    assert ran == [("uniform", 4), ("ig", 4)]


@pytest.mark.e2e
@pytest.mark.parametrize("arm", SPEC["arms"])
def test_every_arm_is_a_config(arm):
    pytest.importorskip("verl")
    credit_from(compose("grpo", [*SPEC["common"], *SPEC["arms"][arm], "out=here"]))

"""scripts/compare_grpo.py: its arithmetic, its pages of made-up cells, and how grpo_cells.py runs and resumes them."""

import json
import os
import re
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from omegaconf import OmegaConf
from testkit.readme import ROOT
from testkit.script_files import loaded

from segrl.commands import config as commands_config
from segrl.commands.config import compose
from segrl.credit.settings import credit_from
from segrl.data import read_rows

EXAMPLE = ROOT / "examples" / "segment_grpo.yaml"
SEEDS = {"pilot": {"seeds": [0, 1]}, "full": {"seeds": [0, 1, 2, 3, 4, 5]}}
GIVEN = OmegaConf.merge(OmegaConf.load(EXAMPLE), {"best": "contrast", "sizes": SEEDS})
SPEC = OmegaConf.to_container(GIVEN, resolve=True)
FEW = SPEC | {"problems": SPEC["problems"] | {"train": 8, "held_out": 4}}


cells = loaded("grpo_cells")
script = loaded("compare_grpo")


@pytest.fixture
def without_verl(monkeypatch):
    """A cell's config is its overrides; to compose the real one needs verl and takes a second."""
    monkeypatch.setattr(cells, "composed", lambda overrides: "".join(f"{line}\n" for line in overrides))


# --- arithmetic ------------------------------------------------------------------------------------------------------


def test_holm_by_hand():
    # sorted: 0.01 x 3, 0.02 x 2, 0.5 x 1
    assert script.holm([0.5, 0.01, 0.02], 3) == pytest.approx([0.5, 0.03, 0.04])
    assert script.holm([0.03, 0.02], 2) == pytest.approx([0.04, 0.04])  # never below one before it


def test_comparisons_that_have_not_run_are_corrected_for():
    assert script.holm([0.02], 3) == pytest.approx([0.06])
    assert script.holm([0.01, 0.03], 3) == script.holm([0.01, 0.03, 1.0], 3)[:2] == pytest.approx([0.03, 0.06])
    one = script.crossed(np.array([[0.1, 0.2, 0.1], [0.12, 0.18, 0.14]]))
    for family in (1, 3):
        p, adjusted = row(script.main_table({"a - b": one}, family), "a - b").split(" | ")[3:5]
        assert float(adjusted) == pytest.approx(family * float(p), abs=0.002)


def logged(response, total):
    """Of a step whose prompts have 50 tokens each."""
    return {"response_length/mean": response, "prompt_length/mean": 50.0, "perf/total_num_tokens": total}


def test_rollout_tokens_are_those_of_the_responses():
    # 10 rollouts of 150 + 50, then 10 of 200 + 50: 1,500 and 2,000 sampled tokens
    assert script.rollout_tokens({2: logged(200.0, 2500), 1: logged(150.0, 2000)}) == {1: 1500, 2: 3500}


def test_the_course_of_a_cell_is_a_line_between_validations():
    course = script.Course([0.0, 1000.0, 1200.0], {"a": [0.25, 0.5, 1.0], "b": [0.0, 0.0, 0.5]})
    assert course.at(1100) == {"a": 0.75, "b": 0.25}
    assert course.at(500) == {"a": 0.375, "b": 0.0}
    assert course.end == {"a": 1.0, "b": 0.5}


def test_two_cells_are_compared_where_the_shorter_one_ended():
    longer = script.Course([0.0, 1000.0, 1200.0], {"a": [0.0, 0.5, 1.0], "b": [0.0, 0.0, 0.5]})
    shorter = script.Course([0.0, 900.0, 1100.0], {"a": [0.0, 0.0, 0.5], "b": [0.0, 0.0, 1.0]})
    alike = script.Course([0.0, 10.0], {"b": [0.0, 0.5], "a": [0.0, 0.5]})
    found = script.difference({3: longer, 7: alike, 8: alike}, {7: alike, 3: shorter})
    assert found.tolist() == [[0.25, -0.75], [0.0, 0.0]]  # at 1,100: a 0.75 - 0.5, b 0.25 - 1
    assert script.difference({1: alike}, {2: alike}) is None


def test_a_cell_first_validated_after_the_other_ended_is_named():
    shares = {"a": [0.0, 0.5, 0.5]}
    short, long = (script.Course([0.0, 800.0 * times, 1000.0 * times], shares) for times in (1.0, 1.3))
    just = script.Course([0.0, 1000.0, 1250.0], shares)
    found = {"one": {0: short, 1: long, 2: just}, "other": {0: long, 1: long, 2: short, 3: short}}
    [said] = script.beyond_validations(found, [("one", "other")])
    assert "one - other, seed 0: other was first validated after the tokens that one ended at" in said
    [said] = script.beyond_validations(found, [("other", "one")])
    assert "other - one, seed 0: other was first validated after" in said
    assert script.beyond_validations(found, [("one", "absent")]) == []


def test_an_outcome_is_the_share_of_a_problems_samples(tmp_path):
    for step, rows in ((2, [("a", 1)]), (10, [("a", 1), ("b", 1), ("a", 0), ("b", 1)])):
        write_validation(tmp_path, step, rows)
    assert script.validations(tmp_path) == [(2, {"a": 1.0}), (10, {"a": 0.5, "b": 1.0})]


# --- pages -----------------------------------------------------------------------------------------------------------


def write_validation(folder, step, rows):
    (folder / "validation").mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"input": name, "acc": float(right)}) for name, right in rows]
    (folder / "validation" / f"{step}.jsonl").write_text("\n".join(lines))


def answers(right, problems=40):
    return [(f"p{i}", i < right) for i in range(problems)]


def finish(cell, *validations, tokens=1000):
    """A cell that ended well after as many steps as it has validations, with so many tokens in each."""
    for step, rows in enumerate(validations, 1):
        write_validation(cell.folder, step, rows)
    steps = range(1, len(validations) + 1)
    lines = [{"step": step, "data": logged(150.0, tokens * 4 / 3) | {"critic/score/mean": step / 10}} for step in steps]
    (cell.folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    note_done(cell)


def note_done(cell):
    cell.folder.mkdir(parents=True, exist_ok=True)
    (cell.folder / "done").write_text(cells.composed(cell.overrides))


def grid(out, size, right, tokens=None):
    """Finished cells of a size, and the base; ``right``: (arm, seed) -> how many problems are right in the end."""
    base = cells.base_of(out, SPEC, SPEC["sizes"][size])
    write_validation(base.folder, 0, answers(10))
    note_done(base)
    for cell in cells.cells_of(out, SPEC, size):
        arm = cell.folder.parent.name
        if (arm, cell.seed) in right:
            finish(cell, answers(right[arm, cell.seed]), tokens=(tokens or {}).get(arm, 1000))


def row(page, name):
    return next(line for line in page.splitlines() if line.startswith(f"| {name} |"))


def test_the_page_has_differences_at_equal_tokens_and_what_the_controls_show(tmp_path, capsys, without_verl):
    pilot = {("uniform", 0): 20, ("uniform", 1): 21, ("permuted", 0): 20, ("permuted", 1): 22}
    grid(tmp_path, "pilot", pilot | {("contrast", 0): 30, ("contrast", 1): 31}, tokens={"contrast": 2000})
    grid(tmp_path, "control", {("planted", 0): 36, ("planted", 1): 37})
    grid(tmp_path, "exploratory", {("uniform", 0): 20, ("oar", 0): 24})
    (tmp_path / "grail" / "seed-0").mkdir(parents=True)  # begun, not done
    script.compare(tmp_path, SPEC)
    page = capsys.readouterr().out
    assert page == (tmp_path / "comparison.md").read_text()
    # contrast is half way from the base's 10 to 30 of 40 when uniform ends: 20 and 20.5, against 20 and 21
    assert row(page, "contrast - uniform").split(" | ")[1:3][0] == "2"
    assert " | -0.6 [" in row(page, "contrast - uniform")
    assert " | +1.2 [" in row(page, "permuted - uniform")
    assert " | +40.0 [" in page  # planted - uniform: 36 - 20 and 37 - 21 of 40
    assert re.search(r"planted - uniform: \+40\.0 .*This grid sees a difference of that size", page)
    assert "**uniform_half_rate has not run**" in page
    assert " | +10.0 [" in row(page, "oar - uniform")
    assert "| contrast | 2 | 0.002 | 76.2% | +51.2 [" in page
    assert "grail" not in page
    assert "- **contrast - uniform, seed 1: contrast was first validated after the tokens" in page
    assert "planted - uniform, seed" not in page
    assert all((tmp_path / f"{name}.png").stat().st_size > 0 for name in ("curves", "differences"))


def test_a_control_that_is_not_seen_or_has_one_seed_is_said():
    table = np.array([[0.1, -0.1, 0.05], [-0.1, 0.1, 0.0]])
    one = {"planted - uniform": script.crossed(table)}
    assert "does not tell them apart" in script.seen(one, "planted", "uniform")
    single = {"planted - uniform": script.crossed(np.array([[0.5, 0.6, 0.5]]))}
    assert "One seed: another may turn it round" in script.seen(single, "planted", "uniform")


def test_what_six_seeds_can_show_is_said_once_and_without_the_differences(tmp_path, capsys, without_verl):
    right = {("uniform", 0): 20, ("uniform", 1): 20, ("permuted", 0): 20, ("permuted", 1): 22}
    grid(tmp_path, "pilot", right | {("contrast", 0): 20})
    with pytest.raises(SystemExit, match=r"the pilot is not done: .*contrast/seed-1"):
        script.power(tmp_path, SPEC)
    grid(tmp_path, "pilot", right | {("contrast", 0): 20, ("contrast", 1): 28})
    script.power(tmp_path, SPEC)
    page = capsys.readouterr().out
    # contrast - uniform by seed: 0 and 8 of 40, of standard deviation 0.2 / sqrt(2)
    assert row(page, "contrast - uniform").split(" | ")[1:3] == ["2", "14.1"]
    assert row(page, "permuted - uniform").split(" | ")[2] == "3.5"
    # together: the root of the mean of 0.2^2, 0.15^2 and 0.05^2, over 2
    assert row(page, "together").split(" | ")[2] == f"{100 * ((0.04 + 0.0225 + 0.0025) / 3 / 2) ** 0.5:.1f}"
    assert re.search(r"6 seeds find a true difference of \d+\.\d points in 80%", page)
    assert "has 2 degrees of freedom" in page
    grid(tmp_path, "pilot", right | {("contrast", 0): 0, ("contrast", 1): 40})
    script.power(tmp_path, SPEC)
    assert capsys.readouterr().out == page


def test_the_differences_themselves_are_kept_back():
    table = np.random.default_rng(0).normal(0, 0.1, (2, 30))
    assert script.power_page({"a - b": table}, 6, 2) == script.power_page({"a - b": table + 0.3}, 6, 2)
    assert script.power_page({"a - b": table}, 6, 2) != script.power_page({"a - b": 2 * table}, 6, 2)


def test_a_pilot_of_one_seed_is_refused():
    with pytest.raises(SystemExit, match="the pilot has one seed of a - b; two or more say how seeds vary"):
        script.power_page({"a - b": np.array([[0.1, 0.2, 0.3]])}, 6, 2)


def test_six_seeds_find_what_a_t_test_of_six_differences_finds():
    """Two seeds 10 points apart on problems that are all alike: 2.571 x 0.0707 / sqrt(6) is the limit, beyond which lie
    80% of noncentral t's of 5 degrees with the shift 3.47."""
    table = np.repeat([[0.0], [0.1]], 50, axis=1)
    page = script.power_page({"a - b": table}, planned=6, arms=2)
    shift = 100 * 0.0707107 / 6**0.5
    found = float(row(page, "a - b").rstrip(" |").split(" | ")[-1])
    assert 3.3 * shift < found < 3.6 * shift


# --- cells -----------------------------------------------------------------------------------------------------------

NOTE = "import pathlib, sys; pathlib.Path(sys.argv[1], 'ran').write_text('x'); sys.exit(int(sys.argv[2]))"


@pytest.fixture
def ran(without_verl, monkeypatch):
    """The arms of the cells that are run, each by a real process that fails for the arm ``permuted``."""
    arms = []

    def command(out, cell):
        arms.append(cell.folder.parent.name)
        assert not list(cell.folder.glob("left*"))
        return [sys.executable, "-c", NOTE, str(cell.folder), str(int(arms[-1] == "permuted"))]

    monkeypatch.setattr(cells, "command", command)
    return arms


def test_what_is_done_is_not_done_again_and_what_is_half_done_is_begun_anew(tmp_path, ran):
    [uniform, permuted, contrast] = cells.cells_of(tmp_path, SPEC, "short")
    note_done(uniform)
    (contrast.folder / "left").mkdir(parents=True)
    with pytest.raises(SystemExit, match=r"failed: \S*permuted/seed-0; the same command tries them again"):
        cells.run(tmp_path, FEW, "short")
    assert ran == ["base", "permuted", "contrast"]
    assert contrast.done
    assert not permuted.done
    with pytest.raises(SystemExit, match="failed"):
        cells.run(tmp_path, FEW, "short")
    assert ran[3:] == ["permuted"]


def test_another_cell_in_the_folder_is_an_error(tmp_path, ran):
    note_done(cells.cells_of(tmp_path, SPEC, "short")[0])
    with pytest.raises(SystemExit, match=r"holds another cell: it has .*total_training_steps=3,.*choose another OUT"):
        cells.run(tmp_path, FEW, "pilot")


def test_cells_of_another_best_arm_are_not_compared(tmp_path, without_verl):
    grid(tmp_path, "pilot", {(arm, 0): 20 for arm in ("uniform", "permuted", "contrast")})
    other = OmegaConf.to_container(OmegaConf.merge(GIVEN, {"best": "paper"}), resolve=True)
    with pytest.raises(
        SystemExit, match=r"permuted/seed-0 holds .* has method=contrast, this one method=paper; choose"
    ):
        script.compare(tmp_path, other)
    script.compare(tmp_path, SPEC)


def test_a_long_difference_is_cut():
    assert cells.changed("".join(f"{i}\n" for i in range(9)), "0\n") == (
        "it has 1, 2, 3, 4, 5, 6 and 2 more, this one nothing else"
    )


@pytest.mark.e2e
def test_a_method_whose_yaml_has_changed_is_another_cell(tmp_path, monkeypatch):
    pytest.importorskip("verl")
    spec = SPEC | {"sizes": {"one": SPEC["sizes"]["short"] | {"arms": ["uniform", "cliff"]}}}
    there = cells.cells_of(tmp_path / "out", spec, "one")
    for cell in there:
        note_done(cell)
    cells.refuse_others(there)
    shutil.copytree(commands_config.CONFIG_DIR, tmp_path / "configs")
    cliff = tmp_path / "configs" / "grpo" / "method" / "cliff.yaml"
    cliff.write_text(cliff.read_text().replace("measure: mistake", "measure: ig"))
    monkeypatch.setattr(commands_config, "CONFIG_DIR", tmp_path / "configs")
    sentence = "cliff/seed-0 holds another cell: it has segrl.measure='mistake', this one segrl.measure='ig'; choose"
    with pytest.raises(SystemExit, match=sentence):
        cells.refuse_others(there)
    with pytest.raises(SystemExit, match=sentence):
        cells.finished(tmp_path / "out", spec)
    with pytest.raises(SystemExit, match="no cell can be made of method=clif: there is no method=clif"):
        cells.composed(("method=clif",))


def test_after_the_pilot_alone_nothing_is_compared(tmp_path):
    """The example with a command in place of Python that says what it was asked for."""
    said = tmp_path / "said"
    said.write_text("#!/bin/sh\necho $2\n")
    said.chmod(0o755)

    def asked(steps):
        env = os.environ | {"PYTHON": str(said), "STEPS": steps}
        example = EXAMPLE.with_suffix(".sh")
        return subprocess.run(
            ["bash", example, "out"], env=env, text=True, capture_output=True, check=True
        ).stdout.split()

    assert asked("pilot") == ["run", "power"]
    assert asked("") == ["run", "power", "run", "run", "compare"]
    assert asked("control") == asked("short") == ["run", "compare"]


def test_another_arm_may_be_in_question(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(script, "run", lambda out, spec, *_: asked.append(spec))
    monkeypatch.setattr(script.signal, "signal", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["", "run", str(tmp_path), str(EXAMPLE), "best=grail", "--size", "pilot"])
    script.main()
    assert asked[0]["comparisons"][:2] == [["grail", "uniform"], ["grail", "permuted"]]
    assert asked[0]["arms"]["permuted"] == ["method=grail", "segrl.permuted=true"]


def test_the_rest_waits_for_what_the_pilot_says(tmp_path, ran):
    with pytest.raises(SystemExit, match=r"the size full runs once .*power\.md is written"):
        cells.run(tmp_path, FEW, "full")
    (tmp_path / "power.md").write_text("said")
    with pytest.raises(SystemExit, match="failed"):
        cells.run(tmp_path, FEW, "full", seeds=[2, 4])
    assert ran == ["base", *["uniform", "permuted", "contrast"] * 2]
    assert {folder.name for folder in tmp_path.glob("uniform/seed-*/")} == {"seed-2", "seed-4"}


def test_a_cell_belongs_to_the_process_that_holds_its_lock_and_to_the_run_it_left_behind(tmp_path):
    cell = cells.cells_of(tmp_path, SPEC, "short")[0]
    with cells.held(cell) as lock:
        with cells.held(cell) as again:
            assert again is None
        left = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], pass_fds=[lock.fileno()])
    with cells.held(cell) as meanwhile:
        assert meanwhile is None
    left.kill()
    left.wait()
    with cells.held(cell) as lock:
        assert lock


def test_what_another_process_runs_is_waited_for(tmp_path, ran, monkeypatch, capsys):
    monkeypatch.setattr(cells, "PAUSE", 0.05)
    first, *rest = cells.cells_of(tmp_path, SPEC, "short")
    for cell in (cells.base_of(tmp_path, SPEC, SPEC["sizes"]["short"]), *rest):
        note_done(cell)
    with cells.held(first) as lock:
        wait_and_finish = (
            f"import pathlib, time; time.sleep(1); pathlib.Path({str(first.folder / 'done')!r}).write_text"
        )
        text = cells.composed(first.overrides)
        first.folder.mkdir()
        other = subprocess.Popen([sys.executable, "-c", f"{wait_and_finish}({text!r})"], pass_fds=[lock.fileno()])
    began = time.monotonic()
    cells.run(tmp_path, FEW, "short")
    assert not ran
    assert time.monotonic() - began > 0.5
    assert capsys.readouterr().out == f"other processes run {first.folder}; waiting for them\n"
    other.wait()


def test_problems_are_the_same_for_all_and_none_is_held_out_and_learnt_from(tmp_path):
    cells.write_problems(tmp_path, FEW["problems"])
    train, held_out = (read_rows(cells.rows_of(tmp_path, split)) for split in ("train", "held_out"))
    texts = [{row["prompt"][0]["content"] for row in rows} for rows in (train, held_out)]
    assert [len(one) for one in texts] == [8, 4]
    assert not texts[0] & texts[1]
    for text in texts[0] | texts[1]:
        asked = re.search(r"Write the value of ([a-z])\.", text)[1]
        assert 5 <= "abcdefghi".index(asked) + 1 <= 8
    assert cells.sampled(3, 0, FEW["problems"], without=texts[0])[0].problem not in texts[0]
    with pytest.raises(SystemExit, match=r"has problems of another kind: train was 8, now 9"):
        cells.write_problems(tmp_path, FEW["problems"] | {"train": 9})


@pytest.mark.parametrize("size", SPEC["sizes"])
def test_every_size_is_of_arms_that_there_are_and_ends_with_a_validation(size):
    sizes = SPEC["sizes"][size]
    assert set(sizes["arms"]) <= set(SPEC["arms"])
    assert {SPEC["reference"], *SPEC["controls"]} <= set(SPEC["arms"])
    assert sizes["validate_every"] < sizes["steps"]


@pytest.mark.e2e
@pytest.mark.parametrize("arm", SPEC["arms"])
def test_every_arm_is_a_config(tmp_path, arm):
    pytest.importorskip("verl")
    spec = SPEC | {"sizes": {"one": SPEC["sizes"]["pilot"] | {"arms": [arm], "seeds": [3]}}}
    [cell] = cells.cells_of(tmp_path, spec, "one")
    config = compose("grpo", cells.command(tmp_path, cell)[4:])
    assert config.data.seed == 3
    assert config.trainer.total_training_steps == 16
    assert credit_from(config).permuted == arm.endswith("permuted")


@pytest.mark.e2e
def test_the_permuted_arm_differs_from_the_best_in_nothing_else():
    pytest.importorskip("verl")
    best, permuted = (
        credit_from(compose("grpo", [*SPEC["arms"][arm], "out=here"])) for arm in (SPEC["best"], "permuted")
    )
    permuted.permuted = False
    assert best == permuted
    assert best.sign == "both"

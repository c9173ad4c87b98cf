"""The recipes of examples/, in their CPU form: each ends in a graded table of 64 problems."""

import re
import sys
from pathlib import Path

import pytest
from testkit.real import smollm2_folder
from testkit.runs import bounded, weighed
from transformers import AutoModelForCausalLM

from segrl import toy
from segrl.data import read_rows, write_rows

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not (toy.MODEL_PATH / "model.safetensors").exists(), reason="no model is bundled"),
]
EXAMPLES = Path(__file__).parents[2] / "examples"


def run(name, environment, folder, *arguments, seconds=600):
    """The log of an example that ended well."""
    here = environment | {"PRESET": "toy_cpu", "PYTHON": sys.executable}
    return bounded(["bash", str(EXAMPLES / name), *map(str, arguments)], here, seconds, folder / "log")


def graded(scores: Path) -> float:
    """The accuracy in the table of 64 problems, after it is compared with the verdicts beside it."""
    row = next(line for line in (scores / "results.md").read_text().splitlines() if line.startswith("| problems |"))
    problems, samples, accuracy = (float(re.search(r"[\d.]+", cell)[0]) for cell in row.split("|")[2:5])
    assert (problems, samples) == (64, 1)
    [file] = scores.glob("samples_problems.*")
    verdicts = [sample["correct"] for sample in read_rows(file)]
    assert accuracy == pytest.approx(100 * sum(verdicts) / 64, abs=0.05)
    return accuracy


def moved(model: Path) -> bool:
    base, trained = (AutoModelForCausalLM.from_pretrained(path) for path in (toy.MODEL_PATH, model))
    return any((a != b).any() for a, b in zip(base.parameters(), trained.parameters(), strict=True))


def test_evaluating_the_bundled_model(tmp_path, environment):
    run("evaluate_math.sh", environment, tmp_path, "null", tmp_path / "scores")
    assert graded(tmp_path / "scores") > 10


def test_a_cold_start_from_traces_like_limos(tmp_path, environment):
    """LIMO's columns: question, solution (the whole trace) and answer."""
    pytest.importorskip("verl")
    rows = [
        {"question": trace.problem, "solution": trace.response, "answer": trace.answer}
        for trace in toy.sample_traces(16, seed=3)
    ]
    write_rows(tmp_path / "limo.jsonl", rows)
    log = run("cold_start.sh", environment, tmp_path, tmp_path / "limo.jsonl", tmp_path, "trainer.total_epochs=1")
    assert "selective SFT: 16 traces" in log
    assert moved(tmp_path / "sft" / "model")
    graded(tmp_path / "scores")


def test_grpo_then_a_score(tmp_path, environment, ray_dir):
    """By the default method. Three steps save three checkpoints; two stay, and the last is the model."""
    pytest.importorskip("verl")
    few = ["trainer.total_training_steps=3", "trainer.save_freq=1", "data.train_batch_size=8", "trainer.test_freq=3"]
    few += ["data.max_response_length=256", f"+ray_kwargs.ray_init._temp_dir={ray_dir}"]
    few += ["data.val_max_samples=16", "trainer.logger=[console,tensorboard]"]
    few += [f"segrl.dump_dir={tmp_path / 'dump'}"]
    log = run("grpo_math.sh", environment, tmp_path, tmp_path, *few)
    assert "GRPO, rule rank, measure support: 3 steps" in log
    assert re.search(r"val-core/toy/acc/mean@1:\S*[01]", log)
    assert f"trained model, of step 3: {tmp_path / 'grpo' / 'model'}" in log
    kept = {path.parent.name for path in (tmp_path / "grpo" / "checkpoints").glob("global_step_*/actor")}
    assert kept == {"global_step_2", "global_step_3"}
    assert list((tmp_path / "grpo" / "tensorboard").glob("events.*"))
    # Right responses alone, each with a thought that weighs nothing.
    assert {(line["advantage"] > 0, min(line["weights"])) for line in weighed(tmp_path, 1, 2, 3)} == {(True, 0.0)}
    assert moved(tmp_path / "grpo" / "model")
    graded(tmp_path / "scores")


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_a_pretrained_model_from_end_to_end(tmp_path, environment):
    """A few problems and steps of everything; a second start does nothing again."""
    pytest.importorskip("verl")
    short = {"SIZE": "short", "MODEL": smollm2_folder(), "SEEDS": "0", "ARMS": "selective random"}
    log = run("smollm2.sh", environment | short, tmp_path, tmp_path, seconds=2900)
    differences = ["SFT selective minus base", "SFT random minus base", "SFT selective minus random"]
    differences += [f"GRPO {pair}" for pair in ("support minus SFT", "support minus uniform", "uniform minus SFT")]
    assert [line for line in differences if line in log] == differences
    assert log.count("a - b = ") == 6
    problems = {name: {row["problem"] for row in read_rows(tmp_path / f"{name}.jsonl")} for name in ("train-0", "test")}
    assert not problems["train-0"] & problems["test"]
    assert {path.name for path in tmp_path.glob("*.html")} == {"report.html", "grpo-support.html"}
    again = run("smollm2.sh", environment | short, tmp_path, tmp_path)
    assert "==" not in again
    assert again.count("a - b = ") == 6


def test_a_table_of_the_paper_is_planned(tmp_path, environment):
    log = run("paper_tables.sh", environment, tmp_path, tmp_path / "out", "table2", "--plan")
    assert "21 of 21 commands are ahead: 7 trainings, 7 evaluations" in log
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize(
    ("name", "variables", "arms"),
    [
        ("selective_sft.sh", {}, {"": {"full", "selective", "pruned", "random", "oracle"}}),
        ("selective_sft.sh", {"TRACES": "redundant"}, {"": {"full", "planted", "first_and_last", "support", "random"}}),
        ("compare_measures.sh", {}, {"measures": {"full", "ig mask", "support prune"}, "grid": {"tau 0.7 beta 0.8"}}),
    ],
    ids=["ordinary", "redundant", "measures"],
)
def test_the_short_forms_of_the_sft_comparisons(tmp_path, environment, name, variables, arms):
    """Each arm's row says how many tokens it kept and what it is worth beside full SFT."""
    pytest.importorskip("verl")
    run(name, environment | variables | {"STEPS": "short"}, tmp_path, tmp_path / "out", seconds=2900)
    for folder, wanted in arms.items():
        table = (tmp_path / "out" / folder / "table.md").read_text()
        cells = [[cell.strip() for cell in line.split("|")] for line in table.splitlines()]
        rows = {row[1]: row for row in cells if len(row) > 6}
        assert wanted <= rows.keys()
        for arm in wanted - {"full"}:
            kept = float(rows[arm][4].rstrip("%"))
            assert kept == 100 if "prune" in arm else 0 < kept < 100  # a pruned trace is trained on whole
            assert re.match(r"[+-]\d+\.\d \[", rows[arm][6])

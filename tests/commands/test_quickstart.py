"""`segrl quickstart`: its stages are commands, it goes on where it stopped, and it runs to its page."""

import json
import shutil
import signal
import subprocess
import sys
from importlib.util import find_spec

import pytest
from testkit.pages import read

from segrl import toy
from segrl.commands import quickstart, quickstart_results, quickstart_stages
from segrl.commands.common import SUMMARY, say
from segrl.commands.config import ON_VERL, compose
from segrl.data import load_traces, save_traces, write_rows
from segrl.data.files import write_json
from segrl.types import Trace

PREPARED = ["base-scores", "generate", "harvest", "attribute", "select"]
TRAINED = ["sft", "sft-scores", "grpo", "grpo-scores"]
WHOLE = [*PREPARED, *TRAINED, "mistakes", "explain", "report"]


def stages(*overrides, backend="vllm", trained=True):
    return quickstart_stages.stages_of(compose("quickstart", list(overrides)), backend, trained)


USERS = ["model_path=m", "data_path=p.jsonl", "max_tokens=1024"]
USERS += ["for_sft=optim.lr=1e-6 data.max_length=4096", "for_grpo=method=grail"]


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("given", "on_cpu"), [(["preset=short"], True), (["seed=0"], False), (USERS, True), (USERS, False)]
)
def test_every_stage_is_a_command_that_composes(given, on_cpu, monkeypatch):
    monkeypatch.setattr(quickstart_stages, "on_cpu", lambda: on_cpu)
    planned = stages(*given)
    assert [stage.name for stage in planned] == [name for name in WHOLE if given != USERS or name != "mistakes"]
    for stage in planned:
        if stage.command not in ON_VERL or find_spec("verl"):
            composed = compose(stage.command, list(stage.arguments))
            if given == USERS and stage.name == "sft":
                assert (composed.optim.lr, composed.data.max_length) == (1e-6, 4096)
            if given != USERS and stage.name == "grpo":  # the bundled model has 1,024 positions
                assert composed.actor_rollout_ref.rollout.max_model_len <= 1024
                assert composed.data.max_prompt_length + composed.data.max_response_length <= 1024
            if given == USERS and stage.name == "grpo":
                assert composed.segrl.measure == "grail"


def test_without_verl_nothing_is_trained_and_the_page_has_no_rollouts():
    planned = stages(trained=False, backend="transformers")
    assert [stage.name for stage in planned] == [*PREPARED, "mistakes", "explain", "report"]
    assert not any("rollouts" in argument for argument in planned[-1].arguments)
    assert "backend=transformers" in planned[0].arguments


@pytest.mark.parametrize(
    ("typed", "weighing", "rollouts"),
    [
        ([], [], 1),
        (["for_grpo=method=grail"], ["method=grail"], 1),
        (["for_grpo=segrl.rule=uniform"], ["segrl.rule=uniform"], 0),
    ],
)
def test_grpo_weighs_as_it_is_told_and_the_page_shows_its_rollouts(typed, weighing, rollouts):
    planned = {stage.name: stage.arguments for stage in stages(*typed)}
    assert [one for one in planned["grpo"] if one.startswith(("segrl.rule=", "method="))] == weighing
    assert sum(one.startswith("rollouts=") for one in planned["report"]) == rollouts


def test_the_time_left_is_that_of_the_stages_to_come_on_a_machine_as_slow_as_it_was():
    planned, config = (
        [quickstart_stages.Stage(str(s), "show", [], "", s) for s in (60, 120, 180)],
        compose("quickstart", []),
    )
    assert quickstart.time_left(config, planned, 1, 1.0) == ", about 6 min left"
    assert quickstart.time_left(config, planned, 2, 120.0) == ", about 10 min left"  # twice as slow as planned
    assert quickstart.time_left(config, planned, 3, 1.0) == ", about 3 min left"  # what was done before took no time
    assert quickstart.time_left(compose("quickstart", USERS), planned, 1, 1.0) == ""


def test_the_table_pairs_the_models_by_problem(tmp_path):
    """Three problems of two samples; the base has 1, 0 and 2 right, SFT 2, 1 and 2."""
    for name, right in {"base": (1, 0, 2), "sft": (2, 1, 2)}.items():
        rows = [
            {"problem_id": str(p), "correct": k < count, "gold": "7"} for p, count in enumerate(right) for k in range(2)
        ]
        write_rows(tmp_path / "scores" / name / "samples_problems.jsonl", rows)
    write_json(
        tmp_path / "mistakes" / "truth.json",
        {
            "table": {
                "contrast, prefix gain": {"mistake_top1": {"mean": 0.9}},
                "random": {"mistake_top1": {"mean": 0.14}},
            }
        },
    )
    said = quickstart_results.conclude(tmp_path, [0.25, 0.5])
    lines = said.splitlines()
    assert lines[0] == "| the model | pass@1 of 3 problems | minus as it is | minus the row above |"
    assert lines[2].startswith("| as it is | 50.0% [")
    assert lines[3].startswith("| after SFT | 83.3% [")
    assert lines[3].count("+33.3 points [+0.0, +50.0]") == 2
    [finding] = [line for line in lines if line.startswith("Of planted mistakes attribution finds 90%")]
    assert "a random guess 14%. Here each step is a digit of the answer;" in finding
    assert (tmp_path / "learning.png").stat().st_size > 1000
    assert said.startswith((tmp_path / "results.md").read_text().rstrip())


def test_what_is_missing_is_said(monkeypatch, capsys):
    monkeypatch.setattr(quickstart, "find_spec", lambda name: None)
    without, config = quickstart.missing(), compose("quickstart", [])
    assert without[:3] == ["verl", "ray", "vllm"]
    assert quickstart.sampler(config, without) == "transformers"
    assert not quickstart.trains(without[:3])
    said = capsys.readouterr().out
    assert "vLLM cannot be imported here" in said
    assert "SFT and GRPO are left out: they need verl, ray, vllm" in said
    assert quickstart.sampler(compose("quickstart", ["backend=openai"]), without) == "openai"
    assert quickstart.sampler(config, ["verl"]) == "vllm"


def test_problems_to_learn_from_are_not_those_to_be_tested_on(tmp_path):
    quickstart.write_problems(compose("quickstart", ["problems=5", "test_problems=3"]), tmp_path)
    learnt, tested = (load_traces(tmp_path / f"{name}.jsonl") for name in ("problems", "test"))
    assert (len(learnt), len(tested)) == (5, 3)
    assert not {one.problem for one in learnt} & {one.problem for one in tested}
    again = compose("quickstart", ["problems=5", "test_problems=3", "seed=1"])
    with pytest.raises(
        ValueError, match=r"problems.jsonl holds other problems: seed, problems, test_problems or data_path"
    ):
        quickstart.write_problems(again, tmp_path)
    assert load_traces(tmp_path / "problems.jsonl")[0].problem == learnt[0].problem
    tmp_path = tmp_path / "own"
    save_traces([Trace(f"mine-{i}", f"{i} + 1?", "", str(i + 1)) for i in range(10)], tmp_path / "mine.jsonl")
    mine = [f"data_path={tmp_path / 'mine.jsonl'}", "problems=6"]
    quickstart.write_problems(compose("quickstart", [*mine, "test_problems=4"]), tmp_path)
    learnt, tested = (load_traces(tmp_path / f"{name}.jsonl") for name in ("problems", "test"))
    assert [one.id for one in learnt + tested] == [f"mine-{i}" for i in range(10)]
    with pytest.raises(ValueError, match=r"holds 10 problems; 6 to learn from and 5 to be evaluated on are 11"):
        quickstart.write_problems(compose("quickstart", [*mine, "test_problems=5"]), tmp_path)


def test_a_reader_sees_the_lines_that_matter(tmp_path, monkeypatch, capsys):
    grpo = next(stage for stage in stages() if stage.name == "grpo")
    assert "trainer.logger=[console,file]" in grpo.arguments
    assert quickstart.said(grpo, tmp_path) == []
    monkeypatch.setenv(SUMMARY, str(quickstart.summary_of(grpo, tmp_path)))
    say("GRPO, rule rank, measure ig: 4 steps")
    print("INFO something")
    assert capsys.readouterr().out == "GRPO, rule rank, measure ig: 4 steps\nINFO something\n"
    steps = [{"val-core/acc": 0.5}, {"actor/loss": 0.1, "critic/score/mean": 0.25, "segrl/gap": 0.9}]
    lines = "".join(json.dumps({"step": step, "data": data}) + "\n" for step, data in enumerate(steps))
    quickstart.metrics_of(grpo, tmp_path).write_text(lines + '{"step": 2, "da')  # verl is writing the next
    said = ["GRPO, rule rank, measure ig: 4 steps", "step 1, mean reward 0.250"]
    assert quickstart.said(grpo, tmp_path) == said


def test_what_a_stage_says_after_its_steps_is_shown_once_too(tmp_path, capsys):
    """GRPO names its model behind the last step."""
    stage = quickstart_stages.Stage("grpo", "grpo", [], "", 0)
    summary, metrics = quickstart.summary_of(stage, tmp_path), quickstart.metrics_of(stage, tmp_path)
    summary.write_text("8 steps\n")
    metrics.write_text(json.dumps({"step": 1, "data": {"critic/score/mean": 0.5}}) + "\n")
    late = f"import time; time.sleep(1); open({str(summary)!r}, 'a').write('trained model\\n')"
    with subprocess.Popen([sys.executable, "-c", late]) as process:
        quickstart.follow(process, stage, tmp_path)
    assert capsys.readouterr().out.split("\n    ") == ["    8 steps", "step 1, mean reward 0.500", "trained model\n"]


def test_a_stage_that_fails_ends_it_with_its_own_words(tmp_path, capsys):
    stage = quickstart_stages.Stage("broken", "selct", [], "", 0)
    assert quickstart.run(stage, tmp_path / "logs") == 2
    said = capsys.readouterr().err
    assert "no command is called 'selct'" in said
    assert f"the stage 'broken' failed; all it said: {tmp_path / 'logs' / 'broken.log'}" in said
    assert not quickstart.ended_well(stage, tmp_path / "logs")


def test_a_stage_is_done_until_it_is_another(tmp_path, capsys):
    write_rows(tmp_path / "samples.jsonl", [{"problem_id": str(i), "correct": i > 1, "gold": "7"} for i in range(4)])
    samples = tmp_path / "samples.jsonl"
    stage = quickstart_stages.Stage("compare", "compare", [f"a={samples}", f"b={samples}"], "", 0)
    assert not quickstart.ended_well(stage, tmp_path)
    for _ in range(2):  # what the last run said is not said again
        assert quickstart.run(stage, tmp_path) == 0
        assert quickstart.ended_well(stage, tmp_path)
        [line] = quickstart.said(stage, tmp_path)
        assert "a - b = +0.0 points [" in line
        assert capsys.readouterr().out.startswith(f"    {line}\n")
    assert quickstart.log_of(stage, tmp_path).read_text() == f"{line}\n"
    assert not quickstart.ended_well(stage._replace(arguments=["limit=1"]), tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.skipif(not find_spec("verl"), reason="verl is not installed")
def test_a_model_and_problems_of_ones_own(tmp_path):
    """They happen to be the bundled ones, from another place: nothing of the toy world is filled in."""
    shutil.copytree(toy.MODEL_PATH, tmp_path / "model")
    problems = [{"question": one.problem, "answer": one.answer} for one in toy.sample_problems(16, seed=4)]
    write_rows(tmp_path / "problems.jsonl", problems)
    given = [f"model_path={tmp_path / 'model'}", f"data_path={tmp_path / 'problems.jsonl'}", f"out={tmp_path / 'out'}"]
    command = [sys.executable, "-m", "segrl", "quickstart", "preset=short", "problems=8", "test_problems=8", *given]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=1400, check=True).stdout
    assert "SFT: " in shown
    assert "step 1, mean reward " in shown
    assert (tmp_path / "out" / "report.html").exists()


@pytest.mark.e2e
@pytest.mark.timeout(600)
@pytest.mark.skipif(not find_spec("verl"), reason="verl is not installed")
def test_interrupted_it_goes_on_and_runs_to_its_page(tmp_path):
    command = [sys.executable, "-m", "segrl", "quickstart", "preset=short", f"out={tmp_path}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        for line in process.stdout:
            if line.startswith("    segrl harvest"):
                process.send_signal(signal.SIGTERM)
                break
        rest = process.stdout.read()
    assert process.returncode == 130, rest
    assert "the same command goes on" in rest

    shown = subprocess.run(command, capture_output=True, text=True, timeout=500, check=True).stdout
    assert shown.count("done already") == 2
    dump = (tmp_path / "grpo" / "rollouts" / "1.jsonl").read_text(encoding="utf-8").splitlines()
    weighed = any(json.loads(line)["uniform"] is None for line in dump)  # else no reward of a group differed
    measures = "selections, grpo" if weighed else "selections"
    for words in (
        "vllm",
        "| after GRPO | ",
        "SFT: ",
        "step 1, mean reward ",
        "Of planted mistakes attribution finds ",
        f"rollouts, measures: {measures}, ",
    ):
        assert words in shown
    _, data = read((tmp_path / "report.html").read_text(encoding="utf-8"))
    heads = data["index"]["traces"]
    kept = len(load_traces(tmp_path / "harvest" / "traces.parquet"))
    assert sum("step" not in head for head in heads) == kept
    assert sum("step" in head for head in heads) == 4 * 4  # one step of four prompts, four rollouts each

    again = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    assert again.count("done already") == len(WHOLE)
    assert shown.endswith(again[again.index("| the model |") :])

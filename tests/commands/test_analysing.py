"""`segrl analyze` and `segrl analyze truth` on the bundled model."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from segrl import Trace, segment, toy
from segrl.commands.analysing import _toy_traces
from segrl.commands.cli import main
from segrl.commands.config import compose
from segrl.data import save_traces

QUICK = ["attribution.nodes=2", "attribution.tolerance=null", "limit=2", "shard=1", "seed=3"]


def run(*arguments):
    return main([str(argument) for argument in arguments])


def test_a_mistaken_solver_gives_wrong_solutions_of_the_same_problems():
    traces = _toy_traces(20, seed=3)
    right, wrong = traces[:20], traces[20:]
    by_id = {one.id: one for one in right}
    assert len(wrong) >= 4
    for other in wrong:
        own = by_id[other.meta["problem_id"]]
        assert (other.problem, other.answer) == (own.problem, own.answer)
        assert f"boxed{{{own.answer}}}" in own.response
        assert f"boxed{{{own.answer}}}" not in other.response


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["analyze", "analysis.tau=1.5"], "tau=1.5, expected a number from 0 to 1"),
        (["analyze", "analysis.betas=[0.5,2]"], "beta=2.0, expected a number from 0 to 1"),
        (["analyze", "analysis.gain=much"], "analysis.gain='much', expected one of sampled, probability, nats"),
        (["analyze", "analysis.truncation=judge"], "judge_path"),
        (["analyze", "measure=ig_tokens"], "measure='ig_tokens' scores tokens"),
        (["analyze", "truth", "tau=-1"], "there is no key 'tau'"),
        (["analyze", "truth", "measures=[igg]", "limit=1"], "did you mean 'ig'"),
        (["analyze", "truth", "measure_options={aggregate: sum}"], "measure_options of aggregate would not be read"),
        (["analyze", "measure=surprise", "measure_options.aggregate=x"], "aggregate='x', expected one of sqrt, sum"),
    ],
)
def test_what_cannot_be_is_said_before_the_work(arguments, sentence, tmp_path, capsys):
    assert run(*arguments, f"out={tmp_path}") == 2
    assert sentence in capsys.readouterr().err


def test_truth_wants_planted_kinds(tmp_path, capsys):
    save_traces([Trace(id="x", problem="p", response="a\n\nWait, b", answer="1")], tmp_path / "bare.jsonl")
    assert run("analyze", "truth", f"traces={tmp_path / 'bare.jsonl'}", f"out={tmp_path / 'out'}") == 2
    assert "trace 'x' has no planted kinds" in capsys.readouterr().err


def test_truth_cuts_each_trace_once(tmp_path, monkeypatch):
    cut = []
    monkeypatch.setattr("segrl.worlds.segment", lambda trace, *given: cut.append(trace.id) or segment(trace, *given))
    table = ["world_options={most: 7}", "measures=[length,position]", "limit=2", f"out={tmp_path}"]
    assert run("analyze", "truth", *table) == 0
    assert len(cut) == len(set(cut)) == 2


@pytest.mark.e2e
def test_a_model_that_is_never_right_is_named(tmp_path, capsys):
    wrong = Trace(id="x", problem="p", response="a\n\nWait, b</think> \\boxed{2}", answer="1")
    save_traces([wrong], tmp_path / "wrong.jsonl")
    assert run("analyze", f"traces={tmp_path / 'wrong.jsonl'}", f"out={tmp_path / 'out'}", *QUICK) == 2
    assert "none of 1 traces is right (verdicts: numeric)" in capsys.readouterr().err


@pytest.mark.e2e
def test_an_analysis_that_was_killed_goes_on_and_ends_the_same(tmp_path, capsys):
    command = ["analyze", *QUICK, "preset=paper"]
    killed = subprocess.Popen(
        [sys.executable, "-m", "segrl", *command, f"out={tmp_path / 'killed'}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    first = tmp_path / "killed" / "traces" / "part-00000.parquet"
    for _ in range(1200):
        if first.exists() or killed.poll() is not None:
            break
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    written = first.stat().st_mtime_ns
    assert run(*command, f"out={tmp_path / 'killed'}") == 0
    assert first.stat().st_mtime_ns == written
    assert run(*command, f"out={tmp_path / 'whole'}") == 0
    found, expected = (json.loads((tmp_path / name / "analysis.json").read_text()) for name in ("killed", "whole"))
    assert found == expected
    assert found["settings"] == {"tau": 0.8, "beta": 0.95, "gain": "sampled"}
    assert found["gain"]["sampled"]["important"] is not None
    assert found["truncated"]["important"] is not None
    assert (tmp_path / "whole" / "figure_4.svg").stat().st_size > 10_000
    assert "of segments hold 80% of the attribution" in capsys.readouterr().out
    assert run(*command, "template=plain", f"out={tmp_path / 'whole'}") == 2
    assert "holds the beginning of another job: template was 'chat', now 'plain'" in capsys.readouterr().err


@pytest.mark.e2e
def test_thoughts_are_judged_by_a_model_in_two_rounds(tmp_path, capsys):
    """The bundled model knows nothing of the question: that it is asked, and asked again, is what is seen here."""
    bare = [Trace(id=one.id, problem=one.problem, response=one.response, answer=one.answer)
            for one in toy.sample_traces(2, seed=3)]  # fmt: skip
    save_traces(bare, tmp_path / "traces.parquet")
    asked = [
        f"judge_path={toy.MODEL_PATH}",
        "generation.max_tokens=4",
        "second_round.max_tokens=16",
        "generation.batch=8",
    ]
    command = ["analyze", *QUICK, *asked, f"traces={tmp_path / 'traces.parquet'}", f"out={tmp_path / 'out'}"]
    assert run(*command) == 0
    said = capsys.readouterr().out
    assert "in a second round" in said
    assert "no trace is wrong" in said
    first, second = (
        json.loads((tmp_path / "out" / "judge" / name / "settings.json").read_text()) for name in ("first", "second")
    )
    # [IG] appendix B, but for the budget of the first round, which is given here.
    sampled = ("temperature", "top_p", "repetition_penalty", "max_tokens")
    assert [first[name] for name in sampled] == [0.2, 0.7, 1.1, 4]
    assert [second[name] for name in sampled] == [0.1, 0.7, 1.1, 16]
    assert compose("analyze", []).generation.max_tokens == 2000
    assert compose("analyze", []).second_round.max_tokens == 1000

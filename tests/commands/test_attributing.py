"""A long attribution that is killed and started again ends as if it had not been."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest
from testkit.tiny import byte_level_tokenizer, tiny_model

from segrl import Trace
from segrl.commands.cli import main
from segrl.data import read_rows, save_traces
from segrl.data.shards import read_shards

TRACES = 24


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """A saved model, traces and the overrides of the command; one trace has no answer."""
    folder = tmp_path_factory.mktemp("job")
    tiny_model().save_pretrained(folder / "model")
    byte_level_tokenizer().save_pretrained(folder / "model")
    texts = [f"Okay, 3 + 4.\n\nWait,{' 1' * i} it is 7.\n</think> \\boxed{{7}}" for i in range(TRACES)]
    answers = ["7"] * (TRACES - 1) + [None]
    made = [Trace(f"t{i}", "3+4?", text, answer) for i, (text, answer) in enumerate(zip(texts, answers, strict=True))]
    save_traces(made, folder / "traces.parquet")
    nodes = ["attribution.nodes=40", "attribution.tolerance=null", "shard=2", "device=cpu"]
    return [f"attributor_path={folder / 'model'}", f"traces={folder / 'traces.parquet'}", *nodes]


@pytest.fixture(scope="module")
def uninterrupted(job, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "out"
    assert main(["attribute", *job, f"out={out}"]) == 0
    return read_shards(out)


def started(job, out, *more):
    command = [sys.executable, "-m", "segrl", "attribute", *job, f"out={out}", *more]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def shards(out):
    return len(list(out.glob("part-*.parquet")))


def kill_at(job, out, count, *more):
    """SIGKILL the whole process group once so many shards stand."""
    process = started(job, out, *more)
    deadline = time.monotonic() + 120
    while shards(out) < count and process.poll() is None:
        assert time.monotonic() < deadline, "no progress in two minutes"
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)


def finish(job, out, *more):
    process = started(job, out, *more)
    shown, _ = process.communicate(timeout=240)
    assert process.returncode == 0, shown[-3000:]
    return shown


def test_every_trace_gives_one_row_and_the_one_without_answer_says_why(uninterrupted):
    assert [row["id"] for row in uninterrupted] == [f"t{i}" for i in range(TRACES)]
    assert [row["error"] is None for row in uninterrupted] == [True] * (TRACES - 1) + [False]
    assert "has no gold answer" in uninterrupted[-1]["error"]
    assert all(row["evaluations"] == 42 for row in uninterrupted[:-1])


@pytest.mark.e2e
def test_killed_three_times_the_rows_are_those_of_an_uninterrupted_run(job, uninterrupted, tmp_path):
    out, draw = tmp_path / "out", random.Random(7)
    for count in sorted(draw.sample(range(1, TRACES // 2), 3)):
        kill_at(job, out, count)
        assert all(read_rows(part) for part in out.glob("part-*.parquet"))  # each shard is whole
    assert shards(out) < TRACES // 2
    finish(job, out)
    assert read_shards(out) == uninterrupted


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_on_ray_the_rows_are_the_same(job, uninterrupted, tmp_path):
    out = tmp_path / "out"
    ray = ["executor=ray", "workers=2"]
    for count in (1, 4, 9):
        kill_at(job, out, count, *ray)
    finish(job, out, *ray)
    rows = read_shards(out)
    assert [row["id"] for row in rows] == [row["id"] for row in uninterrupted]
    for row, expected in zip(rows, uninterrupted, strict=True):
        assert row["error"] == expected["error"]
        assert row["scores"] == pytest.approx(expected["scores"], rel=1e-4, abs=1e-6)


def test_another_job_may_not_go_on_in_the_same_folder(job, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["attribute", *job, f"out={out}", "limit=2"]) == 0
    before = read_shards(out)
    assert main(["attribute", *job, f"out={out}", "limit=2", "attribution.nodes=4"]) == 2
    assert "holds the beginning of another job: nodes was 40, now 4" in capsys.readouterr().err
    assert main(["attribute", *job, f"out={out}"]) == 2
    assert read_shards(out) == before


def test_an_unknown_executor_is_a_sentence(job, tmp_path, capsys):
    assert main(["attribute", *job, f"out={tmp_path / 'out'}", "executor=spark"]) == 2
    assert "executor='spark', expected one of ('auto', 'local', 'ray')" in capsys.readouterr().err

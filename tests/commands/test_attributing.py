"""Long attributions and scorings that are killed and started again end as if they had not been."""

import os
import random
import signal
import subprocess
import sys
import time
from typing import NamedTuple

import pytest
from testkit.tiny import byte_level_tokenizer, tiny_model

from segrl import Trace
from segrl.commands.cli import main
from segrl.data import read_rows, save_traces
from segrl.data.shards import read_shards

TRACES = 24
# `out` and the folder of shards; by shapley 7 thoughts have 128 coalitions, of which 40 are drawn at random.
PLACES = {"attribute": ("out", "out"), "select": ("out.parquet", "out.scores")}
OPTIONS = {
    "attribute": ["attribution.nodes=40", "attribution.tolerance=null"],
    "select": ["measure=shapley", "evidence.forwards=40"],
}


class Job(NamedTuple):
    command: str
    arguments: list[str]

    def words(self, folder, *more):
        return [self.command, *self.arguments, f"out={folder / PLACES[self.command][0]}", *more]

    def rows(self, folder):
        return read_shards(folder / PLACES[self.command][0])

    def parts(self, folder):
        return list((folder / PLACES[self.command][1]).glob("part-*.parquet"))


@pytest.fixture(scope="module", params=OPTIONS)
def job(request, tmp_path_factory):
    """A command on a saved model and traces, of which one has no answer."""
    folder = tmp_path_factory.mktemp("job")
    tiny_model().save_pretrained(folder / "model")
    byte_level_tokenizer().save_pretrained(folder / "model")
    middle = "\n\nWait, it is 7." * 5
    texts = [f"Okay, 3 + 4.{middle}\n\nWait,{' 1' * i} yes.\n</think> \\boxed{{7}}" for i in range(TRACES)]
    answers = ["7"] * (TRACES - 1) + [None]
    made = [Trace(f"t{i}", "3+4?", text, answer) for i, (text, answer) in enumerate(zip(texts, answers, strict=True))]
    save_traces(made, folder / "traces.parquet")
    given = [f"attributor_path={folder / 'model'}", f"traces={folder / 'traces.parquet'}", "shard=2", "device=cpu"]
    return Job(request.param, [*given, *OPTIONS[request.param]])


@pytest.fixture(scope="module")
def uninterrupted(job, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    assert main(job.words(folder)) == 0
    return job.rows(folder)


def started(job, folder, *more):
    command = [sys.executable, "-m", "segrl", *job.words(folder, *more)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def kill_at(job, folder, count, *more):
    """SIGKILL the whole process group once so many shards stand."""
    process = started(job, folder, *more)
    deadline = time.monotonic() + 120
    while len(job.parts(folder)) < count and process.poll() is None:
        assert time.monotonic() < deadline, "no progress in two minutes"
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)


def finish(job, folder, *more):
    process = started(job, folder, *more)
    shown, _ = process.communicate(timeout=240)
    assert process.returncode == 0, shown[-3000:]
    return shown


def test_every_trace_gives_one_row_and_the_one_without_answer_says_why(job, uninterrupted):
    assert [row["id"] for row in uninterrupted] == [f"t{i}" for i in range(TRACES)]
    assert [row["error"] is None for row in uninterrupted] == [True] * (TRACES - 1) + [False]
    assert "has no gold answer" in uninterrupted[-1]["error"]
    if job.command == "attribute":
        assert all(row["evaluations"] == 42 for row in uninterrupted[:-1])
    else:
        assert all(any(row["strength"]) and any(row["keep"]) for row in uninterrupted[:-1])
        assert not any([*uninterrupted[-1]["strength"], *uninterrupted[-1]["keep"]])


@pytest.mark.e2e
def test_killed_three_times_the_rows_are_those_of_an_uninterrupted_run(job, uninterrupted, tmp_path):
    draw = random.Random(7)
    for count in sorted(draw.sample(range(1, TRACES // 2), 3)):
        kill_at(job, tmp_path, count)
        assert all(read_rows(part) for part in job.parts(tmp_path))  # each shard is whole
    assert count <= len(job.parts(tmp_path)) < TRACES // 2
    finish(job, tmp_path)
    assert job.rows(tmp_path) == uninterrupted


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_on_ray_the_rows_are_the_same(job, uninterrupted, tmp_path):
    ray = ["executor=ray", "workers=2"]
    for count in (1, 4, 9):
        kill_at(job, tmp_path, count, *ray)
    finish(job, tmp_path, *ray)
    rows, numbers = job.rows(tmp_path), "scores" if job.command == "attribute" else "strength"
    assert [row["id"] for row in rows] == [row["id"] for row in uninterrupted]
    for row, expected in zip(rows, uninterrupted, strict=True):
        assert row["error"] == expected["error"]
        assert row[numbers] == pytest.approx(expected[numbers], rel=1e-4, abs=1e-6)


def test_another_job_may_not_go_on_in_the_same_folder(job, tmp_path, capsys):
    assert main(job.words(tmp_path, "limit=2")) == 0
    before = job.rows(tmp_path)
    key, named = ("attribution.nodes", "nodes") if job.command == "attribute" else ("evidence.forwards",) * 2
    assert main(job.words(tmp_path, "limit=2", f"{key}=20")) == 2
    assert f"holds the beginning of another job: {named} was 40, now 20" in capsys.readouterr().err
    assert main(job.words(tmp_path, "limit=2", "attribution.batch_tokens=900", "attribution.checkpointing=true")) == 0
    assert main(job.words(tmp_path)) == 2
    assert job.rows(tmp_path) == before


def test_an_unknown_executor_is_a_sentence(job, tmp_path, capsys):
    assert main(job.words(tmp_path, "executor=spark")) == 2
    assert "executor='spark', expected one of ('auto', 'local', 'ray')" in capsys.readouterr().err

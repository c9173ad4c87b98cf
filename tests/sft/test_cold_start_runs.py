"""A whole cold start, killed in each of its parts and started again, ends with the masks of one that was not."""

import random
import re
import signal
import sys
import time

import pytest
from testkit.composed import changed
from testkit.runs import bounded, end_marked, marked, send, started
from transformers import AutoModelForCausalLM, AutoTokenizer

pytest.importorskip("verl")

from segrl import toy
from segrl.commands.cold_start import select_here
from segrl.data import save_traces
from segrl.sft.dataset import SelectiveDataset, load_examples
from segrl.sft.stages import TRACKER

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

SETTINGS = ["shard=2", "device=cpu", "attribution.nodes=30", "attribution.tolerance=null", "data.train_batch_size=4"]
SETTINGS += ["trainer.total_epochs=2", "trainer.save_freq=1"]
SHARDS, STEPS = 4, 4  # of 8 traces


class ColdStart:
    """The command, what of it stands in its folder, and the log of each start."""

    def __init__(self, folder, environment):
        save_traces(toy.sample_traces(8, seed=7), folder / "traces.jsonl")
        self.folder, self.out, self.environment, self.logs = folder, folder / "out", environment, 0
        given = [f"traces={folder / 'traces.jsonl'}", f"out={self.out}", *SETTINGS]
        self.command = [sys.executable, "-m", "segrl", "sft", "preset=toy_cpu", *given]

    def shards(self) -> dict[str, int]:
        return {part.name: part.stat().st_mtime_ns for part in (self.out / "selections.scores").glob("part-*.parquet")}

    def selected(self) -> bytes:
        file = self.out / "selections.jsonl"
        return file.read_bytes() if file.exists() else b""

    def saved(self) -> int:
        tracker = self.out / "checkpoints" / "stage-1" / TRACKER
        return int(tracker.read_text() or 0) if tracker.exists() else 0

    def next_log(self):
        self.logs += 1
        return self.folder / f"log-{self.logs}"

    def killed_when(self, reached, delay: float) -> str:
        """The log of a start that is ended without warning, with all that it started, once ``reached()`` is true."""
        log, deadline = self.next_log(), time.monotonic() + 400
        with started(self.command, self.environment, log) as (process, mark):
            while not reached():
                assert process.poll() is None, log.read_text()[-3000:]
                assert time.monotonic() < deadline, log.read_text()[-3000:]
                time.sleep(0.002)
            time.sleep(delay)
            send(signal.SIGKILL, marked(mark))
            end_marked(mark, signal.SIGKILL)
        return log.read_text()


def steps(log: str) -> list[int]:
    return [int(step) for step in re.findall(r"step:(\d+) - ", log)]


def unkilled_examples(folder):
    """The rows and masks of the same traces, attributed and selected in this process and in one go."""
    config = changed("sft", "toy_cpu", f"traces={folder / 'traces.jsonl'}", f"out={folder / 'whole'}", *SETTINGS)
    select_here(config)
    tokenizer = AutoTokenizer.from_pretrained(toy.MODEL_PATH)
    return SelectiveDataset(config.data.train_files, tokenizer, config.data).examples


def test_killed_at_five_moments_a_cold_start_ends_with_the_same_masks(tmp_path, plain_environment):
    run, draw = ColdStart(tmp_path, plain_environment), random.Random()
    kept: dict[str, int] = {}
    for least in (1, draw.choice((2, 3))):  # twice while it attributes
        run.killed_when(lambda least=least: len(run.shards()) >= least, draw.uniform(0, 0.2))
        assert kept.items() <= run.shards().items()
        kept = run.shards()
        assert not run.saved()
    run.killed_when(lambda: len(run.shards()) == SHARDS, draw.uniform(0, 0.05))  # while it selects
    assert kept.items() <= run.shards().items()
    shards = run.shards()
    log = run.killed_when(lambda: run.saved() >= 1, draw.uniform(0, 0.5))  # while it trains
    selected, done = run.selected(), run.saved()
    assert selected
    assert steps(log)[:1] == [1]
    assert not (run.out / "model").exists()
    log = run.killed_when(lambda: run.saved() == STEPS, draw.uniform(0, 3))  # while it exports
    assert f"going on after step {done}" in log
    assert steps(log) == list(range(done + 1, STEPS + 1))
    log = bounded(run.command, plain_environment, 400, run.next_log())
    assert not steps(log)
    assert run.shards() == shards  # not one was written twice
    assert run.selected() == selected  # made again from them, the same
    AutoModelForCausalLM.from_pretrained(run.out / "model")
    examples = load_examples(run.out / "stage-1.safetensors")
    for ours, whole in zip(examples, unkilled_examples(tmp_path), strict=True):
        assert ours.ids_L.tolist() == whole.ids_L.tolist()
        assert ours.mask_L.tolist() == whole.mask_L.tolist()

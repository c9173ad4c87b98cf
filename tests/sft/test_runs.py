"""Whole trainings on verl: ranks, stages, SIGKILL and adapters change nothing but what they should."""

import os
import re
import sys
from pathlib import Path

import pytest

pytest.importorskip("verl")

import torch
from testkit.runs import bounded, killed_after
from transformers import AutoModelForCausalLM, AutoTokenizer

from segrl import toy
from segrl.data import save_traces, write_rows

pytestmark = pytest.mark.slow

KILLED_AFTER = {"inside an epoch": 1, "at the end of an epoch": 2}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """20 traces, two steps of 8 an epoch, and half of their segments kept."""
    folder = tmp_path_factory.mktemp("data")
    traces = toy.sample_traces(20, seed=7)
    save_traces(traces, folder / "traces.jsonl")
    write_rows(folder / "selections.parquet", list(alternating(traces)))
    return folder


def alternating(traces):
    import segrl
    from segrl.data.records import selection_row
    from segrl.importance import from_strength

    tokenizer = AutoTokenizer.from_pretrained(toy.MODEL_PATH)
    for trace in traces:
        trace = segrl.tokenize(trace, tokenizer)
        segments = segrl.segment(trace)
        keep_S = torch.arange(len(segments)) % 2 == 0
        selection = segrl.Selection(keep_S, tuple("forced" if one else "dropped" for one in keep_S.tolist()))
        yield selection_row(trace, segments, from_strength(keep_S.double(), segments), selection)


def command(data: Path, out: Path, *overrides: str) -> list[str]:
    given = [f"traces={data / 'traces.jsonl'}", f"selections={data / 'selections.parquet'}", f"out={out}"]
    sizes = ["data.train_batch_size=8", "trainer.total_epochs=2", "data.max_token_len_per_gpu=1024"]
    return [sys.executable, "-m", "segrl", "sft", "preset=toy_cpu", *given, *sizes, *overrides]


def losses(log: str) -> dict[int, float]:
    return {int(step): float(loss) for step, loss in re.findall(r"step:(\d+) - .*?train/loss:([\d.e-]+)", log)}


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """One rank, never interrupted: what the others are held against."""
    folder = tmp_path_factory.mktemp("whole")
    log = bounded(command(data, folder / "out"), dict(os.environ), 400, folder / "log")
    assert list(losses(log)) == [1, 2, 3, 4]
    return losses(log), folder / "out"


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "overrides", [["nproc=2"], ["data.max_token_len_per_gpu=4096"]], ids=["2 ranks", "micro-batches"]
)
def test_neither_ranks_nor_micro_batches_change_the_loss(data, whole, tmp_path, plain_environment, overrides):
    log = bounded(command(data, tmp_path / "out", *overrides), plain_environment, 400, tmp_path / "log")
    assert losses(log) == pytest.approx(whole[0], abs=1e-5)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("when", KILLED_AFTER)
def test_a_killed_training_goes_on_as_if_nothing_had_been(data, whole, tmp_path, plain_environment, when):
    entry = command(data, tmp_path / "out", "trainer.save_freq=1")
    tracker = tmp_path / "out" / "checkpoints" / "stage-1" / "latest_checkpointed_iteration.txt"
    killed_after(entry, plain_environment, tmp_path / "first", tracker, KILLED_AFTER[when])
    first = (tmp_path / "first").read_text()
    log = bounded(entry, plain_environment, 400, tmp_path / "log")
    assert f"going on after step {KILLED_AFTER[when]}" in log
    assert min(losses(log)) == KILLED_AFTER[when] + 1
    assert losses(first) | losses(log) == pytest.approx(whole[0], abs=1e-5)
    again = bounded(entry, plain_environment, 100, tmp_path / "again")
    assert "stage 1 is trained already" in again
    parameters = [
        AutoModelForCausalLM.from_pretrained(out / "model").parameters() for out in (whole[1], tmp_path / "out")
    ]
    for a, b in zip(*parameters, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


@pytest.mark.timeout(900)
def test_two_stages_with_adapters_make_a_plain_model(data, tmp_path, plain_environment):
    stages = "stages=[{mode: full, epochs: 1, lr: 1e-2}, {mode: selective, epochs: 1, lr: 1e-2}]"
    entry = command(data, tmp_path / "out", stages, "model.lora_rank=4", "model.lora_alpha=8")
    log = bounded(entry, plain_environment, 500, tmp_path / "log")
    assert log.index("plan: 1.02 million parameters on this machine") < log.index("stage 1, full SFT")
    assert "stage 2, selective SFT" in log
    base = toy.load_model()[0].state_dict()
    one, two = (AutoModelForCausalLM.from_pretrained(tmp_path / "out" / name) for name in ("model-1", "model"))
    assert one.state_dict().keys() == two.state_dict().keys() == base.keys()
    changed = {name for name in base if not torch.equal(base[name], two.state_dict()[name])}
    assert changed == {name for name in base if "_proj.weight" in name}
    assert any(not torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))

"""A curriculum under verl's own loading of data: real rows, real loader, the checkpoint's bytes; no Ray."""

import io

import pytest
import torch
from testkit.composed import changed

pytest.importorskip("verl")

from transfer_queue import KVBatchMeta

from segrl import toy
from segrl.credit.checks import check_supported
from segrl.data import write_verl_parquet
from segrl.loading import load_tokenizer
from segrl.verl import queue as queue_module
from segrl.verl.sampler import ROW, Numbered, passed_in
from segrl.verl.trainer import SegmentTrainerSync

ROWS, BATCH = 14, 4  # not a multiple: verl's own sampler would leave two rows of every epoch out


@pytest.fixture
def trainer(tmp_path):
    """A trainer of which verl's own code makes the loader, and nothing else is there."""
    path = tmp_path / "rows.parquet"
    write_verl_parquet(toy.sample_problems(ROWS, seed=5), path, "toy", "train")

    def make(**curriculum) -> SegmentTrainerSync:
        config = changed("grpo", "toy_cpu", f"out={tmp_path}", f"model_path={toy.MODEL_PATH}")
        config.data.train_files = config.data.val_files = str(path)
        config.data.train_batch_size, config.data.dataloader_num_workers = BATCH, 2
        config.segrl = {"curriculum": curriculum}
        made = object.__new__(SegmentTrainerSync)
        made.config, made.settings, made.curriculum = config, check_supported(config), None
        made.tokenizer, made.processor = load_tokenizer(str(toy.MODEL_PATH)), None
        made.trainer_mode, made.parameter_sync_step, made.global_steps = "sync", 1, 1
        made._init_dataloader()
        return made

    return make


def saved(trainer) -> bytes:
    """As verl's trainer writes ``data.pt``."""
    file = io.BytesIO()
    torch.save(trainer.train_dataloader.state_dict(), file)
    return file.getvalue()


def step(trainer, number: int) -> list[int]:
    """Fetch a batch as verl does; its rows, of which the trainer is then told results."""
    rows = [int(row) for row in trainer._next_train_batch()[ROW]]
    trainer.curriculum.observe({row: min(1.0, (row % 5) / 8 + 0.05 * number) for row in rows}, number)
    return rows


@pytest.mark.parametrize(
    "arm",
    [
        {"order": "easy_to_hard", "drop_solved": 0.7},
        {"order": "shuffled", "convergence": "gaussian", "convergence_step": 5, "drop_solved": 0.7},
    ],
    ids=["one phase", "two phases"],
)
def test_from_every_checkpoint_verls_loader_goes_on_as_if_never_interrupted(trainer, arm):
    run = trainer(**arm)
    checkpoints, steps = [saved(run)], []
    for number in range(1, 11):
        steps.append(step(run, number))
        checkpoints.append(saved(run))
    assert {row for rows in steps for row in rows} == set(range(ROWS))
    end = run.curriculum.metrics()
    assert 0 < end["segrl/solved_share"] < 1
    for done, checkpoint in enumerate(checkpoints):
        resumed = trainer(**arm)
        resumed.train_dataloader.load_state_dict(torch.load(io.BytesIO(checkpoint), weights_only=False))
        assert [step(resumed, number) for number in range(done + 1, 11)] == steps[done:], done
        if done < 10:  # a loader takes its state in with its first batch
            assert resumed.curriculum.metrics() == end


def test_a_checkpoint_before_the_first_batch_of_a_run_that_goes_on_keeps_what_was_known(trainer):
    run = trainer(order="gaussian")
    step(run, 1)
    checkpoint = saved(run)
    again = trainer(order="gaussian")
    again.train_dataloader.load_state_dict(torch.load(io.BytesIO(checkpoint), weights_only=False))
    twice = trainer(order="gaussian")
    twice.train_dataloader.load_state_dict(torch.load(io.BytesIO(saved(again)), weights_only=False))
    assert step(twice, 2) == step(run, 2)


def test_rows_reach_verl_with_their_number_and_workers_do_not_draw_ahead(trainer):
    run = trainer(order="shuffled")
    batch = run._next_train_batch()
    assert run.train_dataloader.num_workers == 0
    assert len(run.curriculum.waiting) == ROWS - BATCH
    for row, prompt in zip(batch[ROW], batch["raw_prompt"], strict=True):
        assert run.train_dataset[int(row)]["raw_prompt"] == prompt
    assert len(Numbered(run.train_dataset)) == ROWS


def test_without_a_curriculum_the_loader_is_verls_own(trainer):
    run = trainer()
    assert run.curriculum is None
    assert run.train_dataloader.num_workers == 2
    assert run.train_dataloader.dataset is run.train_dataset


class Queue:
    """The TransferQueue's reading function over a dict of columns."""

    def __init__(self, rows):
        self.rows = rows

    def kv_batch_get(self, keys, partition_id, select_fields):
        return {name: Column([self.rows[key][name] for key in keys]) for name in select_fields}


class Column(list):
    def unbind(self):
        return self


def rollout(row, reward, acc=None):
    info = {} if acc is None else {"reward_extra_info": {"acc": acc}}
    return {ROW: row, "rm_scores": torch.tensor([0.0, reward]), "extra_fields": info}


def test_pass_rates_come_from_acc_or_the_reward_by_row_without_padding(monkeypatch):
    rows = {
        "a_0_0": rollout(3, 1.0),
        "a_1_0": rollout(3, 0.2),
        "b_0_0": rollout(8, -0.5, acc=1.0),  # right, and longer than the reward likes
        "b_1_0": rollout(8, 0.6, acc=0.0),  # wrong, and the reward likes its form
        "b_1_1": rollout(8, 0.6, acc=0.0),  # the same session's second turn
        "b_2_0": rollout(8, 0.6, acc=False),
        "c_0_0": rollout(5, 1.0),  # padding
    }
    monkeypatch.setattr(queue_module, "tq", Queue(rows))
    tags = [{"is_padding": key == "c_0_0"} for key in rows]
    batch = KVBatchMeta(partition_id="train", keys=list(rows), tags=tags)
    assert passed_in(batch, 0.5) == {3: 0.5, 8: pytest.approx(1 / 3)}
    assert passed_in(batch, 0.1)[3] == 1.0


def test_results_of_a_step_reach_the_curriculum_before_the_next_draw(trainer, monkeypatch):
    """With `rule=uniform` too, which reads nothing else of the rollouts."""
    from verl.trainer.ppo.v1 import PPOTrainerSync

    run = trainer(order="gaussian", convergence="easy_to_hard", convergence_entropy=0.3)
    run.settings.rule = "uniform"
    monkeypatch.setattr(PPOTrainerSync, "_compute_advantage", lambda self, batch, metrics: batch)
    monkeypatch.setattr(queue_module, "tq", Queue({"a_0_0": rollout(3, 1.0), "a_1_0": rollout(3, 0.0)}))
    batch = KVBatchMeta(partition_id="train", keys=["a_0_0", "a_1_0"], tags=[{}, {}])
    metrics = {"actor/entropy": 0.2}
    run._compute_advantage(batch, metrics)
    assert metrics == {
        "actor/entropy": 0.2,
        "segrl/pass_rate_mean": 0.5,
        "segrl/seen_share": pytest.approx(1 / ROWS),
        "segrl/phase": 1.0,
    }


def test_what_a_curriculum_cannot_be_told_is_refused():
    config = changed("grpo", None, "out=x")
    config.segrl = {"curriculum": {"order": "gaussian"}}
    config.algorithm.filter_groups = {"enable": True, "metric": "acc"}
    with pytest.raises(ValueError, match=r"algorithm\.filter_groups\.enable=true removes the groups that are always"):
        check_supported(config)
    config.algorithm.filter_groups = None
    check_supported(config)
    config.algorithm.rollout_correction = {"bypass_mode": True}
    given = {"order": "gaussian", "convergence": "shuffled", "convergence_entropy": 0.2}
    config.segrl = {"curriculum": given}
    with pytest.raises(ValueError, match=r"convergence_entropy=0\.2 reads what verl computes"):
        check_supported(config)

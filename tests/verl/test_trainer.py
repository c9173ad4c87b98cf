"""The step between verl's advantages and its update, with stand-ins for Ray and the TransferQueue."""

import json

import pytest
import torch
from tiny import byte_level_tokenizer

pytest.importorskip("verl")

from transfer_queue import KVBatchMeta
from verl.trainer.ppo.utils import Role

from segrl.config import compose
from segrl.verl import trainer as trainer_module
from segrl.verl.launch import editable
from segrl.verl.trainer import SegmentCredit, fill_up
from segrl.verl.worker import Attributing, explained_traces

TOKENIZER = byte_level_tokenizer()
THINKING = "3 + 4 = 7.\n\nWait, so 7.\n\nHowever, 7.\n"
ADVANTAGES = {"right": 0.5, "wrong": -0.5, "silent": 0.5, "equal": 0.0, "padding": 0.5}
RESPONSES = dict.fromkeys(ADVANTAGES, THINKING + "</think> \\boxed{7}") | {"silent": THINKING}


class Queue:
    """The TransferQueue's two functions that are used, over a dict."""

    def __init__(self):
        self.rows = {}
        prompt_ids = torch.tensor(TOKENIZER("Q")["input_ids"])
        for key, advantage in ADVANTAGES.items():
            ids = torch.tensor(TOKENIZER(RESPONSES[key])["input_ids"])
            self.rows[key] = {
                "prompts": prompt_ids,
                "responses": ids,
                "response_mask": torch.ones(len(ids)),
                "advantages": torch.full((len(ids),), advantage),
            }

    def kv_batch_get(self, keys, partition_id, select_fields):
        return {name: Column([self.rows[key][name] for key in keys]) for name in select_fields}

    def kv_batch_put(self, keys, partition_id, fields):
        for name, column in fields.items():
            for key, value in zip(keys, column.unbind(), strict=True):
                self.rows[key][name] = value


class Column(list):
    def unbind(self):
        return self


class Actor:
    """A worker group whose attribution is the token's position, and which remembers what it was asked for."""

    def __init__(self, queue, ranks=1):
        self.queue, self._dispatch_info, self.asked = queue, {"actor": list(range(ranks))}, []

    def compute_segrl_scores(self, batch):
        self.asked.append(batch)
        for key in batch.keys:
            tokens = len(self.queue.rows[key]["responses"])
            self.queue.rows[key] |= {
                "segrl_scores": torch.arange(tokens).float(),
                "segrl_gap": torch.tensor(0.1),
                "segrl_copy_share": torch.tensor(0.2),
            }


class Base:
    """What the mixin expects of verl's trainer."""

    def __init__(self, config):
        self.config, self.tokenizer, self.global_steps, self.timing_raw = config, TOKENIZER, 1, {}
        self.replay_buffer = type("ReplayBuffer", (), {})()

    def _init_resource_pool_mgr(self):
        self.role_worker_mapping = {Role.ActorRollout: type("Remote", (), {"__ray_actor_class__": object})}

    def _compute_advantage(self, batch, metrics):
        return batch


class Trainer(SegmentCredit, Base):
    base_mode = "sync"


@pytest.fixture
def make(monkeypatch):
    def make(ranks=1, **segrl):
        queue = Queue()
        monkeypatch.setattr(trainer_module, "tq", queue)
        config = editable(compose("grpo", []))
        config.segrl = segrl
        trainer = Trainer(config)
        trainer.actor_rollout_wg = Actor(queue, ranks)
        return trainer, queue

    return make


def step(trainer):
    tags = [{"seq_len": len(RESPONSES[key]), "is_padding": key == "padding"} for key in ADVANTAGES]
    metrics = {}
    trainer._compute_advantage(KVBatchMeta(keys=list(ADVANTAGES), tags=tags, partition_id="train"), metrics)
    return metrics


def test_only_the_answered_response_with_an_advantage_is_attributed_and_weighted(make):
    trainer, queue = make()
    before = {key: row["advantages"].clone() for key, row in queue.rows.items()}
    metrics = step(trainer)
    assert [batch.keys for batch in trainer.actor_rollout_wg.asked] == [["right"]]
    for key in set(ADVANTAGES) - {"right"}:
        assert torch.equal(queue.rows[key]["advantages"], before[key])
    after = queue.rows["right"]["advantages"]
    assert after.mean() == pytest.approx(0.5)
    assert len(after.unique()) > 1
    # The positions grow, so the thoughts' strengths do too: the last thought weighs 1.2 / 0.8 of the first.
    thinking = len(TOKENIZER(THINKING)["input_ids"])
    assert after[thinking - 1] / after[0] == pytest.approx(1.2 / 0.8)
    assert metrics["segrl/attributed_share"] == 0.25


def test_uniform_is_plain_grpo_bit_for_bit(make):
    trainer, queue = make(rule="uniform")
    before = {key: row["advantages"].clone() for key, row in queue.rows.items()}
    assert step(trainer) == {}
    assert trainer.actor_rollout_wg.asked == []
    assert all(torch.equal(queue.rows[key]["advantages"], before[key]) for key in before)


def test_every_rank_gets_as_many_rows(make):
    trainer, _ = make(ranks=2)
    step(trainer)
    [asked] = trainer.actor_rollout_wg.asked
    assert len(asked.keys) == 2
    assert "right" in asked.keys  # the other one is there to keep the second rank company


def test_filling_up_by_hand():
    assert fill_up(["a", "b", "c"], ["a", "b", "c", "d"], 2) == ["a", "b", "c", "d"]
    assert fill_up(["a", "b"], ["a", "b", "c", "d"], 2) == ["a", "b"]
    assert fill_up(["b"], ["a", "b", "c", "d"], 4) == ["b", "a", "c", "d"]


def test_the_dump_holds_the_advantages_that_were_written(make, tmp_path):
    trainer, queue = make(dump_dir=str(tmp_path / "dump"))
    step(trainer)
    [line] = [json.loads(line) for line in (tmp_path / "dump" / "1.jsonl").read_text().splitlines()]
    assert line["key"] == "right"
    assert line["advantages"] == queue.rows["right"]["advantages"].tolist()
    assert line["advantages"] == pytest.approx([line["advantage"] * weight for weight in line["weights"]])


def test_the_trainer_passes_for_its_base_and_waits_as_it_is_told(make):
    trainer, _ = make(poll_seconds=0.1)
    assert trainer.config.trainer.v1.trainer_mode == "sync"
    assert trainer.replay_buffer.poll_interval == 0.1


def test_what_cannot_be_attributed_is_refused_under_verls_own_main_too():
    config = editable(compose("grpo", ["algorithm.adv_estimator=gae"]))
    with pytest.raises(ValueError, match="has a critic; take grpo or rloo"):
        Trainer(config)


def test_the_rpc_is_mixed_into_whatever_worker_the_mapping_holds(make):
    trainer, _ = make()
    trainer._init_resource_pool_mgr()
    worker_class = trainer.role_worker_mapping[Role.ActorRollout].__ray_actor_class__
    assert issubclass(worker_class, Attributing)
    assert worker_class.__name__ == "Attributingobject"


def test_the_worker_explains_the_rollouts_own_answer_or_the_gold_one():
    queue = Queue()
    names = ["prompts", "responses", "response_mask"]
    data = queue.kv_batch_get(["right", "silent"], "train", names)
    data["reward_model"] = type("Stack", (), {"tolist": lambda self: [{"ground_truth": "8"}] * 2})()
    assert [trace.answer for trace in explained_traces(data, TOKENIZER, "own")] == ["7", "0"]
    assert [trace.answer for trace in explained_traces(data, TOKENIZER, "gold")] == ["8", "8"]

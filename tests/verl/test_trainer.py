"""The step between verl's advantages and its update, with stand-ins for Ray and the TransferQueue."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf
from testkit.composed import changed
from testkit.tiny import byte_level_tokenizer

pytest.importorskip("verl")

from transfer_queue import KVBatchMeta
from verl.trainer.ppo.utils import Role
from verl.utils import tensordict_utils as tu

from segrl.attribution.target import TEMPLATE
from segrl.credit.checks import check_vocabulary
from segrl.credit.settings import CreditSettings
from segrl.types import Stream, Trace
from segrl.verl import queue as queue_module
from segrl.verl import trainer as trainer_module
from segrl.verl.queue import fill_up
from segrl.verl.trainer import SegmentCredit
from segrl.verl.worker import FIELDS, AttributingWorker, explained_traces

TOKENIZER = byte_level_tokenizer()
THINKING = "3 + 4 = 7.\n\nWait, so 7.\n\nHowever, 7.\n"
SUPERFICIAL = "3 + 4 = 7.\n\nWait, so 7.\n\nHowever, n = 7.\n</think> \\boxed{7}"
# key -> advantage and reward; "e" is a group of equal rewards whose advantages rounding has left off zero
ROWS = {
    "a_0_0": (0.5, 1.0),
    "a_1_0": (-0.5, 0.0),
    "a_2_0": (0.5, 1.0),  # gives no answer
    "e_0_0": (1e-3, 1.0),
    "e_1_0": (-1e-3, 1.0),
    "a_3_0": (0.5, 1.0),  # padding
}
SILENT, PADDING = "a_2_0", "a_3_0"
RESPONSES = dict.fromkeys(ROWS, THINKING + "</think> \\boxed{7}") | {SILENT: THINKING}


class Queue:
    """The TransferQueue's two functions that are used, over a dict."""

    def __init__(self, right: int = 0):
        self.rows = {}
        prompt_ids = torch.tensor(TOKENIZER("Q")["input_ids"])
        for key, (advantage, reward) in (ROWS | {f"r{i}_0_0": (0.5, 1.0) for i in range(right)}).items():
            ids = torch.tensor(TOKENIZER(RESPONSES.get(key, RESPONSES["a_0_0"]))["input_ids"])
            scores_T = torch.zeros(len(ids))
            scores_T[-1] = reward
            self.rows[key] = {
                "prompts": prompt_ids,
                "responses": ids,
                "response_mask": torch.ones(len(ids)),
                "advantages": torch.full((len(ids),), advantage),
                "rm_scores": scores_T,
                "reward_model": {"ground_truth": "8" * 40},
                "entropy": torch.arange(len(ids)).float(),
                "old_log_probs": torch.full((len(ids),), -2.0),
            }
        for i in range(right):  # a partner each, so that their groups have something to learn from
            self.rows[f"r{i}_1_0"] = self.rows["a_1_0"] | {}

    def kv_batch_get(self, keys, partition_id, select_fields):
        return {name: Column([self.rows[key][name] for key in keys]) for name in select_fields}

    def kv_batch_put(self, keys, partition_id, fields):
        for name, column in fields.items():
            for key, value in zip(keys, column.unbind(), strict=True):
                self.rows[key][name] = value


class Column(list):
    """A column of tensors has unbind(), that of anything else is a plain list in verl's TensorDict."""

    def unbind(self):
        return self


class Actor:
    """A worker group whose attribution is the token's position, and which remembers what it was asked for."""

    def __init__(self, queue, ranks=1):
        self.queue, self._dispatch_info, self.batches, self.on_grid = queue, {"actor": list(range(ranks))}, [], []
        self.broken: set[str] = set()  # keys whose scores are not finite

    def compute_segrl_scores(self, batch):
        self.batches.append(batch)
        for key in batch.keys:
            ends = self.queue.rows[key]["segrl_boundaries" if "segrl_boundaries" in batch.fields else "responses"]
            scores_T = torch.arange(len(ends)).float()
            scores_T[3 % len(ends)] += torch.inf if key in self.broken else 0.0
            self.queue.rows[key] |= {
                "segrl_scores": scores_T,
                "segrl_gap": torch.tensor(0.1),
                "segrl_copy_share": torch.tensor(0.2),
            }

    def compute_segrl_masses(self, batch):
        """Of all nodes the second alone moves every token, as their mean does."""
        self.on_grid.append(batch)
        nodes = batch.extra_info["segrl_nodes"]
        for key in batch.keys:
            masses_JL = torch.eye(nodes, 5)
            masses_JL[1] = 1.0
            self.queue.rows[key]["segrl_masses"] = masses_JL.flatten()


class Base:
    """What the mixin expects of verl's trainer."""

    def __init__(self, config):
        self.config, self.tokenizer, self.global_steps, self.timing_raw = config, TOKENIZER, 1, {}
        self.local_trigger_step = 0
        self.replay_buffer = type("ReplayBuffer", (), {})()

    def _init_resource_pool_mgr(self):
        self.role_worker_mapping = {Role.ActorRollout: type("Remote", (), {"__ray_actor_class__": object})}

    def _setup(self):
        pass

    def _compute_advantage(self, batch, metrics):
        return batch

    def _compute_metrics(self, batch, metrics, timing_raw, global_steps, epoch):
        metrics.update({"training/global_step": global_steps})


class Trainer(SegmentCredit, Base):
    base_mode = "sync"


@pytest.fixture
def make(monkeypatch, tmp_path):
    text_model = SimpleNamespace(max_position_embeddings=4096)
    monkeypatch.setattr(trainer_module, "model_config", lambda model: text_model)
    monkeypatch.setattr(trainer_module, "warn_of_drift", lambda: None)

    made = []

    def make(ranks=1, right=0, **segrl):
        queue = Queue(right)
        monkeypatch.setattr(queue_module, "tq", queue)
        config = changed("grpo", None, f"out={tmp_path}")
        config.segrl = {"rule": "rank", "quadrature": "midpoint"} | segrl
        trainer = Trainer(config)
        made.append(trainer)
        trainer.actor_rollout_wg = Actor(queue, ranks)
        trainer._setup()
        return trainer, queue

    yield make
    for trainer in made:
        trainer.deadline.stop()  # it would end the tests' own process


def batch_of(queue):
    keys = list(queue.rows)
    tags = [{"seq_len": len(queue.rows[key]["responses"]) + 1, "is_padding": key == PADDING} for key in keys]
    return KVBatchMeta(keys=keys, tags=tags, partition_id="train")


def step(trainer, queue, **metrics):
    trainer._compute_advantage(batch_of(queue), metrics)
    return metrics


def test_only_what_can_learn_is_attributed_and_weighted(make):
    trainer, queue = make()
    before = {key: row["advantages"].clone() for key, row in queue.rows.items()}
    metrics = step(trainer, queue)
    assert [batch.keys for batch in trainer.actor_rollout_wg.batches] == [["a_0_0"]]
    for key in set(ROWS) - {"a_0_0"}:
        assert torch.equal(queue.rows[key]["advantages"], before[key])
    after = queue.rows["a_0_0"]["advantages"]
    assert after.mean() == pytest.approx(0.5)
    # The positions grow, so the thoughts' strengths do too: the last thought weighs 1.2 / 0.8 of the first.
    thinking = len(TOKENIZER(THINKING)["input_ids"])
    assert after[thinking - 1] / after[0] == pytest.approx(1.2 / 0.8)
    assert metrics["segrl/attributed_share"] == 0.2
    counts = {name.rpartition("/")[2]: count for name, count in metrics.items() if "uniform/" in name and count}
    assert counts == {"other_sign": 1, "no_answer": 1, "equal_rewards": 2}


@pytest.mark.parametrize(("measure", "column"), [("contribution", None), ("entropy", "entropy")])
def test_a_rollout_whose_scores_are_not_finite_weighs_one_and_is_counted(make, tmp_path, measure, column):
    trainer, queue = make(right=2, measure=measure, dump_dir=str(tmp_path / "dump"))
    trainer.actor_rollout_wg.broken = {"r0_0_0"}
    if column:
        queue.rows["r0_0_0"][column][3] = torch.nan
    metrics = step(trainer, queue)
    assert metrics["segrl/uniform/not_finite"] == 1.0
    # a_0_0 and r1_0_0 of nine responses; entropy reads that without an answer, too
    assert metrics["segrl/attributed_share"] == (3 if column else 2) / 9
    assert queue.rows["r0_0_0"]["advantages"].tolist() == [0.5] * len(queue.rows["r0_0_0"]["advantages"])
    assert len(queue.rows["r1_0_0"]["advantages"].unique()) > 1
    lines = {line["key"]: line for line in map(json.loads, (tmp_path / "dump" / "1.jsonl").read_text().splitlines())}
    assert lines["r0_0_0"]["uniform"] == "not_finite"
    assert set(lines["r0_0_0"]["weights"]) == {1.0}


def test_a_few_rollouts_are_held_against_many_nodes_on_every_so_many_steps(make):
    trainer, queue = make(right=3, fidelity_every=2, fidelity_rollouts=2, fidelity_nodes=5)
    logged = []
    for trainer.global_steps in (1, 2):
        logged.append(step(trainer, queue).get("segrl/fidelity"))
    assert logged == [None, 1.0]  # the actor's scores are the same, however many nodes
    plain, again, fine = trainer.actor_rollout_wg.batches
    assert len(again.keys) == len(plain.keys) == 4
    assert len(fine.keys) == 2
    assert fine.extra_info["segrl"].alphas == pytest.approx((0.1, 0.3, 0.5, 0.7, 0.9))


def test_with_steps_left_out_the_weighed_ones_are_counted(make):
    """Of steps 1 to 10, every third is weighed: 1, 4, 7, 10."""
    trainer, queue = make(every=3, fidelity_every=2, certificate_every=3)
    logged = []
    for trainer.global_steps in range(1, 11):
        logged += [trainer.global_steps] if "segrl/fidelity" in step(trainer, queue) else []
    assert logged == [4, 10]
    plain = [batch.extra_info["segrl"] for batch in trainer.actor_rollout_wg.batches]
    assert [request.certificate for request in plain if len(request.alphas) == 1] == [True, False, False, True]


def test_a_response_that_leaves_no_room_for_the_answer_weighs_one(make):
    trainer, queue = make()
    trainer.limit = len(queue.rows["a_0_0"]["responses"]) + 10
    assert step(trainer, queue)["segrl/uniform/too_long"] == 1.0
    assert trainer.actor_rollout_wg.batches == []


def test_without_keys_it_is_plain_grpo_bit_for_bit(make, monkeypatch):
    trainer, queue = make(rule=CreditSettings().rule)
    monkeypatch.setattr(trainer_module, "rollouts_of", lambda *given: pytest.fail("rollouts were read"))
    before = {key: row["advantages"].clone() for key, row in queue.rows.items()}
    assert step(trainer, queue) == {}
    assert (trainer.actor_rollout_wg.batches, trainer.sources.frozen) == ([], None)
    assert all(torch.equal(queue.rows[key]["advantages"], before[key]) for key in before)


@pytest.mark.parametrize("override", ["algorithm.adv_estimator=reinforce_plus_plus", "algorithm.use_kl_in_reward=true"])
def test_equal_rewards_are_no_reason_where_advantages_differ_all_the_same(make, override):
    trainer, queue = make()
    name, value = override.split("=")
    OmegaConf.update(trainer.config, name, {"true": True}.get(value, value))
    metrics = step(trainer, queue)
    assert metrics["segrl/uniform/equal_rewards"] == 0.0
    assert trainer.actor_rollout_wg.batches[0].keys == ["a_0_0", "e_0_0"]


def test_a_step_that_is_left_out_reads_nothing(make):
    trainer, queue = make(every=2)
    trainer.global_steps = 2
    assert step(trainer, queue) == {"segrl/attributed_share": 0.0, "segrl/uniform/off_step": 5.0}
    assert trainer.actor_rollout_wg.batches == []


def test_towards_the_gold_answer_a_response_without_one_of_its_own_is_attributed(make):
    trainer, queue = make(target="gold")
    assert step(trainer, queue)["segrl/uniform/no_answer"] == 0.0
    assert trainer.actor_rollout_wg.batches[0].keys == ["a_0_0", SILENT]
    longest = len(queue.rows["a_0_0"]["responses"]) + 1 + len(TEMPLATE)
    trainer.limit = longest + 39  # the gold answer has 40 characters, its own one
    assert step(trainer, queue)["segrl/uniform/too_long"] == 1.0


def test_a_contrast_wants_both_answers_and_room_for_the_longer(make):
    """The gold answer has 40 characters, the rollout's own one."""
    trainer, queue = make(target="contrast")
    assert step(trainer, queue)["segrl/uniform/no_answer"] == 1.0
    [attributed] = trainer.actor_rollout_wg.batches
    assert (attributed.keys, attributed.extra_info["segrl"].target) == (["a_0_0"], "contrast")
    longest = len(queue.rows["a_0_0"]["responses"]) + 1 + len(TEMPLATE)
    trainer.limit = longest + 39
    assert step(trainer, queue)["segrl/uniform/too_long"] == 1.0
    queue.rows["a_0_0"]["reward_model"] = {"ground_truth": ""}
    assert step(trainer, queue)["segrl/uniform/no_answer"] == 2.0


def test_a_measure_of_contrasts_is_gathered_along_a_path_like_ig(make, tmp_path):
    settings = {"measure": "mistake", "sign": "both", "quadrature": "calibrated", "calibration_nodes": 4}
    trainer, queue = make(right=4, fidelity_every=1, dump_dir=str(tmp_path / "dump"), **settings)
    metrics = step(trainer, queue)
    actor = trainer.actor_rollout_wg
    requests = [batch.extra_info["segrl"] for batch in (*actor.on_grid, *actor.batches)]
    assert [(request.need, request.target) for request in requests] == [("contrast", "contrast")] * 3
    assert {"a_0_0", "a_1_0"} < set(actor.batches[0].keys)
    assert (metrics["segrl/gap"], metrics["segrl/fidelity"]) == (pytest.approx(0.1), 1.0)
    line = json.loads((tmp_path / "dump" / "1.jsonl").read_text().splitlines()[0])
    assert (line["answer"], line["gold"], line["uniform"]) == ("7", "8" * 40, None)


def test_each_sign_of_the_advantage_is_asked_for_with_its_own_target(make):
    """Two right responses explain their own answer, two wrong ones are held against the gold one."""
    trainer, queue = make(right=1, measure="contribution", negative_measure="mistake", sign="both")
    metrics = step(trainer, queue)
    asked = {
        (batch.extra_info["segrl"].need, batch.extra_info["segrl"].target): set(batch.keys)
        for batch in trainer.actor_rollout_wg.batches
    }
    assert set(asked) == {("ig", "own"), ("contrast", "contrast")}
    assert asked["ig", "own"] == {"a_0_0", "r0_0_0"}
    assert asked["contrast", "contrast"] == {"a_1_0", "r0_1_0"}
    assert len(queue.rows["a_0_0"]["advantages"].unique()) > 1
    assert len(queue.rows["a_1_0"]["advantages"].unique()) > 1
    assert metrics["segrl/attributed_share"] == 4 / 7  # of the rows that are no padding


def test_segments_are_cut_where_verls_entropy_rises(make, tmp_path):
    """Level, and after the first sentence's end twice as much: one cut there."""
    settings = {"segmenter": "entropy", "segmentation": {"options": {"window": 2}}, "measure": "length"}
    trainer, queue = make(dump_dir=str(tmp_path / "dump"), **settings)
    row = queue.rows["a_0_0"]
    text = TOKENIZER.decode(row["responses"].tolist())
    first = len(TOKENIZER(text[: text.index("\n\n") + 2])["input_ids"])
    row["entropy"] = torch.where(torch.arange(len(row["entropy"])) < first, 0.1, 2.0)
    step(trainer, queue)
    lines = map(json.loads, (tmp_path / "dump" / "1.jsonl").read_text().splitlines())
    line = next(line for line in lines if line["key"] == "a_0_0")
    assert line["boundaries"][:2] == [0, first]
    assert len(line["boundaries"]) == 4  # and the answer's


def test_prefixes_are_asked_for_by_the_boundaries_of_segments(make, tmp_path):
    """Values that grow by one a segment are gains of one; what fills up the second rank is asked for nothing."""
    trainer, queue = make(ranks=2, measure="pmi", output="logp", dump_dir=str(tmp_path / "dump"))
    step(trainer, queue)
    [asked] = trainer.actor_rollout_wg.batches
    assert (asked.extra_info["segrl"].need, asked.fields[-1]) == ("prefix_logp_S", "segrl_boundaries")
    lines = map(json.loads, (tmp_path / "dump" / "1.jsonl").read_text().splitlines())
    line = next(line for line in lines if line["key"] == "a_0_0")
    assert queue.rows["a_0_0"]["segrl_boundaries"].tolist() == line["boundaries"]
    assert line["strength"] == [1.0] * (len(line["boundaries"]) - 2) + [0.0]  # the answer's gain is no thought's
    assert queue.rows[SILENT]["segrl_boundaries"].tolist() == [0]


def test_support_is_asked_for_by_the_boundaries_of_segments_without_an_answer(make, tmp_path):
    """One value a segment, after that of the first boundary; a response without an answer of its own is weighed too."""
    trainer, queue = make(measure="support", dump_dir=str(tmp_path / "dump"))
    step(trainer, queue)
    [asked] = trainer.actor_rollout_wg.batches
    assert asked.extra_info["segrl"].need == "support_S"
    assert asked.fields[-2:] == ["segrl_boundaries", "old_log_probs"]
    lines = [json.loads(line) for line in (tmp_path / "dump" / "1.jsonl").read_text().splitlines()]
    line = next(line for line in lines if line["key"] == "a_0_0")
    assert line["strength"] == [*map(float, range(1, len(line["boundaries"]) - 1)), 0.0]
    assert not any(line["uniform"] == "no_answer" for line in lines)


@pytest.mark.parametrize(
    ("attributor", "verl"),
    [
        ("live", {"actor_rollout_ref.rollout.temperature": 0.7}),
        ("live", {"algorithm.rollout_correction.bypass_mode": True}),
        ("live", {"trainer.v1.trainer_mode": "separate_async"}),
        ("ref", {}),
    ],
    ids=["temperature", "bypass", "asynchronous", "reference"],
)
def test_support_reads_whole_responses_where_verl_has_other_log_probs(make, attributor, verl):
    """At another temperature, of the rollout servers, of weights before the last update, or of another model."""
    trainer, queue = make(measure="support")
    trainer.settings = replace(trainer.settings, attributor=attributor)
    for key, value in verl.items():
        OmegaConf.update(trainer.config, key, value, force_add=True)
    step(trainer, queue)
    [asked] = trainer.actor_rollout_wg.batches
    assert not asked.extra_info["segrl"].logps_given
    assert asked.fields[-1] == "segrl_boundaries"


def test_the_weight_of_entropy_follows_the_steps_and_is_found_again(make):
    """Half the target's entropy raises the weight by e^(gain / 2) a weighed step; its bonus is added to the advantage.
    Step 2 is left out here, and a step after the resumed one, of a run that was killed, is forgotten."""
    regulation = {"entropy_weight": 0.01, "entropy_target": 0.4, "entropy_gain": 0.5}
    plain, plain_queue = make(rule="rank")
    step(plain, plain_queue)
    trainer, queue = make(rule="rank", regulation=regulation)
    weights = []
    for trainer.global_steps in (1, 3, 5):
        queue.rows["a_0_0"]["advantages"] = torch.full_like(queue.rows["a_0_0"]["advantages"], 0.5)
        weights.append(step(trainer, queue, **{"actor/entropy": 0.2})["segrl/entropy_weight"])
    assert weights == pytest.approx([0.01 * math.exp(0.25 * n) for n in (1, 2, 3)])
    again, queue = make(rule="rank", regulation=regulation)
    again.global_steps = 3
    assert step(again, queue, **{"actor/entropy": 0.2})["segrl/entropy_weight"] == pytest.approx(weights[1])
    assert list(again.memory.contents["entropy_weight"]["found"]["by_step"]) == [1, 3]
    added_T = queue.rows["a_0_0"]["advantages"] - plain_queue.rows["a_0_0"]["advantages"]
    thinking = len(TOKENIZER(THINKING)["input_ids"])
    surplus_T = 2.0 - torch.arange(len(added_T)).float()
    assert not added_T[thinking:].any()
    assert float(added_T.sum()) == pytest.approx(0, abs=1e-4)
    # The third token has no surplus: what was added to it is what the mean of the others took from all.
    bonus_T = (added_T - added_T[2]) * (thinking - 1) / (thinking * weights[1])
    there = [t for t in range(thinking) if t != 2]
    directions = list(dict.fromkeys(round(float(bonus_T[t] / surplus_T[t]), 3) for t in there))
    assert sorted(directions, reverse=True) == directions  # the first thought contributes least
    assert len(directions) == 3
    assert 0 < directions[-1] < 1 < directions[0] < 2


def test_both_signs_are_compared_in_one_request_with_their_advantages_and_log_probs(make, tmp_path):
    """Without an answer, too. What fills up the ranks has advantage zero and is on no side. The actor's numbers grow by
    one a token and the range is 0.8 to 1.2, so the n-th token's strength is 0.8 + 0.4 n; the batch's weights have mean
    one."""
    segrl = {"measure": "delta", "rule": "linear", "scope": "batch", "sign": "both"}
    trainer, queue = make(ranks=2, dump_dir=str(tmp_path / "dump"), **segrl)
    metrics = step(trainer, queue)
    [asked] = trainer.actor_rollout_wg.batches
    request = asked.extra_info["segrl"]
    assert (request.need, request.target, request.model) == ("coefficient_T", "own", "live")
    assert asked.fields == [*FIELDS, "segrl_advantage", "old_log_probs"]
    advantages = {key: queue.rows[key]["segrl_advantage"].tolist() for key in asked.keys}
    filler = {key for key in asked.keys if key not in ("a_0_0", "a_1_0", SILENT)}
    assert len(filler) == 1
    assert advantages == {"a_0_0": [0.5], "a_1_0": [-0.5], SILENT: [0.5], filler.pop(): [0.0]}
    assert metrics["segrl/attributed_share"] == 3 / 5
    lines = {line["key"]: line for line in map(json.loads, (tmp_path / "dump" / "1.jsonl").read_text().splitlines())}
    thinking = len(TOKENIZER(THINKING)["input_ids"])
    strengths = [0.8 + 0.4 * n for n in range(thinking)]
    weighed = []
    for key in ("a_0_0", "a_1_0", SILENT):
        assert lines[key]["strength"][:thinking] == pytest.approx(strengths)
        weighed += lines[key]["weights"][:thinking]
    mean = sum(strengths) / thinking
    assert weighed == pytest.approx([strength / mean for strength in strengths] * 3)
    assert queue.rows["a_1_0"]["advantages"][:3].tolist() == pytest.approx([-0.5 * w for w in weighed[:3]])


def test_other_measures_ask_for_no_advantages(make):
    trainer, queue = make()
    step(trainer, queue)
    [asked] = trainer.actor_rollout_wg.batches
    assert asked.fields == list(FIELDS)
    assert all("segrl_advantage" not in row for row in queue.rows.values())


def test_the_path_is_asked_of_the_workers_as_it_is_set(make):
    path = {"path": "values", "output": "log_odds", "begin": 0.25, "interpolate": None}
    trainer, queue = make(right=4, fidelity_every=1, quadrature="calibrated", calibration_nodes=4, **path)
    step(trainer, queue)
    actor = trainer.actor_rollout_wg
    requests = [batch.extra_info["segrl"] for batch in (*actor.on_grid, *actor.batches)]
    assert len(requests) == 3  # calibration, scores, fidelity
    assert all({name: getattr(request, name) for name in path} == path for request in requests)


def test_every_rank_gets_as_many_rows_and_the_shortest_fill_up(make):
    trainer, queue = make(ranks=2)
    step(trainer, queue)
    [attributed] = trainer.actor_rollout_wg.batches
    assert sorted(attributed.keys) == [
        "a_0_0",
        SILENT,
    ]  # the silent one is the shortest: it keeps the second rank company


def test_filling_up_by_hand():
    assert fill_up(["a", "b", "c"], ["a", "b", "c", "d"], 2) == ["a", "b", "c", "d"]
    assert fill_up(["a", "b"], ["a", "b", "c", "d"], 2) == ["a", "b"]
    assert fill_up(["b"], ["a", "b", "c", "d"], 4) == ["b", "a", "c", "d"]


def test_the_certificate_is_asked_for_on_every_so_many_steps(make):
    trainer, queue = make(certificate_every=3)
    for trainer.global_steps in range(1, 6):
        step(trainer, queue)
    certificates = [batch.extra_info["segrl"].certificate for batch in trainer.actor_rollout_wg.batches]
    assert certificates == [True, False, False, True, False]


@pytest.mark.parametrize(
    ("measure", "forwards"), [("length", 0), ("random", 0), ("entropy", 0), ("oar", 1), ("contribution", 1)]
)
def test_a_measure_that_needs_no_gradient_costs_no_forward(make, measure, forwards):
    trainer, queue = make(measure=measure)
    metrics = step(trainer, queue)
    assert len(trainer.actor_rollout_wg.batches) == forwards
    assert metrics["segrl/attributed_share"] == (0.2 if forwards else 0.4)  # only explaining wants an answer
    assert len(queue.rows["a_0_0"]["advantages"].unique()) > 1


@pytest.mark.parametrize(("inverted", "last"), [(False, 0.0), (True, 1.0)])
def test_the_planted_kinds_are_read_where_the_measure_reads_them(make, tmp_path, inverted, last):
    """The last of the three thoughts is superficial, so redundant; the others count as checks."""
    options = {"inverted": inverted}
    trainer, queue = make(measure="oracle", measure_options=options, dump_dir=str(tmp_path / "dump"))
    queue.rows["a_0_0"]["responses"] = torch.tensor(TOKENIZER(SUPERFICIAL)["input_ids"])
    for name in ("response_mask", "rm_scores", "advantages"):
        queue.rows["a_0_0"][name] = torch.ones(len(queue.rows["a_0_0"]["responses"]))
    step(trainer, queue)
    [line] = [json.loads(line) for line in (tmp_path / "dump" / "1.jsonl").read_text().splitlines()][:1]
    assert line["strength"] == [0.5, 0.5, last, 0.0]
    assert trainer.actor_rollout_wg.batches == []


def test_the_first_rollouts_calibrate_once_and_the_file_is_found_on_resuming(make, tmp_path):
    trainer, queue = make(right=5, quadrature="calibrated", calibration_nodes=4, calibration_rollouts=4)
    step(trainer, queue)
    step(trainer, queue)
    [on_grid] = trainer.actor_rollout_wg.on_grid
    assert len(on_grid.keys) == 4

    assert trainer.actor_rollout_wg.batches[0].extra_info["segrl"].alphas == (0.375,)
    assert (tmp_path / "checkpoints" / "segrl.json").is_file()
    again, queue = make(right=5, quadrature="calibrated", calibration_nodes=4, calibration_rollouts=4)
    step(again, queue)
    assert again.actor_rollout_wg.on_grid == []
    assert again.actor_rollout_wg.batches[0].extra_info["segrl"].alphas == (0.375,)


def test_too_few_rollouts_do_not_calibrate(make):
    trainer, queue = make(quadrature="calibrated")
    step(trainer, queue)
    assert trainer.actor_rollout_wg.on_grid == []
    assert trainer.actor_rollout_wg.batches[0].extra_info["segrl"].alphas == (0.5,)


@pytest.mark.parametrize(
    ("changed", "times"),
    [
        ({}, 0),
        ({"nodes": 2}, 0),
        ({"nodes": 5}, 1),
        ({"target": "gold"}, 1),
        ({"interpolate": "all"}, 1),
        ({"path": "embeddings"}, 1),
        ({"measure": "mistake"}, 1),
    ],
)
def test_a_calibration_serves_while_the_settings_it_follows_from_stay(make, changed, times):
    settings = {"quadrature": "calibrated", "calibration_nodes": 6}
    step(*make(right=5, **settings))
    trainer, queue = make(right=5, **settings | changed)
    step(trainer, queue)
    assert len(trainer.actor_rollout_wg.on_grid) == times


def test_what_it_costs_is_logged(make):
    trainer, _ = make()
    for trainer.global_steps in (1, 2, 3):
        metrics = {}
        timing = {"step": 10.0, "attribution": float(trainer.global_steps), "update_actor": 4.0}
        trainer._compute_metrics(None, metrics, timing, trainer.global_steps, 0)
        assert metrics["segrl/cost"] == trainer.global_steps / 4
        assert metrics["segrl/time_share"] == trainer.global_steps / 10


def test_the_dump_holds_every_rollout_and_the_advantages_that_were_written(make, tmp_path):
    trainer, queue = make(dump_dir=str(tmp_path / "dump"))
    step(trainer, queue)
    step(trainer, queue)  # a step that is done again after resuming replaces its file
    lines = [json.loads(line) for line in (tmp_path / "dump" / "1.jsonl").read_text().splitlines()]
    assert [line["key"] for line in lines] == [key for key in ROWS if key != PADDING]
    why = {line["key"]: line["uniform"] for line in lines}
    assert why == {"a_0_0": None, "a_1_0": "other_sign", "a_2_0": "no_answer"} | dict.fromkeys(
        ("e_0_0", "e_1_0"), "equal_rewards"
    )
    for line in lines:
        assert line["advantages"] == queue.rows[line["key"]]["advantages"].tolist()


def test_a_mostly_unsegmented_first_batch_is_a_warning(make, caplog):
    trainer, queue = make(segmentation={"max_segments": 1})
    step(trainer, queue)
    step(trainer, queue)
    assert caplog.text.count("too few to weigh") == 1


def test_a_measure_of_tokens_tells_those_of_one_thought_apart(make, caplog):
    trainer, queue = make(segmentation={"max_segments": 1}, measure="delta", rule="linear", sign="both")
    assert step(trainer, queue)["segrl/attributed_share"] == 3 / 5
    assert len(queue.rows["a_0_0"]["advantages"].unique()) > 3
    assert "too few to weigh" not in caplog.text


def test_the_trainer_passes_for_its_base_and_waits_as_it_is_told(make):
    trainer, _ = make(poll_seconds=0.1)
    assert trainer.config.trainer.v1.trainer_mode == "sync"
    assert trainer.replay_buffer.poll_interval == 0.1


def test_the_model_is_looked_at_before_any_worker_is_started(make, monkeypatch):
    trainer, _ = make()
    monkeypatch.setattr(Base, "_setup", lambda self: pytest.fail("workers were started"))
    seeing = SimpleNamespace(vision_config={}, text_config=SimpleNamespace(max_position_embeddings=64))
    monkeypatch.setattr(trainer_module, "model_config", lambda model: seeing)
    with pytest.raises(ValueError, match="a vision_config, but attribution feeds token ids alone"):
        trainer._setup()


def test_what_cannot_be_attributed_is_refused_under_verls_own_main_too():
    config = changed("grpo", None, "algorithm.adv_estimator=gae")
    with pytest.raises(ValueError, match="has a critic; take grpo or rloo"):
        Trainer(config)


@pytest.mark.parametrize("role", [Role.ActorRollout, Role.Actor, Role.ActorRolloutRef])
def test_the_rpc_is_mixed_into_whatever_worker_the_mapping_holds(make, monkeypatch, role):
    trainer, _ = make()
    mapping = {role: type("Remote", (), {"__ray_actor_class__": object})}
    monkeypatch.setattr(Base, "_init_resource_pool_mgr", lambda self: setattr(self, "role_worker_mapping", mapping))
    trainer._init_resource_pool_mgr()
    worker_class = mapping[role].__ray_actor_class__
    assert issubclass(worker_class, AttributingWorker)
    assert worker_class.__name__ == "Attributingobject"


def test_the_asynchronous_modes_are_registered_over_verls_own():
    from verl.trainer.ppo.v1 import get_trainer_cls

    for mode in ("sync", "colocate_async", "separate_async"):
        trainer_class = get_trainer_cls("segrl" if mode == "sync" else f"segrl_{mode}")
        assert issubclass(trainer_class, get_trainer_cls(mode))
        assert trainer_class.base_mode == mode
        assert trainer_class.__mro__.index(SegmentCredit) < trainer_class.__mro__.index(get_trainer_cls(mode))


class FrozenOnes:
    """Frozen attributors whose score is the token's position."""

    def __init__(self, credit, tokenizer, on_cpu):
        self.calls, self.tokenizer = [], tokenizer

    def attribute(self, traces: list[Trace], request, boundaries):
        self.calls.append(traces)
        return [Stream(torch.arange(trace.tokens).float(), 0.3, 0.4) for trace in traces]


class FallingOnes(FrozenOnes):
    def attribute(self, traces: list[Trace], request, boundaries):
        return [Stream(0.5 ** torch.arange(trace.tokens), 0.3, 0.4) for trace in traces]


def test_a_frozen_attributor_gives_the_same_advantages_and_leaves_no_scores_behind(make, monkeypatch):
    monkeypatch.setattr(trainer_module, "FrozenAttributors", FrozenOnes)
    live, queue = make()
    step(live, queue)
    expected = queue.rows["a_0_0"]["advantages"]
    trainer, queue = make(attributor="frozen", attributor_path="elsewhere")
    metrics = step(trainer, queue)
    assert trainer.actor_rollout_wg.batches == []
    assert torch.equal(queue.rows["a_0_0"]["advantages"], expected)
    assert "segrl_scores" not in queue.rows["a_0_0"]
    assert metrics["segrl/gap"] == pytest.approx(0.3)


def test_frozen_scores_are_held_against_the_live_actors(make, monkeypatch):
    """The frozen one's strengths fall where the actor's grow: they agree in nothing, and the frozen one with itself."""
    monkeypatch.setattr(trainer_module, "FrozenAttributors", FallingOnes)
    trainer, queue = make(attributor="frozen", attributor_path="elsewhere", fidelity_every=1)
    metrics = step(trainer, queue)
    assert (metrics["segrl/fidelity"], metrics["segrl/agreement"]) == (1.0, -1.0)
    [attributed] = trainer.actor_rollout_wg.batches
    assert attributed.extra_info["segrl"].model == "live"


def test_frozen_attributors_get_both_answers_of_a_contrast(make, monkeypatch):
    monkeypatch.setattr(trainer_module, "FrozenAttributors", FrozenOnes)
    trainer, queue = make(attributor="frozen", attributor_path="elsewhere", target="contrast", path="values")
    step(trainer, queue)
    [[trace]] = trainer.sources.frozen.calls
    assert (trace.own_answer, trace.answer) == ("7", "8" * 40)


def test_a_frozen_attributor_of_another_vocabulary_is_refused():
    other = byte_level_tokenizer(vocab=400)
    with pytest.raises(ValueError, match=r"the attributor there has another vocabulary than the policy: \d+ of \d+"):
        check_vocabulary(TOKENIZER, other, "there")
    check_vocabulary(TOKENIZER, TOKENIZER, "there")


def test_the_worker_explains_the_rollouts_own_answer_or_the_gold_one():
    rows = [Queue().rows[key] for key in ("a_0_0", SILENT)]
    columns = {
        name: torch.nested.as_nested_tensor([row[name] for row in rows], layout=torch.jagged)
        for name in ("prompts", "responses", "response_mask")
    }
    data = tu.get_tensordict({**columns, "reward_model": [{"ground_truth": "8"}] * 2}, {})
    assert [trace.answer for trace in explained_traces(data, TOKENIZER, {TOKENIZER.eos_token_id}, "own")] == ["7", "0"]
    assert [trace.answer for trace in explained_traces(data, TOKENIZER, {TOKENIZER.eos_token_id}, "gold")] == ["8", "8"]
    contrasted = explained_traces(data, TOKENIZER, {TOKENIZER.eos_token_id}, "contrast")
    assert [(trace.own_answer, trace.answer) for trace in contrasted] == [("7", "8"), ("0", "8")]


@pytest.mark.parametrize(("problems", "times"), [(570, 2280 / 1024), (30, 1.0)])
def test_a_validation_has_the_time_of_as_many_steps_as_it_samples(make, monkeypatch, problems, times):
    """570 problems of AIME24, AMC23 and MATH500, four samples each, beside steps of 128 x 8; never less than a step."""
    trainer, _ = make()
    config = trainer.config
    config.data.train_batch_size, config.actor_rollout_ref.rollout.n = 128, 8
    config.actor_rollout_ref.rollout.val_kwargs.n = 4
    trainer.val_dataset, started = range(problems), []
    monkeypatch.setattr(trainer.deadline, "start", lambda what, times=1.0: started.append((what, times)))
    monkeypatch.setattr(Base, "on_validate_begin", lambda self: None, raising=False)
    trainer.on_validate_begin()
    assert started == [("the validation of step 1", times)]

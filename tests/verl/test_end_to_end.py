"""verl's real trainers on the bundled model: torchrun, FSDP2 and gloo; Ray, vLLM and the TransferQueue."""

import json
import math
import re
import sys
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median, pstdev

import pytest

pytest.importorskip("verl")

import torch
from testkit.runs import (
    bounded,
    dumped,
    grpo_command,
    killed_after,
    method_command,
    metric,
    steps_of,
    thinking,
    traced,
    weighed,
)
from transformers import AutoModelForCausalLM, AutoTokenizer

import segrl
from segrl import toy
from segrl.credit.regulating import Likelihoods, entropy_bonus
from segrl.data import save_traces, write_rows
from segrl.data.records import segments_of, selection_row
from segrl.importance import from_strength
from segrl.importance.gathering import token_streams

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not (toy.MODEL_PATH / "model.safetensors").exists(), reason="no model is bundled"),
]


# --- SFT -------------------------------------------------------------------------------------------------------------


def oracle_selections(traces):
    """The needed thoughts, by the toy world's own labels."""
    tokenizer = AutoTokenizer.from_pretrained(toy.MODEL_PATH)
    for trace in traces:
        trace = segrl.tokenize(trace, tokenizer)
        segments = segrl.segment(trace)
        keep = [kind in ("needed", "close", "answer") for kind in trace.meta["kinds"]]
        assert len(keep) == len(segments)
        keep_S = segments.thought_S.new_tensor(keep)
        selection = segrl.Selection(keep_S, tuple("forced" if one else "dropped" for one in keep))
        yield selection_row(trace, segments, from_strength(keep_S.double(), segments), selection)


def mean_over_traces(traces, rows) -> float:
    """Eq. 9 by the bundled model: the mean over traces of each one's over its kept tokens and its end."""
    model, tokenizer = toy.load_model()
    means = []
    for trace, row in zip(traces, rows, strict=True):
        trace = segrl.tokenize(trace, tokenizer)
        ids = torch.cat([trace.prompt_ids, trace.response_ids, torch.tensor([tokenizer.eos_token_id])])
        with torch.no_grad():
            logp = torch.log_softmax(model(ids[None]).logits[0, :-1], -1).gather(1, ids[1:, None])[:, 0]
        kept = torch.tensor(row["keep"])[segments_of(row).index_T].tolist()
        means.append(-logp[len(trace.prompt_ids) - 1 :][torch.tensor([*kept, True])].mean())
    return float(torch.stack(means).mean())


@pytest.mark.timeout(400)
def test_selective_sft_trains_and_exports_a_model(tmp_path, environment):
    """On two ranks, with all rows in one batch, so that the first step's loss, Eq. 9, can be written out."""
    traces = toy.sample_traces(32, seed=7)
    save_traces(traces, tmp_path / "traces.jsonl")
    selections = list(oracle_selections(traces))
    write_rows(tmp_path / "selections.parquet", selections)
    command = [sys.executable, "-m", "segrl", "sft", "preset=toy_cpu", f"traces={tmp_path / 'traces.jsonl'}"]
    command += [
        f"model_path={toy.MODEL_PATH}",
        f"selections={tmp_path / 'selections.parquet'}",
        f"out={tmp_path / 'out'}",
        "nproc=2",
        "trainer.total_epochs=2",
        "data.train_batch_size=32",
        "segrl.think_end=segment",
        "segrl.boxed=segment",
    ]
    log = bounded(command, environment, 360, tmp_path / "log")

    assert re.search(r"selective SFT: 32 traces, \d+ response tokens, \d+ of them kept \(\d\d\.\d%\), 2 steps", log)
    losses = [float(loss) for loss in re.findall(r"step:\d+ - .*?train/loss:([\d.e-]+)", log)]
    assert len(losses) == 2
    assert losses[0] == pytest.approx(mean_over_traces(traces, selections), abs=1e-5)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out" / "model")
    card = (tmp_path / "out" / "model" / "README.md").read_text()
    assert all(f"| {name} |" in card for name in ("data", "measure", "tau", "beta", "segrl", "verl"))
    asked = tokenizer.apply_chat_template([{"role": "user", "content": "Modulo ten:"}], tokenize=False)
    prompt = tokenizer(asked, return_tensors="pt")["input_ids"]
    assert model.generate(prompt, max_new_tokens=4, do_sample=False).shape[1] == prompt.shape[1] + 4
    base = AutoModelForCausalLM.from_pretrained(toy.MODEL_PATH)
    assert any((a != b).any() for a, b in zip(model.parameters(), base.parameters(), strict=True))


# --- GRPO ------------------------------------------------------------------------------------------------------------

TWO_RANKS = (
    "+method=contrast",
    "trainer.n_gpus_per_node=2",
    "trainer.save_freq=1",
    "actor_rollout_ref.actor.use_kl_loss=true",
    "actor_rollout_ref.model.external_lib=probe",
    "actor_rollout_ref.actor.policy_loss.loss_mode=probe",
    "+segrl.warmup_steps=4",
    "+segrl.fidelity_every=2",
    "+segrl.fidelity_nodes=12",
)


@pytest.mark.timeout(1500)
def test_contrast_reaches_the_loss_and_a_killed_run_goes_on(tmp_path, environment, ray_dir):
    """method=contrast by verl's own main, on two ranks and two rollout servers, with a KL loss; ended by SIGKILL once
    step 1 is saved, and two steps more."""
    checkpoints, probes = tmp_path / "checkpoints", [tmp_path / "first", tmp_path / "second"]
    entries = [grpo_command(tmp_path, f"{ray_dir}/{run}", 3, *TWO_RANKS) for run in (1, 2)]
    environments = [environment | {"SEGRL_PROBE_DIR": str(probe)} for probe in probes]
    for probe in probes:
        probe.mkdir()
    tracker = checkpoints / "latest_checkpointed_iteration.txt"
    names = killed_after(entries[0], environments[0], tmp_path / "killed", tracker, step=1)
    assert sum("EngineCore" in name for name in names) == 2, "a rollout server for each rank"
    log = bounded(entries[1], environments[1], 700, tmp_path / "log")

    assert re.search(r"Resuming from \S*global_step_1\b", log)
    assert steps_of(log) == {2, 3}
    prompts = [{line["prompt"] for line in dumped(tmp_path, step)} for step in (1, 2, 3)]
    assert len(set().union(*prompts)) == 3 * 8  # the data go on too
    for probe, steps in zip(probes, [(1,), (2, 3)], strict=True):
        reached = [row for path in probe.glob("*.json") for row in json.loads(path.read_text())]
        for step in steps:
            weights_reached_the_loss(weighed(tmp_path, step), reached, step)
    assert len(reached) == 2 * 8 * 4
    asked = {(line["advantage"] > 0, line["target"]) for line in weighed(tmp_path, 1, 2, 3)}
    assert asked == {(True, "own"), (False, "contrast")}
    assert metric(log, 2, "actor/kl_loss") > 0
    assert -1 <= metric(log, 2, "segrl/fidelity") <= 1
    for name in ("segrl/attributed_share", "segrl/segments_per_response", "segrl/cost", "timing_s/attribution"):
        assert metric(log, 2, name) > 0, name


def weights_reached_the_loss(lines: list[dict], reached: list[list[float]], step: int) -> None:
    """What the loss was given, token by token, is advantage x weight; the weights are the rule's, as far as the
    warm-up over four steps has come."""
    assert lines, f"no rollout of step {step} was weighed"
    for line in lines:
        ranks = ranked(line)
        assert line["weights"] == pytest.approx([1 + step / 4 * (weight - 1) for weight in ranks], abs=1e-5)
        assert sum(line["weights"][: thinking(line)]) / thinking(line) == pytest.approx(1.0)
        expected = pytest.approx([line["advantage"] * weight for weight in line["weights"]], rel=1e-5)
        assert any(len(row) == len(line["weights"]) and row == expected for row in reached), line["key"]
    assert sum(max(row) - min(row) > 1e-6 for row in reached) >= len(lines)


def ranked(line: dict) -> list[float]:
    """The weights of the rule rank from 0 to 2, from the strengths that were written."""
    strengths = thought_strengths(line)
    below = [sum(other < one for other in strengths) for one in strengths]
    equal = [strengths.count(one) - 1 for one in strengths]
    return of_mean_one(line, [2 * (b + e / 2) / (len(strengths) - 1) for b, e in zip(below, equal, strict=True)])


def thought_strengths(line: dict) -> list[float]:
    return [one for one, kind in zip(line["strength"], line["kinds"], strict=True) if kind != "answer"]


def of_mean_one(line: dict, weights: list[float]) -> list[float]:
    """A weight for each token, from one for each thought: of mean one over the thinking, and one behind it."""
    tokens = [end - begin for begin, end in pairwise(line["boundaries"])]
    inside = [weight for weight, count in zip(weights, tokens, strict=False) for _ in range(count)]
    return [weight * len(inside) / sum(inside) for weight in inside] + [1.0] * (len(line["weights"]) - len(inside))


@pytest.mark.timeout(900)
def test_acpo_adds_what_its_phase_says(tmp_path, environment, ray_dir):
    """Exploring in steps 1 and 2, converging in step 3."""
    phases = ["segrl.curriculum.convergence_step=3", "segrl.regulation.reference_weight=0.1"]
    log = bounded(method_command("acpo", tmp_path, ray_dir, 3, *phases), environment, 600, tmp_path / "log")
    assert [metric(log, step, "segrl/phase") for step in (1, 2, 3)] == [0, 1, 1]  # what follows from the step
    weights = steered_weights([metric(log, step, "actor/entropy") for step in (1, 2)])
    assert [metric(log, step, "segrl/entropy_weight") for step in (1, 2, 3)] == pytest.approx(weights, rel=1e-4)
    for line in weighed(tmp_path, 1, 2, 3):
        strengths = thought_strengths(line)
        factors = [max(1 + 0.2 * (one - fmean(strengths)) / pstdev(strengths), 0) for one in strengths]
        assert line["weights"] == pytest.approx(of_mean_one(line, factors), abs=1e-4)
    exploring(tmp_path, weights)
    converging(weighed(tmp_path, 3))


def steered_weights(entropies: list[float]) -> list[float]:
    """The weights of entropy of two steps of exploration, with the yaml's target of 0.3, and of one that converges."""
    first = 0.001 * math.exp(0.5 * (0.3 - entropies[0]) / 0.3)
    return [first, first * math.exp(0.5 * (0.3 - entropies[1]) / 0.3), 0.001]


def added(line: dict) -> list[float]:
    return [now - line["advantage"] for now in line["advantages"]]


def exploring(folder: Path, weights: list[float]) -> None:
    """What is added sums to zero. In step 1 it is the weights' part and the bonus by the base's likelihoods."""
    for line in weighed(folder, 1, 2):
        assert sum(added(line)) == pytest.approx(0, abs=1e-3)
        assert max(map(abs, added(line)[thinking(line) :]), default=0) < 1e-5
    model, tokenizer = toy.load_model()
    known = [(line, trace) for line, trace in traced(1, folder, tokenizer) if line["uniform"] is None]
    most = 0.0
    for line, trace in known:
        segments = segrl.Segments(tuple(line["boundaries"]), tuple(line["kinds"]))
        scores = from_strength(torch.tensor(line["strength"]), segments)
        likelihoods = Likelihoods(*token_streams(model, trace))
        bonus_T = weights[0] * entropy_bonus(scores, segments, likelihoods, False, trace.trainable_T)
        most = max(most, float(bonus_T.abs().max()))
        expected = [weight - 1 + bonus for weight, bonus in zip(line["weights"], bonus_T.tolist(), strict=True)]
        assert added(line) == pytest.approx(expected, abs=1e-5)
    assert most > 1e-4


def converging(lines: list[dict]) -> None:
    """Behind the thinking a right response counts by the probability of its answer, and a wrong one as before; the
    nearness to the reference moves the sum of the thinking, which the other parts leave alone."""
    shares = {True: [], False: []}
    for line in lines:
        if thinking(line) < len(line["weights"]):
            behind = median(line["advantages"][thinking(line) :])
            shares[line["advantage"] > 0].append(behind / line["advantage"])
    assert 0.5 < median(shares[True]) < 0.9995
    assert median(shares[False]) == pytest.approx(1.0, abs=5e-4)
    assert any(abs(sum(added(line)[: thinking(line)])) > 1e-3 for line in lines if line["advantage"] < 0)

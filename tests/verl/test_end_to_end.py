"""verl's real trainers on the bundled model: torchrun, FSDP2 and gloo; Ray, vLLM and the TransferQueue."""

import json
import re
import sys

import pytest

pytest.importorskip("verl")

import torch
from testkit.runs import bounded, dumped, grpo_command, killed_after, method_command, metric, steps_of
from transformers import AutoModelForCausalLM, AutoTokenizer

import segrl
from segrl import toy
from segrl.data import save_traces, write_rows
from segrl.data.records import segments_of, selection_row
from segrl.importance import from_strength

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
    "trainer.n_gpus_per_node=2",
    "trainer.save_freq=1",
    "actor_rollout_ref.actor.use_kl_loss=true",
    "actor_rollout_ref.model.external_lib=probe",
    "actor_rollout_ref.actor.policy_loss.loss_mode=probe",
    "+segrl.warmup_steps=4",
    "+segrl.fidelity_every=2",
    "+segrl.fidelity_nodes=12",
    # the paper's measure at one calibrated node: what is kept for a run that goes on
    *("+segrl.measure=ig", "+segrl.path=embeddings", "+segrl.output=logp", "+segrl.quadrature=calibrated"),
    # and wrong rollouts by a contrast
    *("+segrl.sign=both", "+segrl.negative_measure=mistake"),
)


@pytest.mark.timeout(1500)
def test_weighted_advantages_reach_the_loss_and_a_killed_run_goes_on(tmp_path, environment, ray_dir):
    """verl's own main on two ranks and two rollout servers, with a KL loss; ended by SIGKILL once step 1 is saved."""
    checkpoints, probes = tmp_path / "checkpoints", [tmp_path / "first", tmp_path / "second"]
    entries = [grpo_command(tmp_path, f"{ray_dir}/{run}", 2, *TWO_RANKS) for run in (1, 2)]
    environments = [environment | {"SEGRL_PROBE_DIR": str(probe)} for probe in probes]
    for probe in probes:
        probe.mkdir()
    tracker = checkpoints / "latest_checkpointed_iteration.txt"
    names = killed_after(entries[0], environments[0], tmp_path / "killed", tracker, step=1)
    assert sum("EngineCore" in name for name in names) == 2, "a rollout server for each rank"
    calibrated = (checkpoints / "segrl.json").read_bytes()
    log = bounded(entries[1], environments[1], 700, tmp_path / "log")

    assert re.search(r"Resuming from \S*global_step_1\b", log)
    assert steps_of(log) == {2}
    assert (checkpoints / "segrl.json").read_bytes() == calibrated
    lines = [dumped(tmp_path, step) for step in (1, 2)]
    assert not {line["group"] for line in lines[0]} & {line["group"] for line in lines[1]}  # the data go on too
    for step, probe in enumerate(probes, start=1):
        weights_reached_the_loss(lines[step - 1], [json.loads(path.read_text()) for path in probe.glob("*.json")], step)
    assert sum(len(json.loads(path.read_text())) for path in probes[1].glob("*.json")) == len(lines[1]) == 8 * 4
    assert metric(log, 2, "actor/kl_loss") > 0
    assert -1 <= metric(log, 2, "segrl/fidelity") <= 1
    for name in ("segrl/attributed_share", "segrl/segments_per_response", "segrl/cost", "timing_s/attribution"):
        assert metric(log, 2, name) > 0, name


def weights_reached_the_loss(lines: list[dict], batches: list[list], step: int) -> None:
    """What the loss was given, token by token, is advantage x weight; the weights are the rule's, as far as the
    warm-up over four steps has come."""
    reached = [row for batch in batches for row in batch]
    weighed = [line for line in lines if line["uniform"] is None]
    assert weighed, f"no rollout of step {step} was right with two thoughts"
    for line in weighed:
        assert line["weights"] == pytest.approx(ramped(line, step / 4), abs=1e-5)
        thinking = line["boundaries"][-2] if line["kinds"][-1] == "answer" else line["boundaries"][-1]
        assert sum(line["weights"][:thinking]) / thinking == pytest.approx(1.0)
        expected = pytest.approx([line["advantage"] * weight for weight in line["weights"]], rel=1e-5)
        assert any(len(row) == len(line["weights"]) and row == expected for row in reached), line["key"]
    assert sum(max(row) - min(row) > 1e-6 for row in reached) >= sum(len(set(line["weights"])) > 1 for line in weighed)


def ramped(line: dict, ramp: float) -> list[float]:
    """The weights of the rule rank, from the strengths that were written."""
    thoughts = [s for s, kind in enumerate(line["kinds"]) if kind != "answer"]
    strengths = [line["strength"][s] for s in thoughts]
    rule = []
    for s, kind in enumerate(line["kinds"]):
        tokens = line["boundaries"][s + 1] - line["boundaries"][s]
        if kind == "answer":
            rule += [None] * tokens
            continue
        below = sum(other < line["strength"][s] for other in strengths)
        equal = sum(other == line["strength"][s] for other in strengths) - 1
        rule += [0.8 + 0.4 * (below + equal / 2) / (len(thoughts) - 1)] * tokens
    inside = [one for one in rule if one is not None]
    mean = sum(inside) / len(inside)
    return [1.0 if one is None else 1 + ramp * (one / mean - 1) for one in rule]


@pytest.mark.timeout(900)
def test_acpo_adds_what_its_phase_says(tmp_path, environment, ray_dir):
    """Exploring in step 1, converging in step 2; the added parts of a response sum to zero but for the phase's own."""
    phases = ["segrl.curriculum.convergence_step=2", "segrl.regulation.entropy_weight=0.0"]
    phases += ["segrl.regulation.confidence=false", "segrl.regulation.reference_weight=0.01"]
    entry = method_command("acpo", tmp_path, ray_dir, 2, *phases)
    log = bounded(entry, environment, 500, tmp_path / "log")
    assert [metric(log, step, "segrl/phase") for step in (1, 2)] == [1, 1]  # what follows from the step
    for step in (1, 2):
        weighed = [line for line in dumped(tmp_path, step) if line["uniform"] is None]
        assert weighed, f"step {step}"
        for line in weighed:
            thinking = line["boundaries"][-2] if line["kinds"][-1] == "answer" else line["boundaries"][-1]
            added, plain = added_and_plain(line)
            assert sum(plain[:thinking]) == pytest.approx(0, abs=1e-3)
            if step == 1:
                assert added == pytest.approx(plain, abs=1e-5)
        if step == 2:
            assert any(added != pytest.approx(plain, abs=1e-5) for added, plain in map(added_and_plain, weighed))


def added_and_plain(line: dict) -> tuple[list[float], list[float]]:
    added = [now - line["advantage"] for now in line["advantages"]]
    return added, [weight - 1 for weight in line["weights"]]

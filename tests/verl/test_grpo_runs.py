"""Whole GRPO runs beyond the one in test_end_to_end.py: the asynchronous mode, other attributors, LoRA, two nodes,
plain verl beside the rule uniform, a curriculum after SIGKILL, and failures that must end with their cause."""

import json
import re
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("verl")

from testkit.readme import own_measure
from testkit.runs import (
    bounded,
    dumped,
    ended,
    grpo_command,
    killed_after,
    marked,
    method_command,
    metric,
    name_of,
    send,
    started,
    steps_of,
    thinking,
    traced,
    weighed,
)

import segrl
from segrl import toy
from segrl.commands.config import CONFIG_DIR, compose
from segrl.credit.curriculum import Curriculum, CurriculumSettings, pass_rates
from segrl.credit.settings import credit_from
from segrl.data import read_rows

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(not (toy.MODEL_PATH / "model.safetensors").exists(), reason="no model is bundled"),
]


def test_the_colocated_asynchronous_mode(tmp_path, environment, ray_dir):
    log = bounded(grpo_command(tmp_path, ray_dir, 2, mode="segrl_colocate_async"), environment, 600, tmp_path / "log")
    assert steps_of(log) == {1, 2}
    assert weighed(tmp_path, 1, 2)


@pytest.mark.parametrize("hybrid", [False, True], ids=["servers of their own", "and the trainer's"])
def test_the_separate_asynchronous_mode(tmp_path, environment, ray_dir, hybrid):
    """Rollouts come from a server beside the trainer, which has its new weights through a file: without batches ahead
    of the update, step 3 is as much on policy as step 1."""
    rollout = "actor_rollout_ref.rollout"
    options = [f"actor_rollout_ref.hybrid_engine={str(hybrid).lower()}", "ray_kwargs.ray_init.num_gpus=2"]
    options += [f"{rollout}.nnodes=1", f"{rollout}.n_gpus_per_node=1", f"{rollout}.checkpoint_engine.backend=file"]
    options += [f"{rollout}.checkpoint_engine.custom_backend_module=testkit.weight_files"]
    options += ["trainer.v1.separate_async.parameter_sync_step=1", "trainer.v1.separate_async.num_warmup_batches=0"]
    options += [f"{rollout}.calculate_log_probs=true", "actor_rollout_ref.actor.optim.lr=1e-3"]
    entry = grpo_command(tmp_path, ray_dir, 3, *options, mode="segrl_separate_async")
    log = bounded(entry, environment, 800, tmp_path / "log")
    assert steps_of(log) == {1, 2, 3}
    for step in (1, 2, 3):
        assert weighed(tmp_path, step)
        assert metric(log, step, "training/rollout_probs_diff_mean") < 1e-3


@pytest.mark.parametrize(
    ("overrides", "output"),
    [
        (
            ["+segrl.attributor=frozen", f"+segrl.attributor_path={toy.MODEL_PATH}", "+segrl.attributor_workers=2"],
            "log_odds",
        ),
        (["+segrl.attributor=ref", "actor_rollout_ref.actor.use_kl_loss=true"], "log_odds"),
        (["actor_rollout_ref.model.use_fused_kernels=true"], "logp"),
    ],
    ids=["frozen", "ref", "live with fused kernels"],
)
def test_attributors_that_start_as_the_policy_score_its_first_rollouts_like_the_plain_model(
    tmp_path, environment, ray_dir, overrides, output
):
    """On step 1 all of them are the same model; the scores to expect are computed here, on the plain one."""
    entry = grpo_command(tmp_path, ray_dir, 1, *overrides, f"+segrl.output={output}", *PLAINLY_SCORED)
    bounded(entry, environment, 600, tmp_path / "log")
    for line, expected in held_against_the_base(tmp_path, 1, output=output):
        assert line["strength"] == pytest.approx(expected, rel=1e-3, abs=1e-5)


NOTING = """
import json
from segrl.verl.reward import compute_score

def noted(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
    said = compute_score(data_source, solution_str, ground_truth, extra_info, **kwargs)
    with open({file!r}, "a") as file:
        file.write(json.dumps([solution_str, extra_info["rollout_prompt"], said["finish"], said["acc"]]) + "\\n")
    return said
"""


def test_the_readmes_own_measure_and_a_reward_that_knows_how_rollouts_end(tmp_path, environment):
    """The README's command, one step of it; responses may have 160 tokens, which are too few for some."""
    (tmp_path / "my_measures.py").write_text(own_measure())
    (tmp_path / "noting.py").write_text(NOTING.format(file=str(tmp_path / "noted")))
    given = ["preset=toy_cpu", f"out={tmp_path / 'mine'}", "segrl.measure=my_measures:surprise"]
    given += ["trainer.total_training_steps=1", "data.train_batch_size=8", f"segrl.dump_dir={tmp_path / 'dump'}"]
    reward = "reward.custom_reward_function"
    given += [f"{reward}.path={tmp_path / 'noting.py'}", f"{reward}.name=noted", "data.max_response_length=160"]
    here = environment | {"PYTHONPATH": f"{tmp_path}:{environment['PYTHONPATH']}"}
    bounded([sys.executable, "-m", "segrl", "grpo", *given], here, 600, tmp_path / "log")
    told_apart = weighed(tmp_path, 1)
    assert told_apart
    assert all(len(set(line["weights"])) > 1 for line in told_apart)
    noted = [json.loads(line) for line in (tmp_path / "noted").read_text().splitlines()[1:]]  # the first by the check
    rows = [(line["response"], line["finish"], line["reward"]) for line in dumped(tmp_path, 1)]
    assert sorted((response, finish, acc) for response, _, finish, acc in noted) == sorted(rows)
    assert all(prompt.endswith("<think>\n") for _, prompt, _, _ in noted)
    assert {finish for _, finish, _ in rows} == {"stop", "length"}
    assert all(len(line["weights"]) == 160 for line in dumped(tmp_path, 1) if line["finish"] == "length")


PLAINLY_SCORED = ("+segrl.quadrature=midpoint", "+segrl.certificate_every=0")


def held_against_the_base(folder: Path, step: int, **path) -> list[tuple[dict, list[float]]]:
    """The weighed rollouts of the step, each with the strengths that the bundled base gives it along this path."""
    model, tokenizer = toy.load_model()
    found, options = [], {"nodes": 1, "tolerance": None, "interpolate": "response", **path}
    for line, trace in traced(step, folder, tokenizer):
        if line["uniform"] is not None:
            continue
        trace = replace(trace, answer=line["gold"] or trace.answer)
        [attribution] = segrl.attribute(model, [trace], tokenizer, **options)
        found.append((line, segrl.score(attribution, segrl.segment(trace, "auto")).strength_S.tolist()))
    assert found, f"no weighed rollout of step {step} to compare"
    return found


def test_the_first_update_is_the_gradient_of_the_weighed_rollouts(tmp_path, environment, ray_dir):
    """verl's trainer against a few lines of plain PyTorch on the dump. Adam's first step is the gradient's sign."""
    saved = ["trainer.save_freq=1", "actor_rollout_ref.actor.checkpoint.save_contents=[model,optimizer,extra,hf_model]"]
    entry = grpo_command(tmp_path, ray_dir, 1, *saved, "++segrl.measure=length", "actor_rollout_ref.rollout.n=8")
    log = bounded(entry, environment, 600, tmp_path / "log")
    model, tokenizer = toy.load_model()
    pairs = traced(1, tmp_path, tokenizer)
    assert len(pairs) >= 60  # of 64
    tokens = sum(trace.tokens for _, trace in pairs)
    for line, trace in pairs:
        ids = torch.cat([trace.prompt_ids, trace.response_ids])
        logits = model(input_ids=ids[None]).logits[0, -trace.tokens - 1 : -1]
        logp_T = torch.log_softmax(logits, -1).gather(-1, trace.response_ids[:, None])[:, 0]
        (-(logp_T * torch.tensor(line["advantages"])).sum() / tokens).backward()
    [folder] = (tmp_path / "checkpoints").glob("global_step_1/actor/huggingface")
    moved = type(model).from_pretrained(folder, dtype="float32")
    gradient = torch.cat([one.grad.flatten() for one in model.parameters()])
    pairs = zip(moved.parameters(), model.parameters(), strict=True)
    change = torch.cat([(new - old).detach().flatten() for new, old in pairs])
    assert metric(log, 1, "actor/grad_norm") == pytest.approx(float(gradient.norm()), rel=0.05)
    large = gradient.abs() > gradient.abs().median()
    assert float((change.sign() == -gradient.sign())[large].float().mean()) > 0.97


@pytest.mark.parametrize("attributor", ["live", "ref"])
def test_lora(tmp_path, environment, ray_dir, attributor):
    """On step 2 the adapter is no longer zero: live scores are not the base's any more, those of the reference are.
    On the value path, right rollouts explain the gold answer by its log-odds, wrong ones their own against it."""
    options = ["actor_rollout_ref.model.lora_rank=8", "actor_rollout_ref.rollout.load_format=safetensors"]
    options += ["actor_rollout_ref.actor.optim.lr=1e-2", f"+segrl.attributor={attributor}", "+segrl.sign=both"]
    path = {"path": "values", "output": "log_odds", "target": "contrast"}
    options += [f"+segrl.{name}={value}" for name, value in path.items()]
    entry = grpo_command(tmp_path, ray_dir, 2, *options, *PLAINLY_SCORED)
    assert steps_of(bounded(entry, environment, 600, tmp_path / "log")) == {1, 2}
    for step, equal in ((1, True), (2, attributor == "ref")):
        compared = held_against_the_base(tmp_path, step, **path)
        assert {line["reward"] > 0 for line, _ in compared} == {True, False}
        for line, expected in compared:
            assert equal == (line["strength"] == pytest.approx(expected, rel=1e-3, abs=1e-5))


def test_uniform_weights_and_plain_verl_sample_and_reward_the_same_first_step(tmp_path, environment, ray_dir):
    """Greedily, which is top_k=1: verl's actor would divide by a temperature of zero."""
    rewards, responses = [], []
    for mode, rule in (("sync", []), ("segrl", ["++segrl.rule=uniform"])):
        folder = tmp_path / mode
        folder.mkdir()
        rule += ["actor_rollout_ref.rollout.top_k=1", f"trainer.rollout_data_dir={folder / 'rollouts'}"]
        entry = grpo_command(folder, f"{ray_dir}/{mode}", 1, *rule, mode=mode)
        rewards.append(metric(bounded(entry, environment, 700, folder / "log"), 1, "critic/score/mean"))
        rows = [json.loads(line) for line in (folder / "rollouts" / "1.jsonl").read_text().splitlines()]
        responses.append(sorted((row["input"], row["output"], row["score"]) for row in rows))
    assert 0 < rewards[0] < 1
    assert rewards[0] == rewards[1]
    assert responses[0] == responses[1]


CURRICULUM = {
    "order": "easy_to_hard",
    "drop_solved": 0.9,
    "drop_visits": 1,
    "unseen": 0.0,  # so that the second phase comes back to what the first one drew
    "convergence": "gaussian",
    "convergence_step": 2,
}


def test_a_curriculum_after_sigkill_draws_what_an_uninterrupted_one_would(tmp_path, environment, ray_dir):
    """Killed once step 1 is saved, with which the first phase ends: half of its pass is still to come then. What every
    step should draw is said by a curriculum that goes through the results in one go."""
    options = [f"+segrl.curriculum.{key}={value}" for key, value in CURRICULUM.items()]
    options += ["+segrl.measure=length", "trainer.save_freq=1"]
    options += ["data.shuffle=false", "data.train_max_samples=16"]
    entries = [grpo_command(tmp_path, f"{ray_dir}/{run}", 3, *options) for run in (1, 2)]
    tracker = tmp_path / "checkpoints" / "latest_checkpointed_iteration.txt"
    killed_after(entries[0], environment, tmp_path / "killed", tracker, step=1)
    log = bounded(entries[1], environment, 600, tmp_path / "log")
    assert steps_of(log) == {2, 3}

    tokenizer = toy.load_model()[1]
    prompts = [row["prompt"] for row in read_rows(tmp_path / "rows.parquet")[:16]]
    texts = [tokenizer.apply_chat_template(one, tokenize=False, add_generation_prompt=True) for one in prompts]
    assert len(set(texts)) == 16
    curriculum = Curriculum(CurriculumSettings(**CURRICULUM), rows=16, batch=8)
    stream, rows_of = iter(curriculum), {}
    for step in (1, 2, 3):
        lines = dumped(tmp_path, step)
        drawn = {line["group"]: texts.index(line["prompt"]) for line in lines}
        rows_of[step] = set(drawn.values())
        assert sorted(drawn.values()) == sorted(next(stream) for _ in range(8)), step
        rows, sessions = [drawn[line["group"]] for line in lines], [line["key"] for line in lines]
        curriculum.observe(pass_rates(rows, sessions, [line["reward"] for line in lines], 0.5), step)
        if step > 1:
            for name, value in curriculum.metrics().items():
                assert metric(log, step, name) == pytest.approx(value, abs=1e-6), name
    assert len({curriculum.difficulty.rate(row) for row in range(16)}) > 2, "all alike: nothing was to be kept"
    assert len(rows_of[1]) == 8
    assert rows_of[1] & rows_of[2], "the rest of the first phase's pass"


def test_two_raylets_on_loopback_are_two_nodes(tmp_path, environment):
    """One rank and one rollout server on each."""
    script = Path(segrl.__file__).parents[1] / "scripts" / "two_nodes.sh"
    ours = ["data.train_batch_size=8", f"segrl.dump_dir={tmp_path / 'dump'}"]
    entry = ["bash", str(script), str(tmp_path / "out"), *ours]
    log = bounded(entry, environment | {"PYTHON": sys.executable, "LIMIT": "800"}, 900, tmp_path / "log")
    assert "2 nodes with a GPU each" in log
    assert steps_of(log) == {1, 2}
    for worker in ("WorkerDict", "vLLMHttpServer"):
        assert re.search(rf"\({worker} pid=\d+, ip=127.0.0.3\)", log), f"no {worker} on the second node"
        assert re.search(rf"\({worker} pid=\d+\)", log), f"no {worker} on the first node"
    assert weighed(tmp_path, 1, 2)


def test_a_reward_that_raises_ends_the_job_with_its_cause_in_the_last_lines(tmp_path, environment, ray_dir):
    (tmp_path / "mine.py").write_text(
        "def compute_score(data_source, solution_str, ground_truth, extra_info=None, **kwargs):\n"
        "    if len(solution_str) > 30:\n"  # the check before Ray's start sees a short one
        "        raise KeyError('my reward is broken')\n"
        "    return 1.0\n"
    )
    entry = [sys.executable, "-m", "segrl", "grpo", "preset=toy_cpu", f"out={tmp_path / 'out'}"]
    entry += [f"reward.custom_reward_function.path={tmp_path / 'mine.py'}", "trainer.total_training_steps=1"]
    entry += ["data.train_batch_size=8", f"+ray_kwargs.ray_init._temp_dir={ray_dir}"]
    code, log = ended(entry, environment, 400, tmp_path / "log")
    assert code == 1
    assert "my reward is broken" in "\n".join(log.splitlines()[-5:])


def test_a_loss_that_is_not_a_number_ends_the_job(tmp_path, environment, ray_dir):
    library, loss = (
        "actor_rollout_ref.model.external_lib=broken_loss",
        "actor_rollout_ref.actor.policy_loss.loss_mode=broken",
    )
    code, log = ended(grpo_command(tmp_path, ray_dir, 3, library, loss), environment, 500, tmp_path / "log")
    assert code == 1
    assert re.search(r"FloatingPointError: step 1: actor/\w*loss is nan", "\n".join(log.splitlines()[-8:]))


@pytest.mark.parametrize("name", ["EngineCore", "VLLM::Worker"])
def test_a_dead_rollout_server_ends_the_job(tmp_path, environment, ray_dir, name):
    """vLLM's engine, or its worker, is killed after the first step, as when it runs out of memory."""
    log = tmp_path / "log"
    with started(grpo_command(tmp_path, ray_dir, 50), environment, log) as (process, mark):
        while 1 not in steps_of(log.read_text(errors="replace")):
            assert process.poll() is None
            time.sleep(0.2)
        send(signal.SIGKILL, [pid for pid in marked(mark) if name in name_of(pid)])
        assert process.wait(timeout=300) != 0
    assert "EngineDeadError: EngineCore encountered an issue" in log.read_text(errors="replace")


def test_a_rollout_server_that_hangs_ends_the_job(tmp_path, environment, ray_dir):
    """vLLM's engine is stopped, not ended: nothing of verl's or Ray's would ever notice."""
    log = tmp_path / "log"
    with started(grpo_command(tmp_path, ray_dir, 50, "+segrl.step_timeout=150"), environment, log) as (process, mark):
        while 1 not in steps_of(log.read_text(errors="replace")):
            assert process.poll() is None
            time.sleep(0.2)
        send(signal.SIGSTOP, [pid for pid in marked(mark) if "EngineCore" in name_of(pid)])
        assert process.wait(timeout=300) != 0
    last = "\n".join(log.read_text(errors="replace").splitlines()[-60:])
    assert re.search(r"TimeoutError: step \d+ was not done after segrl.step_timeout=150 s", last)


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONFIG_DIR / "grpo" / "method").glob("*.yaml")))
def test_every_method_takes_three_steps(tmp_path, environment, ray_dir, name):
    """Only responses of its sign are weighed, and the thinking of each alone, with mean one."""
    log = bounded(method_command(name, tmp_path, ray_dir, 3), environment, 600, tmp_path / "log")
    assert steps_of(log) == {1, 2, 3}
    settings = credit_from(compose("grpo", ["preset=toy_cpu", f"method={name}"]))
    if settings.rule == "uniform":
        return
    assert settings.scope == "response"
    assert settings.mean_one
    signs = {"positive": {True}, "negative": {False}, "both": {True, False}}[settings.sign]
    assert {line["advantage"] > 0 for line in weighed(tmp_path, 1, 2, 3)} == signs
    for line in (line for step in (1, 2, 3) for line in dumped(tmp_path, step)):
        inside, behind = line["weights"][: thinking(line)], line["weights"][thinking(line) :]
        assert sum(inside) == pytest.approx(len(inside), rel=1e-4)
        assert (len(set(inside)) > 1) == (line["uniform"] is None)
        assert set(behind) <= {1.0}
        if not settings.regulation.regulates:
            assert line["advantages"] == pytest.approx([line["advantage"] * one for one in line["weights"]], rel=1e-5)

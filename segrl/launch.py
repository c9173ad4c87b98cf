"""Starts verl's entry points: the composed config is written to a file, and the entry point runs on it as a
command that can be typed again.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf

from segrl import toy

# What the processes of one machine without an accelerator need; a value that is already set stays.
CPU_ENVIRONMENT = {
    "VERL_PLATFORM": "cpu",
    "VERL_ENGINE_DEVICE": "cuda",  # verl registers its FSDP engines for cuda and npu; they run on the CPU as they are
    "OMP_NUM_THREADS": "1",  # trainer, rollout server and reward share the cores
    # so that glibc gives freed tensors of 4 MiB and more back; without it a step of verl keeps twice the memory it uses
    "MALLOC_MMAP_THRESHOLD_": str(4 * 2**20),
    "TOKENIZERS_PARALLELISM": "false",
    "GLOO_SOCKET_IFNAME": "lo",
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # vLLM would pin every server to the same cores
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # Ray's name for "stay on loopback", on any system
}
PLUGIN = "segrl.verl"
FLASH_ATTENTION = "pip install flash-attn --no-build-isolation"  # no wheel on PyPI: it is compiled, with nvcc
PR_SET_PDEATHSIG = 1
# The last line of a traceback, behind the name of the process that Ray writes before it.
ERROR = re.compile(
    r"^(?:\x1b\[\d+m)?(?:\(\w+[^)]*\)(?:\x1b\[\d+m)?\s+)?((?:\w+\.)*\w*(?:Error|Exception|Interrupt)\b(?:\(.*\))?: .+)"
)


def sharing_data(processes: int, shared: int) -> int:
    """How many ranks share the data where ``shared`` processes share a sequence."""
    if shared < 1 or processes % shared:
        raise ValueError(
            f"ulysses_sequence_parallel_size={shared} does not divide the {processes} processes; give a divisor, or 1"
        )
    return processes // shared


def run_verl(entry_point: Sequence[str], config: DictConfig, name: str) -> int:
    """Run ``python -m <entry_point>`` on ``config``, saved as ``<out>/<name>.yaml``; returns its exit code."""
    out = Path(config.out).absolute()
    out.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(OmegaConf.merge(config, {"out": str(out)}), out / f"{name}.yaml")
    command = [sys.executable, "-m", *entry_point, "--config-path", str(out), "--config-name", name]
    command += [f"hydra.run.dir={out}", "hydra.output_subdir=null"]
    env = {"TENSORBOARD_DIR": str(out / "tensorboard")} | environment()
    settings = [f"{key}={env[key]}" for key in ("VERL_PLATFORM", "VERL_USE_EXTERNAL_MODULES") if key in env]
    print(f"running {' '.join(settings)} {shlex.join(command)}", flush=True)
    causes = Causes()
    process = subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, preexec_fn=end_with_parent
    )
    with process:
        before = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
        reader = threading.Thread(target=causes.pass_on, args=(process.stdout,), daemon=True)
        reader.start()
        try:
            code = process.wait()
            reader.join(timeout=10)  # a process left behind may hold the pipe open
        finally:
            signal.signal(signal.SIGTERM, before)
    if code:
        print(f"{entry_point[-1]} ended with exit code {code}; {causes.sentence()}", file=sys.stderr)
    return code


class Causes:
    """The errors in a log of many processes. The first is mostly the cause, the last its consequence."""

    def __init__(self) -> None:
        self.errors: dict[str, None] = {}
        self.rest = b""

    def pass_on(self, stream) -> None:
        """Copy ``stream`` to standard output as it comes, not by lines, since a progress bar has none."""
        while chunk := os.read(stream.fileno(), 1 << 16):
            sys.stdout.write(chunk.decode(errors="replace"))
            sys.stdout.flush()
            self.read(chunk)

    def read(self, chunk: bytes) -> None:
        *lines, self.rest = (self.rest + chunk).split(b"\n")
        for line in lines:
            error = ERROR.match(line.decode(errors="replace"))
            if error:
                self.errors.setdefault(error[1][:500])

    def sentence(self) -> str:
        errors = list(self.errors)
        if not errors:
            return "the cause stands above"
        shown = errors if len(errors) < 4 else [*errors[:2], errors[-1]]
        return "the errors above, the first of them first:\n  " + "\n  ".join(shown)


def end_with_parent() -> None:
    """Ask the kernel for a SIGTERM once this process's parent is gone. A command that is killed then leaves no process
    behind that writes into the same folder as the command's next start.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def loggers(names: str | Sequence[str]) -> list[str]:
    """verl's loggers, without tensorboard where it is not installed: it is a default, and verl would fail on it."""
    wanted = [names] if isinstance(names, str) else list(names)
    if "tensorboard" not in wanted or find_spec("tensorboard"):
        return wanted
    print("tensorboard is not installed, so nothing is logged for it; pip install tensorboard", file=sys.stderr)
    return [name for name in wanted if name != "tensorboard"]


def editable(config: DictConfig) -> DictConfig:
    """A copy of the frozen config to complete; without ``model_path`` it trains the bundled toy model."""
    copy = config.copy()
    OmegaConf.set_readonly(copy, False)
    copy.model_path = config.model_path or str(toy.MODEL_PATH)
    return copy


def environment() -> dict[str, str]:
    """This process's environment with the plugin named, so that verl raises where it cannot be imported."""
    env = dict(os.environ)
    modules = [module for module in env.get("VERL_USE_EXTERNAL_MODULES", "").split(",") if module]
    env["VERL_USE_EXTERNAL_MODULES"] = ",".join(dict.fromkeys([PLUGIN, *modules]))
    if on_cpu():
        env = CPU_ENVIRONMENT | env
        if not env.get("CUDA_VISIBLE_DEVICES", "unset"):
            del env["CUDA_VISIBLE_DEVICES"]  # Ray refuses its logical GPU where the variable is set and empty
    return env


def on_cpu() -> bool:
    """Whether verl is to run without an accelerator: as ``VERL_PLATFORM`` says; if it is unset, where there is none."""
    platform = os.environ.get("VERL_PLATFORM")
    return platform == "cpu" if platform else not torch.accelerator.is_available()


def check_device(config: DictConfig) -> None:
    """Raise where the config asks for an accelerator that this machine lacks."""
    if on_cpu() and config.trainer.device != "cpu":
        raise ValueError(
            f"trainer.device={config.trainer.device}, but this machine has no accelerator; add preset=toy_cpu, or "
            "take from it what a CPU needs"
        )


def fit_attention(model: DictConfig, sequence_parallel: int) -> str:
    """A note on attention, or "" where ``model`` stays as it is. verl asks for flash attention; where that is missing,
    ``model`` is set to PyTorch's SDPA on padded rows, since packed rows need flash attention.
    """
    if "attn_implementation" in model.override_config or flash_attention():
        return ""
    if sequence_parallel > 1:
        raise ValueError(
            f"ulysses_sequence_parallel_size={sequence_parallel} shares packed rows, which needs flash-attn, and it "
            f"cannot be imported: {FLASH_ATTENTION}, or set it to 1 with a batch that all ranks can share"
        )
    OmegaConf.update(model, "override_config.attn_implementation", "sdpa", force_add=True)
    model.use_remove_padding = False
    return f"attention: SDPA on padded rows, since flash-attn cannot be imported ({FLASH_ATTENTION}); packing is faster"


def flash_attention() -> bool:
    """Whether flash-attn can be imported; one that was built for another torch cannot."""
    try:
        importlib.import_module("flash_attn")
    except ImportError:
        return False
    return True

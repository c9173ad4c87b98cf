"""The plugin in verl's own processes. Each case is a process of its own, because a platform is resolved once."""

import subprocess
import sys

import pytest

pytest.importorskip("verl")

ON_CPU = """
import sys, verl
from verl.plugin.platform import get_platform
assert get_platform().device_name == "cpu", get_platform()
assert "segrl.verl.trainer" not in sys.modules, "a process that only serves rollouts would pay for the trainers"
assert "verl.trainer.ppo.v1" not in sys.modules

import torch, torch.distributed as dist
from torch.distributed.fsdp import CPUOffloadPolicy
from verl.utils.distributed import initialize_global_process_group
assert initialize_global_process_group() == (0, 0, 1)
dist.all_reduce(torch.ones(1))
assert CPUOffloadPolicy(pin_memory=True).pin_memory is False
from importlib.metadata import version
assert version("vllm").endswith("+cpu")

import ray
from ray.runtime_context import RuntimeContext
from types import SimpleNamespace
def job_of(port):
    client = SimpleNamespace(address=f"127.0.0.1:{port}")
    worker = SimpleNamespace(current_job_id=ray.JobID.from_int(1), gcs_client=client, check_connected=lambda: None)
    return RuntimeContext(worker).get_job_id()
assert job_of(7001) == job_of(7001) != job_of(7002), "two clusters' weights would take the same socket"
dist.destroy_process_group()

from verl.trainer.ppo.v1 import get_trainer_cls
assert get_trainer_cls("segrl").__name__ == "SegmentTrainerSync"
"""
NOT_ASKED = """
import verl
from verl.plugin.platform import PlatformRegistry
assert PlatformRegistry.get("cpu") is None
from verl.trainer.ppo.v1 import get_trainer_cls
assert get_trainer_cls("segrl").base_mode == "sync"
"""
TOO_LATE = """
import os, verl
from verl.plugin.platform import get_platform
get_platform()
os.environ["VERL_PLATFORM"] = "cpu"
try:
    import segrl.verl
except RuntimeError as error:
    assert "set VERL_USE_EXTERNAL_MODULES=segrl.verl before verl is imported" in str(error), error
else:
    raise SystemExit("no error")
"""
RENDEZVOUS = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("code", "environment"),
    [
        (ON_CPU, {"VERL_PLATFORM": "cpu", "VERL_USE_EXTERNAL_MODULES": "segrl.verl", **RENDEZVOUS}),
        (NOT_ASKED, {"VERL_USE_EXTERNAL_MODULES": "segrl.verl"}),
        (TOO_LATE, {"VERL_USE_EXTERNAL_PLUGINS": "none"}),
    ],
    ids=["asked", "not asked", "too late"],
)
def test_the_plugin_in_a_process_of_verl(code, environment, plain_environment):
    done = subprocess.run(
        [sys.executable, "-c", code], env=plain_environment | environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]

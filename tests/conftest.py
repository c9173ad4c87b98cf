"""What every test runs under: no network, the same examples each time; and clean environments for processes."""

import atexit
import faulthandler
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

# Before transformers or datasets is imported: a test that reaches for the hub fails at once.
os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models: threads only get in each other's way

import pytest
from hypothesis import settings

import segrl

# A slow machine must not fail a test that a fast one passes.
settings.register_profile("segrl", deadline=None, derandomize=True)
settings.load_profile("segrl")

VERDICT = pytest.StashKey[int]()


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    session.config.stash[VERDICT] = exitstatus


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """End with pytest's verdict: once in thirty runs a library's native threads crashed the interpreter after it."""
    if VERDICT in config.stash:
        faulthandler.enable(sys.__stderr__)
        atexit._run_exitfuncs()
        sys.__stdout__.flush()
        os._exit(int(config.stash[VERDICT]))


@pytest.fixture
def plain_environment() -> dict[str, str]:
    """This environment without what another run has left in it."""
    ours = ("VERL_", "RAY_", "VLLM_", "SEGRL_", "HYDRA_")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}


@pytest.fixture
def environment(plain_environment) -> dict[str, str]:
    """Offline, on loopback, with the plugin, and with the tests' own modules to import."""
    offline = {"HF_HUB_OFFLINE": "1", "RAY_USAGE_STATS_ENABLED": "0", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    plugin = {"VERL_PLATFORM": "cpu", "VERL_USE_EXTERNAL_MODULES": "segrl.verl"}
    ray = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    ray["RAY_worker_niceness"] = "0"  # 15 by itself: whatever else runs on the machine would starve its workers
    here = Path(__file__).parent
    path = map(str, (Path(segrl.__file__).parents[1], here / "verl", here / "support"))
    return plain_environment | offline | plugin | ray | {"PYTHONPATH": ":".join(path)}


@pytest.fixture
def ray_dir() -> Iterator[str]:
    """Ray's sockets lie here, and their paths may have 107 characters."""
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        yield folder

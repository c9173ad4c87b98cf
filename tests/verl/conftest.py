"""Clean environments and hard ends for commands that start many processes."""

from __future__ import annotations

import os
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

MARK = "SEGRL_TEST_RUN"


@pytest.fixture
def plain_environment() -> dict[str, str]:
    """This environment without what another run has left in it."""
    ours = ("VERL_", "RAY_", "VLLM_", "SEGRL_", "HYDRA_")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}


@pytest.fixture(scope="session")
def bounded():
    return run_bounded


def run_bounded(command: list[str], environment: dict[str, str], seconds: float, log: Path) -> str:
    """The log of a command that ended well in time.

    When the time is over, so are all its processes: Ray's are found by a mark in their environment.
    """
    mark = str(uuid.uuid4())
    try:
        with log.open("w") as out:
            done = subprocess.run(
                command, env=environment | {MARK: mark}, stdout=out, stderr=subprocess.STDOUT, timeout=seconds
            )
    except subprocess.TimeoutExpired:
        raise AssertionError(f"not done after {seconds} s; the end of its log:\n{_tail(log)}") from None
    finally:
        _end_all(mark)
    assert done.returncode == 0, f"exit code {done.returncode}; the end of its log:\n{_tail(log)}"
    return log.read_text(errors="replace")


def _end_all(mark: str) -> None:
    for how in (signal.SIGTERM, signal.SIGKILL):
        for pid in _marked(mark):
            try:
                os.kill(pid, how)
            except ProcessLookupError:
                continue
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline and list(_marked(mark)):
            time.sleep(0.2)


def _marked(mark: str) -> Iterator[int]:
    wanted = f"{MARK}={mark}".encode()
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            environment = path.read_bytes()
        except (ProcessLookupError, FileNotFoundError, PermissionError):
            continue
        if wanted in environment.split(b"\0"):
            yield int(path.parent.name)


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-4000:]

"""A wait that nothing ends is ended, with the place where it waited; one that is done in time is left alone."""

import subprocess
import sys

import pytest

pytest.importorskip("verl")

HANGS = """
import threading
from segrl.verl import health
health.HEARD = 0
clock = health.Deadline(seconds=0.5)
clock.start("step 3")
def waits_for_a_server():
    threading.Event().wait({wait})
    return "done in time"
{before}
print(waits_for_a_server(), flush=True)
"""


def run(wait: float | None, before: str = "") -> subprocess.CompletedProcess:
    text = HANGS.format(wait=wait, before=before)
    return subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=60)


def test_a_hang_ends_the_process_and_says_where():
    found = run(wait=None)
    assert found.returncode == 1
    assert "in waits_for_a_server" in found.stderr
    last = found.stderr.strip().splitlines()[-1]
    assert last.startswith("TimeoutError: step 3 was not done after segrl.step_timeout=0.5 s")


@pytest.mark.parametrize("before", ["clock.stop()", "clock.seconds = None; clock.start('step 4')"])
def test_what_is_done_or_has_no_limit_goes_on(before):
    found = run(wait=1.0, before=before)
    assert (found.returncode, found.stderr) == (0, "")


def test_a_validation_of_four_steps_rollouts_has_the_time_of_four_steps():
    found = run(wait=1.0, before="clock.start('the validation of step 0', times=4)")
    assert (found.returncode, found.stderr) == (0, "")
    found = run(wait=None, before="clock.start('the validation of step 0', times=1.5)")
    assert "the validation of step 0 was not done after segrl.step_timeout=0.5 s times 1.5 and is taken" in found.stderr


def test_each_step_has_its_own_time():
    steps = "import time\nclock.seconds = 2\nfor step in range(4):\n    clock.start(f'step {step}'); time.sleep(0.8)"
    found = run(wait=None, before=steps)
    assert found.returncode == 1
    assert "TimeoutError: step 3 was" in found.stderr

"""A time limit on what the trainer waits for, and the question whether a rollout server's engine lives.

verl waits for a rollout server or a rank that hangs without end, in calls that no exception reaches: so the process
that waits ends itself.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback

import ray

ANSWERS_IN = 300  # seconds, of a rollout server that is alive
HEARD = 5  # seconds, in which Ray carries the last words to the driver's log


class Deadline:
    """A timer; ``start`` replaces the timer that runs."""

    def __init__(self, seconds: float | None) -> None:
        self.seconds = seconds
        self.timer: threading.Timer | None = None

    def start(self, what: str, times: float = 1.0) -> None:
        """Wait so many times as long as for a step."""
        self.stop()
        if self.seconds:
            self.timer = threading.Timer(times * self.seconds, _expired, [what, self.seconds, times])
            self.timer.daemon = True
            self.timer.start()

    def stop(self) -> None:
        if self.timer:
            self.timer.cancel()


def _expired(what: str, seconds: float, times: float) -> None:
    main = threading.main_thread().ident
    where = traceback.format_stack(sys._current_frames()[main]) if main else []
    longer = f" times {times:.1f}" if times > 1 else ""
    sentence = (
        f"TimeoutError: {what} was not done after segrl.step_timeout={seconds:g} s{longer} and is taken to hang, where "
        "the lines above say; if it only needs longer, raise segrl.step_timeout"
    )
    print("".join(where) + sentence, file=sys.stderr, flush=True)
    time.sleep(HEARD)
    os._exit(1)


def check_servers(replicas) -> None:
    """Raises where an engine has died: verl would send it new weights next, and wait for ever for it to take them."""
    answers = [replica.servers[0].collective_rpc.remote("check_health") for replica in replicas]
    try:
        ray.get(answers, timeout=ANSWERS_IN)
    except ray.exceptions.GetTimeoutError as error:
        raise TimeoutError(f"a rollout server has not said within {ANSWERS_IN} s whether its engine lives") from error

"""A time limit on each step of the trainer, and a check that the rollout servers' engines are alive.

verl waits without end for a rollout server or a rank that hangs, and no exception reaches the waiting call. So the
waiting process ends itself.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback

import ray

ANSWERS_IN = 300  # seconds within which a live rollout server answers
HEARD = 5  # seconds that Ray gets to carry the last lines to the driver's log


class Deadline:
    """A timer that ends the process after ``seconds``; None: never."""

    def __init__(self, seconds: float | None) -> None:
        self.seconds = seconds
        self.timer: threading.Timer | None = None

    def start(self, what: str, times: float = 1.0) -> None:
        """Start a timer of ``times`` steps in place of the one that runs."""
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
        f"TimeoutError: {what} was not done after segrl.step_timeout={seconds:g} s{longer} and is taken to hang; the "
        "lines above say where. If it only needs longer, raise segrl.step_timeout"
    )
    print("".join(where) + sentence, file=sys.stderr, flush=True)
    time.sleep(HEARD)
    os._exit(1)


def check_servers(replicas) -> None:
    """Raise where a rollout server's engine has died: verl would send it new weights and wait for ever."""
    answers = [replica.servers[0].collective_rpc.remote("check_health") for replica in replicas]
    try:
        ray.get(answers, timeout=ANSWERS_IN)
    except ray.exceptions.GetTimeoutError as error:
        raise TimeoutError(f"a rollout server did not answer a health check within {ANSWERS_IN} s") from error

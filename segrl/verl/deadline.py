"""A time limit on whatever the trainer is at. A rollout server or a rank that hangs is else waited for without end,
in calls that no exception reaches: so the process that waits ends itself.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback

HEARD = 5  # seconds, in which Ray carries the last words to the driver's log


class Deadline:
    """One at a time: each ``start`` replaces the one before."""

    def __init__(self, seconds: float | None) -> None:
        self.seconds = seconds
        self.timer: threading.Timer | None = None

    def start(self, what: str) -> None:
        self.stop()
        if self.seconds:
            self.timer = threading.Timer(self.seconds, _expired, [what, self.seconds])
            self.timer.daemon = True
            self.timer.start()

    def stop(self) -> None:
        if self.timer:
            self.timer.cancel()


def _expired(what: str, seconds: float) -> None:
    where = traceback.format_stack(sys._current_frames()[threading.main_thread().ident])
    sentence = (
        f"TimeoutError: {what} was not done after segrl.step_timeout={seconds:g} s and is taken to hang, where the "
        "lines above say; if it only needs longer, raise segrl.step_timeout"
    )
    print("".join(where) + sentence, file=sys.stderr, flush=True)
    time.sleep(HEARD)
    os._exit(1)

"""Comparisons that may never end, in worker processes that can be killed.

    caller ── question, answer ──▶ worker      one item at a time, and no longer than ``timeout_s`` for it
       │                             ▲ fork
       └── fork one, kill 1234 ──▶ template    has math-verify imported, so that a new worker costs milliseconds

The template is a fresh interpreter: it never imports the caller's ``__main__``, and inherits none of the caller's
threads, locks and CUDA contexts. However a caller dies, the kernel closes its end of the template's socket. The
template then kills the workers and ends. If the template dies, its workers die with it (``PR_SET_PDEATHSIG``).
"""

from __future__ import annotations

import asyncio
import atexit
import os
import socket
import struct
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from segrl.grading.worker import FORK, read, receive, send

EQUAL = "segrl.grading.worker:equal"
LIFE = 500  # items: a worker's caches grow with what it has seen, and a fresh one is cheap
START_S = 60  # seconds for the template's imports, on a cold and busy disk


class Pool:
    """At most ``workers`` processes, each made when it is needed. Any thread and any event loop may call.

    A fork of this process finds the pool empty, and fills it with workers of its own.
    """

    def __init__(self, workers: int = 4, timeout_s: float = 5.0, memory_mb: int = 1024, equal: str = EQUAL) -> None:
        if workers < 1 or timeout_s <= 0 or memory_mb < 256:
            raise ValueError(
                f"workers={workers}, timeout_s={timeout_s}, memory_mb={memory_mb}: expected at least one worker, "
                "a positive time, and the 256 MiB that math-verify needs"
            )
        self.workers, self.timeout_s, self.memory_mb, self.equal = workers, timeout_s, memory_mb, equal
        self.closed = False
        self._empty()
        _POOLS.add(self)

    def _empty(self) -> None:
        self._slots = threading.Semaphore(self.workers)
        self._idle: list[_Worker] = []
        self._template: _Template | None = None
        self._lock = threading.Lock()  # one order to the template at a time
        self._threads = ThreadPoolExecutor(self.workers, "segrl-grading")

    def call(self, gold: str, pred: str) -> tuple[bool, str]:
        """(equal, status). ``timeout``: no answer in time, ``refused``: out of memory, or the worker crashed."""
        with self._slots:
            worker = self._take()
            deadline = time.monotonic() + self.timeout_s
            while True:
                try:
                    answer = worker.ask(gold, pred, deadline)
                except (TimeoutError, BlockingIOError):
                    self._kill(worker)
                    return False, "timeout"
                except (EOFError, ConnectionError):
                    self._kill(worker)
                    if worker.items == 1:
                        return False, "refused"
                    # Earlier items may have killed the worker: a new one tries, and its start is not the item's time.
                    start = time.monotonic()
                    worker = self._take()
                    deadline += time.monotonic() - start
                except BaseException:  # Ctrl-C between question and answer
                    self._kill(worker)
                    raise
                else:
                    self._give_back(worker)
                    return answer

    async def call_async(self, gold: str, pred: str) -> tuple[bool, str]:
        """``call`` without blocking the event loop: a thread waits for the worker."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self.call, gold, pred)

    def close(self) -> None:
        """End the workers. A closed pool takes no more calls."""
        with self._lock:
            self.closed = True
            if self._template:
                self._template.end()
        idle, self._idle = self._idle, []
        for worker in idle:
            worker.socket.close()
        self._threads.shutdown(wait=False)

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def _take(self) -> _Worker:
        try:
            return self._idle.pop()  # the last used, so that no more workers live than there are calls at once
        except IndexError:
            return self._fork()

    def _fork(self) -> _Worker:
        with self._lock:
            while not self.closed:
                fresh = self._template is None
                template = self._template = self._template or _Template(self.equal, self.memory_mb)
                try:
                    return template.fork()
                except (EOFError, OSError) as error:
                    self._template = None
                    if fresh:
                        raise RuntimeError(
                            f"no grading worker started: a Python process that imports {self.equal} "
                            f"ended or was silent for {START_S} s; what it wrote is on standard error"
                        ) from error
        raise RuntimeError("this grading pool is closed; make a new one")

    def _give_back(self, worker: _Worker) -> None:
        if worker.items < LIFE:
            self._idle.append(worker)
        else:
            self._kill(worker)

    def _kill(self, worker: _Worker) -> None:
        worker.socket.close()
        with self._lock:
            if self._template:
                self._template.kill(worker.pid)

    def _forget(self) -> None:
        """Close the parent's sockets in a fork; the parent keeps its own copies and its workers."""
        for worker in self._idle:
            worker.socket.close()
        if self._template:
            self._template.socket.close()
            self._template.process.returncode = 0  # a process of the parent, not of this fork
        self._empty()


class _Template:
    """The process that forks the workers, as its parent sees it."""

    def __init__(self, equal: str, memory_mb: int) -> None:
        self.socket, template_end = socket.socketpair()
        self.socket.settimeout(START_S)
        # sys.path first: a json.py in the working folder must not stand in for the standard library's.
        boot = (
            "import sys; sys.path[:] = sys.argv[1].split('\\n'); from segrl.grading.worker import template; "
            "template(int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], int(sys.argv[5]))"
        )
        path = "\n".join(folder for folder in sys.path if isinstance(folder, str))
        arguments = [path, str(template_end.fileno()), str(os.getpid()), equal, str(memory_mb)]
        with template_end:
            self.process = subprocess.Popen(
                [sys.executable, "-c", boot, *arguments],
                pass_fds=[template_end.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env={**os.environ, "PYTHONHASHSEED": "0"},  # the same order of sets, so the same verdicts, every time
            )

    def fork(self) -> _Worker:
        caller_end, worker_end = socket.socketpair()
        try:
            with worker_end:
                socket.send_fds(self.socket, [struct.pack("i", FORK)], [worker_end.fileno()])
            return _Worker(caller_end, *struct.unpack("i", read(self.socket, 4)))
        except BaseException:
            caller_end.close()
            self.end()
            raise

    def kill(self, pid: int) -> None:
        with suppress(OSError):  # the template has died, and its workers with it
            self.socket.sendall(struct.pack("i", pid))

    def end(self) -> None:
        self.socket.close()
        try:
            self.process.wait(1)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class _Worker:
    """A process that compares, as its caller sees it."""

    def __init__(self, connection: socket.socket, pid: int) -> None:
        self.socket, self.pid, self.items = connection, pid, 0

    def ask(self, gold: str, pred: str, deadline: float) -> tuple[bool, str]:
        self.items += 1
        self.socket.settimeout(max(0.0, deadline - time.monotonic()))
        send(self.socket, [gold, pred])
        # With zero seconds left, an answer that has come in the meantime still counts.
        self.socket.settimeout(max(0.0, deadline - time.monotonic()))
        correct, status = receive(self.socket)
        return correct, status


_POOLS: weakref.WeakSet[Pool] = weakref.WeakSet()
_shared: list[Pool] = []
_sharing = threading.Lock()


def shared() -> Pool:
    """The one pool of this process."""
    with _sharing:
        if not _shared or _shared[0].closed:
            _shared[:] = [Pool()]
            atexit.register(_shared[0].close)
        return _shared[0]


def _after_fork() -> None:
    global _sharing
    _sharing = threading.Lock()
    for pool in _POOLS:
        pool._forget()


os.register_at_fork(after_in_child=_after_fork)

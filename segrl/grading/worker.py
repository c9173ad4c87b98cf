"""What runs in the processes of ``pool.py``: the template, which forks workers; the worker, which asks math-verify."""

from __future__ import annotations

import ctypes
import gc
import json
import logging
import os
import resource
import signal
import socket
import struct
import sys
from collections.abc import Callable

from segrl.resolving import resolve

# Fills the tables of the parser and of sympy before the first fork: the first comparison of a kind takes up to 0.2 s,
# the later ones 0.01 s.
WARM_UP = (
    ("x^2-1", "(x-1)(x+1)"),
    ("\\frac{\\sqrt{3}}{3}", "\\frac{1}{\\sqrt{3}}"),
    ("\\sin(2x)+\\ln 8", "2\\sin x\\cos x+3\\ln 2"),
    ("\\frac{\\pi}{4}", "50\\%"),
    ("(1,2)", "[1,2]"),
    ("\\{1,2\\}", "\\{x\\}\\cup(3,\\infty)"),
    ("x\\le 3", "x=3"),
    ("\\begin{pmatrix}1\\\\2\\end{pmatrix}", "\\begin{pmatrix}1\\\\3\\end{pmatrix}"),
    ("\\int_0^1 x dx", "2^{n}\\text{ units}"),
)
PARENT_S = 0.5  # how often the template looks for its parent, since a fork of the parent may hold the socket open
FORK = 0  # an order to the template; the other order is the pid of a worker to kill
PR_SET_PDEATHSIG = 1  # of linux/prctl.h


def template(descriptor: int, parent: int, name: str, memory_mb: int) -> None:
    """Fork and kill workers as ordered, until the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    control = socket.socket(fileno=descriptor)
    control.settimeout(PARENT_S)
    compare = resolve(name)
    for pair in WARM_UP:
        if os.getppid() == parent:
            compare(*pair)
    gc.freeze()  # a collection in a worker would copy every shared page
    children: set[int] = set()
    while os.getppid() == parent:
        children -= _reaped(children)
        try:
            order, descriptors, _, _ = socket.recv_fds(control, 4, 1)
        except TimeoutError:
            continue
        if not order:
            break
        (pid,) = struct.unpack("i", order)
        if pid == FORK:
            children.add(_fork_worker(control, descriptors[0], compare, memory_mb))
        elif pid in children:
            os.kill(pid, signal.SIGKILL)
    for pid in children:
        os.kill(pid, signal.SIGKILL)


def _reaped(children: set[int]) -> set[int]:
    return {pid for pid in children if os.waitpid(pid, os.WNOHANG)[0]}


def _fork_worker(control: socket.socket, descriptor: int, compare: Callable, memory_mb: int) -> int:
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        try:
            control.close()
            _limit(memory_mb, parent)
            _work(socket.socket(fileno=descriptor), compare)
        finally:
            os._exit(0)
    os.close(descriptor)
    control.sendall(struct.pack("i", pid))
    return pid


def _limit(memory_mb: int, parent: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # the parent died before prctl
            os._exit(0)
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    limit = memory_mb << 20
    resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # gmp writes to standard error before it aborts


def _work(connection: socket.socket, compare: Callable) -> None:
    """Answer until the caller hangs up, or memory runs out: the caller then takes the worker's end for ``refused``."""
    while True:
        try:
            gold, pred = receive(connection)
        except (EOFError, ConnectionError):
            return
        try:
            correct, status = compare(gold, pred)
        except MemoryError:
            return
        except Exception:  # sympy may raise any exception
            correct, status = False, "refused"
        send(connection, [bool(correct), status])


def equal(gold: str, pred: str) -> tuple[bool, str]:
    """Whether math-verify finds the prediction equal to the gold, and ``symbolic`` or ``gold_unparsable``.

    Its time and memory are bounded by the process alone.
    """
    from math_verify import parse, verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns of each call without a time limit of its own

    expected = [form for form in parse(f"\\boxed{{{gold}}}", parsing_timeout=None) if not isinstance(form, str)]
    if not expected:  # or only its text, which differs from the prediction's
        return False, "gold_unparsable"
    given = parse(f"\\boxed{{{pred}}}", parsing_timeout=None)
    return bool(verify(expected, given, timeout_seconds=None)), "symbolic"


# A message is its length in four bytes, then json.


def send(connection: socket.socket, content: object) -> None:
    body = json.dumps(content).encode()
    connection.sendall(struct.pack("I", len(body)) + body)


def receive(connection: socket.socket) -> list:
    (length,) = struct.unpack("I", read(connection, 4))
    return json.loads(read(connection, length))


def read(connection: socket.socket, length: int) -> bytes:
    parts = []
    while length:
        part = connection.recv(length)
        if not part:
            raise EOFError("the other end has closed")
        parts.append(part)
        length -= len(part)
    return b"".join(parts)

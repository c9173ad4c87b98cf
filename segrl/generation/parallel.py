"""Waiting for many answers at once, with threads that never hold up the end of the process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from queue import Empty, SimpleQueue
from threading import Event, Thread
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_parallel(work: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """``work(item)`` for each item, as they finish. The first failure is raised, and nothing new is begun.

    The threads are daemons, unlike those of ``concurrent.futures``: Ctrl-C ends a command whose requests take an hour.
    """
    if workers < 1:
        raise ValueError(f"concurrency={workers}, expected 1 or more")
    waiting: SimpleQueue[Item] = SimpleQueue()
    for item in items:
        waiting.put(item)
    finished: SimpleQueue[tuple[Result | None, BaseException | None]] = SimpleQueue()
    over = Event()
    expected = waiting.qsize()

    def serve() -> None:
        while not over.is_set():
            try:
                item = waiting.get_nowait()
            except Empty:
                return
            try:
                finished.put((work(item), None))
            except BaseException as error:  # raised again in the thread that asked
                finished.put((None, error))

    for _ in range(min(workers, expected)):
        Thread(target=serve, daemon=True).start()
    try:
        for _ in range(expected):
            result, error = finished.get()
            if error is not None:
                raise error
            yield result
    finally:
        over.set()

"""The pool with a comparison that misbehaves on request; math-verify's own ways are in test_hostile.py."""

import asyncio
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from testkit.processes import alive, wait_until

from segrl.grading import pool as pool_module
from segrl.grading.pool import Pool, shared

EQUAL = "testkit.comparing:equal"
SECONDS = 0.6
GOOD = (True, "symbolic")
MARK = "SEGRL_TEST_POOL"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture(scope="module")
def pool():
    with Pool(workers=3, timeout_s=SECONDS, equal=EQUAL) as pool:
        assert pool.call("1", "1") == GOOD
        yield pool


def worker_pid(pool: Pool) -> int:
    return int(pool.call("", "pid")[1])


def marked(mark: str) -> set[int]:
    """The processes that inherited ``mark`` in their environment."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"{MARK}={mark}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.add(int(folder.name))
        except OSError:
            continue
    return {pid for pid in found if alive(pid)}


@pytest.mark.parametrize(
    ("gold", "pred", "correct"), [("1", "1", True), ("1", "2", False), ("\ud800é", "\ud800é", True)]
)
def test_a_comparison_is_answered(pool, gold, pred, correct):
    assert pool.call(gold, pred) == (correct, "symbolic")


def test_an_answer_may_be_long(pool):
    assert pool.call("1" * 2_000_000, "1" * 2_000_000) == GOOD


def test_what_never_ends_is_killed_in_time_and_the_next_one_is_right(pool):
    before = worker_pid(pool)
    start = time.monotonic()
    assert pool.call("1", "spin") == (False, "timeout")
    assert SECONDS <= time.monotonic() - start < SECONDS + 0.5
    assert pool.call("1", "1") == GOOD
    assert worker_pid(pool) != before
    assert wait_until(lambda: not alive(before))


@pytest.mark.parametrize("pred", ["allocate", "abort", "raise", "recurse"])
def test_what_crashes_is_refused_and_the_next_one_is_right(pool, pred):
    assert pool.call("1", pred) == (False, "refused")
    assert pool.call("1", "1") == GOOD


def test_a_worker_that_dies_of_earlier_items_costs_the_next_one_nothing(pool):
    before = worker_pid(pool)
    pool.call("1", "poison")
    assert pool.call("1", "1") == GOOD
    assert worker_pid(pool) != before


def test_a_stuck_item_holds_up_its_own_slot_alone(pool):
    with ThreadPoolExecutor(2) as threads:
        stuck = [threads.submit(pool.call, "1", "spin") for _ in range(2)]
        time.sleep(0.1)
        start = time.monotonic()
        assert [pool.call(str(i), str(i)) for i in range(20)] == [GOOD] * 20
        assert not any(one.done() for one in stuck)
        assert time.monotonic() - start < SECONDS - 0.1
        assert [one.result() for one in stuck] == [(False, "timeout")] * 2


def test_the_clock_starts_when_a_worker_has_the_item():
    """Four items of 0.35 s on one worker: the last waits 1.05 s, and has 0.6 s of its own."""
    with Pool(workers=1, timeout_s=SECONDS, equal=EQUAL) as one, ThreadPoolExecutor(4) as threads:
        preds = ["sleep 0.35"] * 4
        assert list(threads.map(one.call, preds, preds)) == [GOOD] * 4


def test_the_event_loop_runs_on(pool):
    late = []

    async def watch():
        while True:
            start = time.monotonic()
            await asyncio.sleep(0.005)
            late.append(time.monotonic() - start - 0.005)

    async def grade():
        watcher = asyncio.create_task(watch())
        preds = ["spin", "allocate", "spin", *map(str, range(20))]
        found = await asyncio.gather(*(pool.call_async(pred, pred) for pred in preds))
        watcher.cancel()
        return found

    assert asyncio.run(grade()) == [(False, "timeout"), (False, "refused"), (False, "timeout"), *[GOOD] * 20]
    assert max(late) < SECONDS / 2  # a call on the loop itself would hold it for SECONDS; the benchmark measures


def test_a_worker_is_replaced_after_its_life(pool, monkeypatch):
    monkeypatch.setattr(pool_module, "LIFE", 3)
    pids = [worker_pid(pool) for _ in range(8)]
    assert max(pids.count(pid) for pid in pids) == 3


def test_an_interrupted_call_leaves_no_answer_for_the_next(pool):
    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(KeyboardInterrupt):
            pool.call("sleep 0.3", "sleep 0.3")
    finally:
        signal.signal(signal.SIGALRM, before)
    assert [pool.call("1", "2") for _ in range(3)] == [(False, "symbolic")] * 3


def test_a_killed_template_is_started_again_with_its_workers(pool):
    worker = worker_pid(pool)
    os.kill(pool._template.process.pid, signal.SIGKILL)
    assert wait_until(lambda: not alive(worker))
    assert pool.call("1", "1") == GOOD


def in_child(pool: Pool, pids) -> None:
    pids.send([worker_pid(pool), worker_pid(pool)])


def test_a_fork_makes_workers_of_its_own(pool):
    before = worker_pid(pool)
    ours, theirs = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=in_child, args=(pool, theirs), daemon=True)
    child.start()
    assert ours.poll(20)
    first, second = ours.recv()
    child.join()
    assert first == second != before
    assert worker_pid(pool) == before
    assert wait_until(lambda: not alive(first))


def test_one_pool_is_shared_until_it_is_closed():
    first = shared()
    assert shared() is first
    first.close()
    assert shared() is not first


def test_a_closed_pool_leaves_nothing_behind_and_says_so():
    one = Pool(equal=EQUAL)
    worker = worker_pid(one)
    one.close()
    assert wait_until(lambda: not alive(worker))
    with pytest.raises(RuntimeError, match="closed"):
        one.call("1", "1")


def test_what_cannot_start_is_a_sentence(capfd):
    with pytest.raises(RuntimeError, match="imports nowhere:equal"):
        Pool(equal="nowhere:equal").call("1", "1")
    assert "no module 'nowhere'" in capfd.readouterr().err
    with pytest.raises(ValueError, match="workers=0"):
        Pool(workers=0)


PARENT = """
import ctypes, os, sys, threading, time
open(sys.argv[1], "a").write("once ")
from segrl.grading.pool import Pool
pool = Pool(workers=3, timeout_s=100, equal="testkit.comparing:equal")
for pred in ("spin", "spin", "sleep 100"):
    threading.Thread(target=pool.call, args=("1", pred), daemon=True).start()
while pool._template is None:
    time.sleep(0.01)
fork = ctypes.PyDLL(None).fork() if sys.argv[2] else 0  # Python does not see it, and closes nothing
if fork or not sys.argv[2]:
    print(fork, flush=True)
time.sleep(100)
"""


@pytest.mark.parametrize("fork", ["", "fork"], ids=["alone", "a fork holds its sockets"])
def test_a_killed_parent_leaves_no_process_and_main_runs_once(tmp_path, fork):
    """A script without a ``__main__`` guard, killed while each of its workers is stuck."""
    script, runs, mark = tmp_path / "script.py", tmp_path / "runs", uuid.uuid4().hex
    script.write_text(PARENT)
    parent = subprocess.Popen(
        [sys.executable, script, runs, fork],
        env={**os.environ, MARK: mark, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
    )
    forked = int(parent.stdout.readline())
    try:
        assert wait_until(lambda: len(marked(mark) - {parent.pid, forked}) == 4)  # the template and three workers
        parent.kill()
        parent.wait()
        assert wait_until(lambda: not marked(mark) - {forked})
        assert runs.read_text() == "once "
    finally:
        for pid in marked(mark):
            os.kill(pid, signal.SIGKILL)

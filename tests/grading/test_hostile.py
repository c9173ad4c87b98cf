"""Answers that explode, by math-verify itself, and good ones in between."""

import asyncio
import importlib.util
import json
import os
import signal
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from testkit.real import real_file

import segrl
from segrl.grading.pool import Pool, shared

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

SECONDS = 3.0  # a busy machine is no reason to fail; scripts/bench_grading.py measures
BAD = ["9^{9^{9^{9}}}", "100000000!", "\\binom{1000000000}{500000000}"]
GOOD = [
    ("\\frac{\\sqrt{3}}{3}", "\\frac{1}{\\sqrt{3}}", True),
    ("x^2-1", "(x-1)(x+1)", True),
    ("2\\sqrt{2}", "\\sqrt{8}", True),
    ("\\frac{\\pi}{4}", "\\frac{\\pi}{3}", False),
]
EQUAL = ["nest_sqrt_25"]  # the innermost root is that of 2 + 2
MIXED = [("1", BAD[0]), *GOOD[:2], ("1", BAD[1]), ("1", BAD[2]), *GOOD[2:]]


@pytest.fixture(scope="module")
def pool():
    with Pool(workers=4, timeout_s=SECONDS) as pool:
        pool.call("1", "2")
        yield pool


def in_threads(pool: Pool, items: list) -> list:
    with ThreadPoolExecutor(len(items)) as threads:
        return list(threads.map(lambda item: pool.call(*item[:2]), items))


def in_asyncio(pool: Pool, items: list) -> list:
    async def run():
        return await asyncio.gather(*(pool.call_async(*item[:2]) for item in items))

    return asyncio.run(run())


@pytest.mark.e2e
@pytest.mark.parametrize("call", [in_threads, in_asyncio])
def test_bad_answers_cost_the_good_ones_between_them_nothing(pool, call):
    start = time.monotonic()
    found = call(pool, MIXED)
    assert time.monotonic() - start < SECONDS + 2
    for item, (correct, status) in zip(MIXED, found, strict=True):
        assert (correct, status) == ((item[2], "symbolic") if len(item) == 3 else (False, "timeout"))


@pytest.mark.e2e
@pytest.mark.parametrize("gmpy2", [False, True])
def test_a_large_factorial_is_killed_whatever_multiplies(gmpy2):
    """gmpy2 computes it in one call into C, where no signal reaches Python."""
    if gmpy2 != bool(importlib.util.find_spec("gmpy2")):
        pytest.skip(f"gmpy2 is {'not ' if gmpy2 else ''}installed")
    with Pool(workers=1, timeout_s=SECONDS) as one:
        assert one.call("2\\sqrt{2}", "\\sqrt{8}") == (True, "symbolic")
        start = time.monotonic()
        assert one.call("1", "100000000!") == (False, "timeout")
        assert time.monotonic() - start < SECONDS + 2
        assert one.call("2\\sqrt{2}", "\\sqrt{8}") == (True, "symbolic")


@pytest.mark.e2e
def test_every_hostile_answer_has_a_verdict_in_time():
    shared().call("1", "2")  # the clock of an item does not count the start of the pool
    for line in real_file("grader_hostile_dev.jsonl").read_text().splitlines():
        row = json.loads(line)
        pred = row.get("pred") or row["pred_prefix"] + row["pred_unit"] * row["pred_repeat"] + row["pred_suffix"]
        start = time.monotonic()
        verdict = segrl.grade_answer(row["gold"], pred)
        assert time.monotonic() - start < shared().timeout_s + 2, row["name"]
        assert not verdict.correct or pred.strip(" $") == row["gold"] or row["name"] in EQUAL
        assert segrl.grade_answer("2\\sqrt{2}", "\\sqrt{8}").correct, row["name"]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.e2e
def test_a_ray_actor_grades_and_leaves_nothing_behind_when_it_is_killed():
    ray = pytest.importorskip("ray")
    seconds, mixed = SECONDS, MIXED

    class Grader:  # all it needs is inside: an actor cannot import this module
        def grade(self) -> list:
            from concurrent.futures import ThreadPoolExecutor

            from segrl.grading.pool import Pool

            with Pool(workers=4, timeout_s=seconds) as pool, ThreadPoolExecutor(len(mixed)) as threads:
                return list(threads.map(lambda item: pool.call(*item[:2]), mixed))

        def stick(self) -> tuple[int, list[int]]:
            """The actor and the processes of its pool, two of whose workers are stuck."""
            import os
            import threading
            import time
            from pathlib import Path

            from segrl.grading.pool import Pool

            self.pool = Pool(workers=2, timeout_s=600)
            self.pool.call("1", "2")
            for _ in range(2):
                threading.Thread(target=self.pool.call, args=("1", "9^{9^{9^{9}}}"), daemon=True).start()
            time.sleep(1)
            template = self.pool._template.process.pid
            children = Path(f"/proc/{template}/task/{template}/children").read_text().split()
            return os.getpid(), [template, *map(int, children)]

    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        ray.init(num_cpus=1, _temp_dir=folder, include_dashboard=False, log_to_driver=False)
        try:
            grader = ray.remote(Grader).remote()
            found = ray.get(grader.grade.remote(), timeout=60)
            assert [correct for correct, _ in found] == [len(item) == 3 and item[2] for item in MIXED]
            actor, pids = ray.get(grader.stick.remote(), timeout=60)
            assert len(pids) == 3
            assert all(map(alive, pids))
            os.kill(actor, signal.SIGKILL)
            deadline = time.monotonic() + 5
            while any(map(alive, pids)) and time.monotonic() < deadline:
                time.sleep(0.05)
            assert not any(map(alive, pids))
        finally:
            ray.shutdown()

"""How a world is split in two, once for all."""

from zlib import crc32

import pytest

from segrl import Trace
from segrl.worlds import world_traces
from segrl.worlds.halves import from_file, generated, half_of, short


def traces(n: int) -> list[Trace]:
    return [Trace(id=f"p{i}-{sample}", problem="?", meta={"problem_id": f"p{i}"}) for i in range(n) for sample in "ab"]


def ids(traces) -> list[str]:
    return [trace.id for trace in traces]


def test_a_problem_is_in_the_half_that_its_checksum_says():
    assert crc32(b"123456789") == 0xCBF43926  # the check value that the CRC's definition gives: even
    assert half_of("123456789") == "dev"
    assert {half_of(f"p{i}") for i in range(20)} == {"dev", "test"}


def test_the_halves_of_a_file_share_no_problem_and_leave_none_out():
    every = traces(100)
    dev, test = (from_file(every, half, None, seed=0) for half in ("dev", "test"))
    assert not {trace.problem_id for trace in dev} & {trace.problem_id for trace in test}
    assert sorted(ids(dev) + ids(test)) == sorted(ids(every))
    assert ids(from_file(every, "all", None, seed=0)) == ids(every)
    assert 60 < len(dev) < 140


def test_fewer_are_the_first_of_more_and_the_seed_draws_them():
    twenty, five = (from_file(traces(100), "dev", n, seed=3) for n in (20, 5))
    assert ids(twenty[:5]) == ids(five)
    assert ids(five) != ids(from_file(traces(100), "dev", 5, seed=4))
    assert len(from_file(traces(3), "all", 50, seed=0)) == 6  # at most so many


def test_generated_halves_come_from_even_and_odd_seeds():
    def sample(n: int, seed: int) -> list[Trace]:
        return [Trace(id=f"{seed}-{i}", problem="?") for i in range(n)]

    assert ids(generated(sample, "dev", 2, seed=5)) == ["10-0", "10-1"]
    assert ids(generated(sample, "test", 2, seed=5)) == ["11-0", "11-1"]
    assert ids(generated(sample, "all", 3, seed=5)) == ["10-0", "11-0", "10-1"]
    with pytest.raises(ValueError, match="has no end: give the number of traces"):
        generated(sample, "dev", None, seed=5)


def test_traces_that_fit_are_the_first_that_do():
    def sample(n: int) -> list[Trace]:  # 0, 1, 2, 3, 0, 1, ... thoughts and the answer
        return [Trace(id=f"{i}", problem="?", meta={"kinds": ("needed",) * (i % 4) + ("answer",)}) for i in range(n)]

    assert ids(short(sample, 5, most=1)) == ["0", "1", "4", "5", "8"]
    assert ids(short(sample, 5, most=None)) == ["0", "1", "2", "3", "4"]
    with pytest.raises(ValueError, match="fewer than 2 of 128 traces have at most -1 thoughts"):
        short(sample, 2, most=-1)


@pytest.mark.parametrize(
    ("world", "half", "n", "options", "message"),
    [
        ("lnes", "dev", 1, {}, "there is no world 'lnes', did you mean 'lines'"),
        ("toy", "train", 1, {}, "half='train', expected one of dev, test, all"),
        ("toy", "dev", 0, {}, "n=0 traces of world=toy, expected 1 or more"),
        ("toy", "dev", 1, {"lenght": 3}, "world=toy with the options .* unexpected keyword argument 'lenght'"),
    ],
)
def test_what_is_not_there_is_said(world, half, n, options, message):
    with pytest.raises(ValueError, match=message):
        world_traces(world, half, n, seed=0, **options)

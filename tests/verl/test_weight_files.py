"""What the trainer's ranks hold arrives at every server, whole, and each step's own."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("verl")

from testkit import weight_files
from testkit.weight_files import FileCheckpointEngine


def engines(folder, ranks: int, servers: int):
    trainers = [FileCheckpointEngine(1 << 20, is_master=rank == 0, folder=str(folder)) for rank in range(ranks)]
    return trainers, [FileCheckpointEngine(1 << 20, folder=str(folder)) for _ in range(servers)]


async def sent(trainers, servers, weights: dict[str, torch.Tensor]) -> tuple[list[dict], list[int]]:
    """One update as verl's manager does it; how far each rank's generator was read, too."""
    read = [0] * len(trainers)

    def counted(rank: int):
        for pair in weights.items():
            read[rank] += 1
            yield pair

    async def received(server):
        return {name: weight async for name, weight in server.receive_weights()}

    metadata = [one.prepare() for one in [*trainers, *servers]]
    for group, given in zip(
        (trainers, servers), FileCheckpointEngine.build_topology(len(trainers), len(servers), metadata), strict=True
    ):
        for one, folder in zip(group, given["folder"], strict=True):
            one.init_process_group(folder)
    waiting = [asyncio.create_task(received(server)) for server in servers]
    await asyncio.sleep(3 * weight_files.LOOKS_EVERY)  # the servers ask before there is anything
    assert not any(task.done() for task in waiting)
    await asyncio.gather(*(one.send_weights(counted(rank)) for rank, one in enumerate(trainers)))
    found = await asyncio.wait_for(asyncio.gather(*waiting), timeout=20)
    for one in [*trainers, *servers]:
        one.finalize()
    return found, read


def test_what_a_killed_trainer_left_is_removed_by_the_next_on_its_machine(tmp_path):
    killed = subprocess.Popen([sys.executable, "-c", ""])
    killed.wait()
    names = {"dead": f"{weight_files.prefix()}{killed.pid}-ab_c", "alive": f"{weight_files.prefix()}{os.getpid()}-x"}
    names |= {"elsewhere": f"segrl-weights-elsewhere-{killed.pid}-x", "other": "segrl-weights"}
    for name in names.values():
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights.safetensors").write_bytes(b"a model")
    new = FileCheckpointEngine(1 << 20, is_master=True, folder=str(tmp_path)).prepare()
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {names["alive"], names["elsewhere"], names["other"], Path(new).name}
    assert Path(new).name.startswith(f"{weight_files.prefix()}{os.getpid()}-")


def test_two_updates_from_two_ranks_to_two_servers(tmp_path):
    trainers, servers = engines(tmp_path, ranks=2, servers=2)
    shared = torch.arange(6.0).reshape(2, 3)
    for step in range(2):
        weights = {"embed": shared + step, "head": shared + step, "slice": (shared + step)[:, 1:]}
        weights["norm"] = torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
        found, read = asyncio.run(sent(trainers, servers, weights))
        assert read == [4, 4]  # gathering is the work of every rank
        for arrived in found:
            assert set(arrived) == set(weights)
            assert all(torch.equal(arrived[name], weights[name]) for name in weights)
            assert all(arrived[name].dtype == weights[name].dtype for name in weights)
        assert list(tmp_path.iterdir()) == []  # nothing is left behind

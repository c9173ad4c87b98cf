"""New weights for rollout servers that share no process with the trainer, as a file that both see. For machines without
an accelerator: verl's own ways (NCCL, NIXL, ...) need one. Named by two of verl's settings::

    actor_rollout_ref.rollout.checkpoint_engine.backend=file
    actor_rollout_ref.rollout.checkpoint_engine.custom_backend_module=testkit.weight_files
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from verl.checkpoint_engine.base import CheckpointEngine, CheckpointEngineRegistry

LOOKS_EVERY = 0.05  # seconds


def prefix() -> str:
    """Of the folders that this machine's processes write; their ids follow."""
    return f"segrl-weights-{socket.gethostname()}-"


def remove_leftovers(folder: Path) -> None:
    """A run that is killed between two calls leaves a whole model behind."""
    for left in folder.glob(f"{prefix()}*"):
        written_by = left.name.removeprefix(prefix()).partition("-")[0]
        if written_by.isdigit() and not runs(int(written_by)):
            shutil.rmtree(left, ignore_errors=True)


def runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # another user's
    return True


@CheckpointEngineRegistry.register("file")
class FileCheckpointEngine(CheckpointEngine):
    """The trainer's first rank writes a file, every server reads it. It appears whole, and ``folder`` has to be seen by
    all: the default, the system's temporary folder, is one machine's."""

    def __init__(self, bucket_size: int, is_master: bool = False, folder: str | None = None) -> None:
        self.is_master, self.folder = is_master, folder
        self.path = Path()

    def prepare(self) -> str:
        """A new name each time: last step's weights must not be taken for this step's."""
        if not self.is_master:
            return ""
        remove_leftovers(Path(self.folder or tempfile.gettempdir()))
        return tempfile.mkdtemp(prefix=f"{prefix()}{os.getpid()}-", dir=self.folder)

    @classmethod
    def build_topology(cls, actor_wg_world_size: int, rollout_world_size: int, metadata: list[str]):
        folder = metadata[0]
        return {"folder": [folder] * actor_wg_world_size}, {"folder": [folder] * rollout_world_size}

    def init_process_group(self, folder: str) -> None:
        self.path = Path(folder) / "weights.safetensors"

    async def send_weights(self, weights: Iterable[tuple[str, torch.Tensor]], global_steps: int | None = None) -> None:
        if not self.is_master:
            for _ in weights:  # gathering a shard is the work of all ranks
                pass
            return
        whole = {name: weight.detach().cpu().clone() for name, weight in weights}
        part = self.path.with_suffix(".part")
        save_file(whole, part)
        os.replace(part, self.path)

    async def receive_weights(self, global_steps: int | None = None) -> AsyncIterator[tuple[str, torch.Tensor]]:
        while not self.path.exists():
            await asyncio.sleep(LOOKS_EVERY)
        with safe_open(self.path, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118, not a dict
                yield name, weights.get_tensor(name)

    def finalize(self) -> None:
        if self.is_master:
            self.path.unlink()
            self.path.parent.rmdir()

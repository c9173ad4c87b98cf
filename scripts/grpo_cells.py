"""The cells of a grid of GRPO runs: which there are, which have ended well, and how one is run.

A cell is one arm with one seed, in ``OUT/<arm>/seed-<seed>``; its file ``done`` holds the config that it ran with.
Several processes may run the cells of one OUT: a cell belongs to the process that holds its lock, and a lock ends with
its process. scripts/compare_grpo.py is the command.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import IO, Any

from omegaconf import OmegaConf

from segrl import toy
from segrl.commands.config import ConfigError, compose
from segrl.commands.generating import HELD_OUT
from segrl.data import shards, write_verl_parquet
from segrl.data.files import write_text
from segrl.types import Trace
from segrl.worlds.halves import fitting

BASE = "base"
PAUSE = 20  # seconds between two looks at the cells that other processes hold


@dataclass(frozen=True)
class Cell:
    """A run, its folder, and what makes it: overrides of ``segrl grpo`` and a seed, which the folder is named after."""

    folder: Path
    overrides: tuple[str, ...]
    seed: int

    @property
    def done(self) -> bool:
        """Whether a cell has ended well in the folder; ``refuse_others`` checks that it was this one."""
        return (self.folder / "done").exists()


def composed(overrides: tuple[str, ...]) -> str:
    """The whole config that ``segrl grpo`` makes of the overrides, a line for each key, sorted."""
    try:
        config = OmegaConf.to_container(compose("grpo", list(overrides)), resolve=False)
    except ConfigError as error:
        raise SystemExit(f"no cell can be made of {' '.join(overrides)}: {error}") from error
    return "".join(f"{line}\n" for line in sorted(flat(config)))


def flat(section: Mapping[str, Any], above: str = "") -> Iterator[str]:
    for key, value in section.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}={value!r}"


def refuse_others(cells: Iterable[Cell]) -> None:
    """End the program where a cell's folder holds an ended cell that is none of ``cells``; these may share a folder."""
    composed_once, planned = cache(composed), defaultdict(list)
    for cell in dict.fromkeys(cells):
        if cell.done:
            planned[cell.folder].append(cell)
    for folder, candidates in planned.items():
        there = (folder / "done").read_text()
        if all(there != composed_once(cell.overrides) for cell in candidates):
            changes = (changed(there, composed_once(cell.overrides)) for cell in candidates)
            raise SystemExit(f"{folder} holds another cell: {min(changes, key=len)}; choose another OUT")


def changed(was: str, now: str) -> str:
    """The lines that only one of two configs has."""
    old, new = was.splitlines(), now.splitlines()
    gone, added = [line for line in old if line not in {*new}], [line for line in new if line not in {*old}]
    return f"it has {shown(gone)}, this one {shown(added)}"


def shown(lines: Sequence[str], most: int = 6) -> str:
    more = f" and {len(lines) - most} more" if len(lines) > most else ""
    return (", ".join(lines[:most]) or "nothing else") + more


# --- which there are -------------------------------------------------------------------------------------------------


def size_of(spec: Mapping[str, Any], size: str) -> Mapping[str, Any]:
    if size not in spec["sizes"]:
        raise SystemExit(f"there is no size {size!r}; expected one of {', '.join(spec['sizes'])}")
    return spec["sizes"][size]


def cells_of(out: Path, spec: Mapping[str, Any], size: str, seeds: Sequence[int] | None = None) -> list[Cell]:
    """The cells of a size, of these seeds alone where some are given."""
    grid = size_of(spec, size)
    common = [*spec["common"], *grid.get("overrides", []), f"trainer.total_training_steps={grid['steps']}"]
    common += [f"trainer.test_freq={grid['validate_every']}", "trainer.val_before_train=false"]
    return [
        Cell(out / arm / f"seed-{seed}", (*common, *spec["arms"][arm]), seed)
        for seed in grid["seeds"]
        if seeds is None or seed in seeds
        for arm in grid["arms"]
    ]


def base_of(out: Path, spec: Mapping[str, Any], grid: Mapping[str, Any]) -> Cell:
    """The validation of the model that all cells begin with."""
    alone = ["trainer.val_before_train=true", "trainer.val_only=true", "segrl.rule=uniform"]
    return Cell(out / BASE / "seed-0", (*spec["common"], *grid.get("overrides", []), *alone), 0)


def finished(out: Path, spec: Mapping[str, Any]) -> dict[str, dict[int, Path]]:
    """Arm -> seed -> folder of the cells of every size that have ended well; refuses folders of other cells."""
    cells = [cell for size in spec["sizes"] for cell in cells_of(out, spec, size)]
    refuse_others([*(base_of(out, spec, grid) for grid in spec["sizes"].values()), *cells])
    ended: dict[str, dict[int, Path]] = {arm: {} for arm in spec["arms"]}
    for cell in sorted(cells, key=lambda cell: cell.seed):
        if cell.done:
            ended[cell.folder.parent.name][cell.seed] = cell.folder
    return {arm: seeds for arm, seeds in ended.items() if seeds}


def seeded(seed: int) -> list[str]:
    keys = ("data.seed", "actor_rollout_ref.rollout.seed", "actor_rollout_ref.actor.data_loader_seed")
    return [f"{key}={seed}" for key in keys]


def write_problems(out: Path, wanted: Mapping[str, Any]) -> None:
    """Write problems to learn from, and others of the same lengths to be evaluated on; all cells share them."""
    for name, (was, now) in shards.claim(out / "problems" / "settings.json", wanted).items():
        raise SystemExit(f"{out} has problems of another kind: {name} was {was!r}, now {now!r}; choose another OUT")
    held_out = sampled(wanted["held_out"], HELD_OUT, wanted)
    train = sampled(wanted["train"], 0, wanted, without={problem.problem for problem in held_out})
    for split, problems in (("train", train), ("held_out", held_out)):
        if not (file := rows_of(out, split)).exists():
            write_verl_parquet(problems, file, "toy", split)


def sampled(count: int, seed: int, wanted: Mapping[str, Any], without: Collection[str] = ()) -> list[Trace]:
    """The first toy problems of the seed with the ``wanted`` question and steps that are not among ``without``."""
    least, most = wanted["steps"]

    def fits(problem: Trace) -> bool:
        return least <= problem.meta["n_steps"] <= most and problem.problem not in without

    sample = partial(toy.sample_problems, seed=seed, ask=wanted["ask"])
    return fitting(sample, count, fits, f"have {least} to {most} steps and are not among the others")


def rows_of(out: Path, split: str) -> Path:
    return out / "problems" / f"{split}.parquet"


# --- running ---------------------------------------------------------------------------------------------------------


def run(out: Path, spec: Mapping[str, Any], size: str, seeds: Sequence[int] | None = None) -> None:
    """Run every cell that is missing, seed by seed, so that an interrupted grid is balanced. A cell that fails is left
    for the next call."""
    grid = size_of(spec, size)
    if (needed := grid.get("after")) and not (out / needed).exists():
        raise SystemExit(f"the size {size} runs once {out / needed} is written: compare_grpo.py power OUT SPEC")
    write_problems(out, spec["problems"])
    failed: list[Cell] = []
    cells = [base_of(out, spec, grid), *cells_of(out, spec, size, seeds)]
    refuse_others(cells)
    waiting = False
    while left := [cell for cell in cells if not cell.done and cell not in failed]:
        for cell in left:
            with held(cell) as lock:
                if lock and not cell.done:
                    failed += [cell] if run_cell(cell, out, lock) else []
                    break
        else:
            if not waiting:
                print(
                    f"other processes run {', '.join(str(cell.folder) for cell in left)}; waiting for them", flush=True
                )
            waiting = True
            time.sleep(PAUSE)
    if failed:
        raise SystemExit(f"failed: {', '.join(str(cell.folder) for cell in failed)}; the same command tries them again")


@contextmanager
def held(cell: Cell) -> Iterator[IO | None]:
    """The cell's lock, or None where another process has it. The run holds it too, as it may outlive this process."""
    cell.folder.parent.mkdir(parents=True, exist_ok=True)
    with cell.folder.with_suffix(".lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            yield lock


def run_cell(cell: Cell, out: Path, lock: IO) -> int:
    """Run the cell from its beginning; returns its exit code."""
    note = composed(cell.overrides)  # as it begins: a yaml may change while it runs
    shutil.rmtree(cell.folder, ignore_errors=True)
    cell.folder.mkdir(parents=True)
    print(f"{time.strftime('%H:%M')} {cell.folder}", flush=True)
    # Each cell has a Ray of its own. Its sockets lie in this folder, and their paths may have at most 107 characters.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as ray:
        code = logged([*command(out, cell), f"+ray_kwargs.ray_init._temp_dir={ray}"], cell.folder, lock)
    if code:
        tail = (cell.folder / "log").read_text(errors="replace").splitlines()[-5:]
        print(f"{cell.folder} ended with exit code {code}; the end of its log:", *tail, sep="\n", flush=True)
    else:
        write_text(cell.folder / "done", note)
    return code


def command(out: Path, cell: Cell) -> list[str]:
    settings = {
        "out": cell.folder,
        "data_path": rows_of(out, "train"),
        "val_path": rows_of(out, "held_out"),
        "trainer.save_freq": -1,
        "trainer.resume_mode": "disable",
        "trainer.logger": "[console,file]",
        "trainer.validation_data_dir": cell.folder / "validation",
    }
    entry = [sys.executable, "-m", "segrl", "grpo"]
    return [*entry, *cell.overrides, *seeded(cell.seed), *(f"{key}={value}" for key, value in settings.items())]


def logged(command: Sequence[str], folder: Path, lock: IO) -> int:
    """Run the command with its output in the folder's log; returns its exit code."""
    env = os.environ | {"VERL_FILE_LOGGER_PATH": str((folder / "metrics.jsonl").absolute())}
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT, pass_fds=[lock.fileno()]) as process,
    ):
        try:
            process.wait()
        except KeyboardInterrupt:
            process.terminate()
            process.wait()  # nothing may still write where the next start begins
            raise
    return process.returncode

"""The problems of ``data_path`` and ``val_path`` -> the files of rows that verl reads."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from segrl import toy
from segrl.commands.generating import HELD_OUT
from segrl.data import BENCHMARKS, load_benchmark, load_traces, read_rows, verl_rows, write_rows
from segrl.data.files import Row
from segrl.types import Trace


def give_rows(config: DictConfig) -> str | None:
    """Name the files of rows in ``config.data``; a sentence where nothing is validated."""
    validated = config.data.val_files or not config.data.train_files
    config.data.train_files = rows_file(config, "train")
    if validated:
        config.data.val_files = rows_file(config, "val")
        return None
    # verl reads a file to validate on even where it never validates.
    config.data.val_files, config.data.val_max_samples = config.data.train_files, config.data.train_batch_size
    config.trainer.val_before_train, config.trainer.test_freq = False, -1
    return "nothing is validated while it trains; for that give val_path=aime24, val_path=[aime24,amc23] or a file"


def rows_file(config: DictConfig, split: str) -> str | list[str]:
    """verl's own files of rows where they are given, else the file of rows that is written from the given problems."""
    short = {"train": "data_path", "val": "val_path"}[split]
    given = config.data[f"{split}_files"]
    if config[short] and given != config[short]:
        raise ValueError(f"{short}={config[short]} and data.{split}_files={given} name different problems; give one")
    sources = [given] if isinstance(given, str) else list(given or [])
    if sources and all(map(_is_verl_parquet, sources)):
        return given if isinstance(given, str) else sources
    path = Path(config.out) / "data" / f"{split}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [_rows_of(source, split) for source in sources] or [verl_rows(toy_problems(split), "toy", split)]
    write_rows(path, [row for some in rows for row in some])
    return str(path.absolute())  # the workers of a cluster may be in another folder


def _rows_of(source: str, split: str) -> list[Row]:
    """The rows of a file or benchmark, under its name: verl averages over the rows of a name."""
    return read_rows(source) if _is_verl_parquet(source) else verl_rows(problems_at(source), Path(source).stem, split)


def problems_at(source: str) -> list[Trace]:
    """The benchmark of this name, unless a file or folder here has it too; else what ``load_traces`` reads."""
    if source in BENCHMARKS and not Path(source).exists():
        return load_benchmark(source)
    return load_traces(source)


def toy_problems(split: str) -> list[Trace]:
    """Problems of the toy world; none stands in both splits. From those of more than six steps, which the bundled model
    hardly ever solves, nothing would be learnt: all rewards of a group are zero.
    """
    if split == "val":
        return toy.sample_problems(128, seed=HELD_OUT)
    return [problem for problem in toy.sample_problems(3072, seed=0) if problem.meta["n_steps"] <= 6][:2048]


def _is_verl_parquet(path: str) -> bool:
    from pyarrow.parquet import read_schema

    return (
        Path(path).suffix == ".parquet"
        and Path(path).is_file()
        and {"prompt", "reward_model"} <= set(read_schema(path).names)
    )

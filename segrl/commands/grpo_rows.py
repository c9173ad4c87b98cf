"""The problems of ``data_path`` and ``val_path`` -> the files of rows that verl reads."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from omegaconf import DictConfig, ListConfig

from segrl import toy
from segrl.commands.generating import HELD_OUT
from segrl.data import BENCHMARKS, load_benchmark, load_traces, verl_rows, write_rows
from segrl.types import Trace


def give_rows(config: DictConfig) -> str | None:
    """Name the files of rows in ``config.data``; a sentence where nothing is validated."""
    config.data.train_files = rows_file(config, "train")
    if config.val_path or not config.data_path:
        config.data.val_files = rows_file(config, "val")
        return None
    # verl reads a file to validate on even where it never validates.
    config.data.val_files, config.data.val_max_samples = config.data.train_files, config.data.train_batch_size
    config.trainer.val_before_train, config.trainer.test_freq = False, -1
    return "nothing is validated while it trains; for that give val_path=aime24, val_path=[aime24,amc23] or a file"


def rows_file(config: DictConfig, split: str) -> str:
    """The file of verl's rows that is given, or one written from the problems that are given."""
    given = {"train": config.data_path, "val": config.val_path}[split]
    if isinstance(given, str) and _is_verl_parquet(given):
        return given
    path = Path(config.out) / "data" / f"{split}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [verl_rows(problems, name, split) for name, problems in named_problems(given, split)]
    write_rows(path, [row for some in rows for row in some])
    return str(path)


def named_problems(given: str | ListConfig | None, split: str) -> Iterable[tuple[str, list[Trace]]]:
    """Name and problems of each file or benchmark; verl averages over the problems of a name."""
    if not given:
        return [("toy", toy_problems(split))]
    sources = [given] if isinstance(given, str) else list(given)
    return [(Path(source).stem, problems_at(source)) for source in sources]


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

    return Path(path).suffix == ".parquet" and {"prompt", "reward_model"} <= set(read_schema(path).names)

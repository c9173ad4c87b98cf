"""Which thoughts are truncated: by planted kinds, or by a model that runs on any backend of `segrl generate`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from segrl.analysis import judge
from segrl.commands.common import plain
from segrl.types import Trace


def truncated(config: DictConfig, rows: Sequence[Mapping[str, Any]], folder: Path) -> dict[str, Any] | None:
    """1 or 0 for each thought of each trace, by planted kinds or by a model; None without either."""
    how = config.analysis.truncation
    if how == "auto":
        planted = any(row["kinds"] for row in rows)
        how = "planted" if planted else "judge" if config.judge_path or config.server else "none"
    if how == "none":
        return None
    if how == "planted":
        if not any(row["kinds"] for row in rows):
            raise ValueError("analysis.truncation=planted, but no trace has planted kinds; judge them with judge_path=")
        values = judge.planted(rows)
    else:
        values = judge.by_trace(rows, _verdicts(config, rows, folder))
    return {row["id"]: row_values for row, row_values in zip(rows, values, strict=True)}


def _verdicts(config: DictConfig, rows: Sequence[Mapping[str, Any]], folder: Path) -> dict[str, bool | None]:
    """The verdict on each thought by id; thoughts without one after the first round get a second."""
    questions = [question for row in rows for question in judge.questions(row)]
    first = _responses(config, questions, folder, "first", {})
    verdicts = {response.problem_id: judge.verdict(response) for response in first}
    silent = [response for response in first if verdicts[response.problem_id] is None]
    again = [question for response in silent if (question := judge.hurried(response))]
    if again:
        changed = {"template": "{problem}", "generation": plain(config.second_round)}
        second = _responses(config, again, folder, "second", changed)
        verdicts |= {response.problem_id: judge.hurried_verdict(response.response) for response in second}
    missing = sum(verdict is None for verdict in verdicts.values())
    print(f"judged: {len(verdicts)} thoughts, {len(again)} in a second round, {missing} without a verdict")
    return verdicts


def _responses(config: DictConfig, questions: list[Trace], folder: Path, name: str, changed: Mapping) -> list[Trace]:
    """The judge model's response to each question, kept in ``folder``."""
    from segrl.commands.generating import generated
    from segrl.data import save_traces

    file = folder / f"{name}.parquet"
    folder.mkdir(parents=True, exist_ok=True)
    save_traces(questions, file)
    settings = {"model_path": config.judge_path, "data_path": str(file), "limit": None, "generation": {"n": 1}}
    merged = OmegaConf.merge(plain(config), settings, changed)
    assert isinstance(merged, DictConfig)
    return generated(merged, folder / name)

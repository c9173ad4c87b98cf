"""Which thoughts are truncated: by planted kinds, or asked of a model that any generator of `segrl generate` runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from segrl.analysis import judge
from segrl.types import Trace


def truncated(config: DictConfig, found: Sequence[Mapping[str, Any]], folder: Path) -> dict[str, Any] | None:
    """1 or 0 for each thought of each trace, by planted kinds or by a model; None where nobody says."""
    how = config.analysis.truncation
    if how == "auto":
        planted = any(one["kinds"] for one in found)
        how = "planted" if planted else "judge" if config.judge_path or config.server else "none"
    if how == "none":
        return None
    if how == "planted":
        if not any(one["kinds"] for one in found):
            raise ValueError("analysis.truncation=planted, but no trace has planted kinds; judge them with judge_path=")
        values = judge.planted(found)
    else:
        values = judge.by_trace(found, _judged(config, found, folder))
    return {one["id"]: own for one, own in zip(found, values, strict=True)}


def _judged(config: DictConfig, found: Sequence[Mapping[str, Any]], folder: Path) -> dict[str, bool | None]:
    """Two rounds: thoughts that got no verdict in the first are asked to answer at once."""
    first = _asked(config, [one for each in found for one in judge.questions(each)], folder, "first", {})
    verdicts = {one.problem_id: judge.verdict(one.response) for one in first}
    hurried = [judge.hurried(response) for response in first if verdicts[response.problem_id] is None]
    again = [question for question in hurried if question]
    if again:
        short = {"template": "{problem}", "generation": {"max_tokens": 4}}
        second = _asked(config, again, folder, "second", short)
        verdicts |= {one.problem_id: judge.hurried_verdict(one.response) for one in second}
    silent = sum(one is None for one in verdicts.values())
    print(f"judged: {len(verdicts)} thoughts, {len(again)} in a second round, {silent} without a verdict")
    return verdicts


def _asked(config: DictConfig, questions: list[Trace], folder: Path, name: str, changed: Mapping) -> list[Trace]:
    from segrl.commands.generating import generated
    from segrl.data import save_traces

    file = folder / f"{name}.parquet"
    folder.mkdir(parents=True, exist_ok=True)
    save_traces(questions, file)
    own = {"model_path": config.judge_path, "data_path": str(file), "limit": None, "generation": {"n": 1}}
    merged = OmegaConf.merge(config, own, changed)
    assert isinstance(merged, DictConfig)
    return generated(merged, folder / name)

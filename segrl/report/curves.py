"""The curves of a GRPO run over its steps: reward, entropy, and the weight on thoughts for the wrong answer."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import torch

from segrl.report.entries import Entry, is_contrast

Line = dict[int, float]  # step -> value
Metrics = Mapping[int, Mapping[str, float]]
REWARD, ENTROPY = "critic/score/mean", "actor/entropy"


class Curve(NamedTuple):
    """One small chart: its lines by name, the first drawn through, the others dashed."""

    name: str
    about: str
    lines: Mapping[str, Line]
    contrast: bool = False  # whether it is about the scores of a contrast


def load_metrics(path: str | Path) -> dict[int, dict[str, float]]:
    """What verl's ``file`` logger wrote, by step; of a step that was run twice, the second run's."""
    metrics: dict[int, dict[str, float]] = defaultdict(dict)
    for file in (_earlier(path), Path(path)):
        if file.exists() or file == Path(path):
            _read_metrics(file, metrics)
    return dict(metrics)


def _read_metrics(file: Path, metrics: dict[int, dict[str, float]]) -> None:
    for number, text in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        try:
            line = json.loads(text)
            metrics[int(line["step"])].update(line["data"])
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(
                f'{file}, line {number}, is no line of verl\'s file logger, {{"step": ..., "data": {{...}}}}; give the '
                "file that trainer.logger=[file] wrote at VERL_FILE_LOGGER_PATH"
            ) from error


def keep_metrics(path: str | Path, goes_on: bool) -> None:
    """Keep what verl's ``file`` logger wrote for ``load_metrics`` where a run goes on: verl begins the file anew."""
    file, earlier = Path(path), _earlier(path)
    if not goes_on:
        earlier.unlink(missing_ok=True)
    elif file.exists():
        with earlier.open("ab") as kept:
            kept.write(file.read_bytes())
        file.unlink()


def _earlier(path: str | Path) -> Path:
    return Path(path).with_suffix(".earlier.jsonl")


def curves_of(rollouts: Sequence[Entry], metrics: Metrics | None = None) -> list[Curve]:
    """The curves that the run's rollouts and metrics hold."""
    metrics = metrics or {}
    weight, tokens = _for_wrong_answers(rollouts)
    curves = [
        Curve(
            "reward",
            "mean over problems that change from step to step",
            {"reward": _logged(metrics, REWARD) or _rewards(rollouts)},
        ),
        Curve("entropy", "nats a token", {"entropy": _logged(metrics, ENTROPY)}),
        Curve("thoughts for the wrong answer", "their share", {"of the weight": weight, "of the tokens": tokens}, True),
    ]
    return [curve for curve in curves if all(curve.lines.values())]


def _logged(metrics: Metrics, name: str) -> Line:
    return {step: float(values[name]) for step, values in sorted(metrics.items()) if name in values}


def _rewards(rollouts: Sequence[Entry]) -> Line:
    steps = defaultdict(list)
    for entry in rollouts:
        if entry.credit is not None:
            steps[entry.credit.step].append(entry.credit.reward)
    return {step: fmean(rewards) for step, rewards in sorted(steps.items())}


def _for_wrong_answers(rollouts: Sequence[Entry]) -> tuple[Line, Line]:
    """The share of weight on thoughts that speak for the wrong answer, those above zero in a contrast, in the thinking
    of each step's wrong responses; and the share of their tokens, which is what uniform weights give.
    """
    steps = defaultdict(list)
    for entry in rollouts:
        view = next((view for name, view in entry.views.items() if is_contrast(name, view)), None)
        if view is not None and entry.credit is not None and entry.credit.reward <= 0:
            index_T = view.segments.index_T
            thinking_T, for_it_T = view.segments.thought_S[index_T], (view.scores.strength_S > 0)[index_T]
            steps[entry.credit.step].append((entry.credit.weights_T[thinking_T], for_it_T[thinking_T]))
    weight, tokens = {}, {}
    for step, responses in sorted(steps.items()):
        weights_T, for_it_T = (torch.cat(column) for column in zip(*responses, strict=True))
        if float(weights_T.sum()) > 0:
            weight[step] = float(weights_T[for_it_T].sum() / weights_T.sum())
            tokens[step] = float(for_it_T.double().mean())
    return weight, tokens

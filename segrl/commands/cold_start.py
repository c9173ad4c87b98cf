"""What `segrl sft` does where no selections are given: score into shards, then select, as `segrl select` does.

The selections lie in ``out/selections.jsonl``, beside them how they were made, their scores in
``out/selections.scores``. A measure that reads attributions has them in ``out/attributions``, as `segrl attribute`
writes them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from segrl.commands.common import traces_of
from segrl.commands.config import compose
from segrl.commands.scoring import check_measure
from segrl.commands.traces import attribute, how_selected, select
from segrl.data.records import how_made, made_by
from segrl.importance import measure_of
from segrl.sft.stages import Stage, check_unclaimed


def selects_here(config: DictConfig, stages: list[Stage]) -> bool:
    """Whether a stage needs selections and none are given."""
    return not config.selections and any(stage.mode != "full" for stage in stages)


def select_here(config: DictConfig) -> None:
    """Make the selections of ``out``; ``config`` then names them, and no threshold any more."""
    out = Path(config.out) / "selections.jsonl"
    thresholds = {f"selection.{name}": config[name] for name in ("tau", "beta") if config[name] is not None}
    selecting = config_of("select", config, out=out, attributions=_attributed(config), **thresholds)
    note, wanted = made_by(out), how_selected(selecting, traces_of(selecting))
    if not (out.exists() and note.exists() and note.read_text() == wanted):
        check_unclaimed(config.out, how_made(out), json.loads(wanted))
    select(selecting)  # from its scores, if they are made; they are refused where they follow from other settings
    config.selections, config.tau, config.beta = str(out), None, None


def _attributed(config: DictConfig) -> str | None:
    """The attributions given, or those made here; None for a measure that reads something else."""
    if config.attributions or measure_of(config.measure).needs != ("ig",):
        return config.attributions
    check_measure(config.measure, config.attribution.path)
    out = Path(config.out) / "attributions"
    attribute(config_of("attribute", config, out=out))
    return str(out)


def config_of(command: str, config: DictConfig, **keys: Any) -> DictConfig:
    """The config of another command, with the values of all keys that it shares with `segrl sft`, then ``keys``."""
    composed = compose(command, []).copy()
    OmegaConf.set_readonly(composed, False)
    values: dict[str, Any] = {str(key): config[key] for key in composed if key in config}
    for key, value in {**values, "template": config.segrl.template, **keys}.items():
        OmegaConf.update(composed, key, value)
    return composed

"""What attribution may cost, turned once into nodes and a share; and what a run remembers beside its checkpoints."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from segrl.attribution.calibration import COUNTS, load_nodes
from segrl.attribution.quadrature import Nodes
from segrl.credit.cost import EVALUATION, FORWARDS_OF_UPDATE
from segrl.credit.settings import CALIBRATED, QUADRATURES, Credit
from segrl.data.files import write_text
from segrl.resolving import resolve

MEMORY = "segrl.json"


@dataclass(frozen=True)
class Plan:
    """``evaluation`` is the cost of one node on one rollout, in units of that rollout's part of ``update_actor``."""

    nodes: int
    share: float
    evaluation: float

    @property
    def cost(self) -> float:
        return self.nodes * self.share * self.evaluation


def plan(budget: float | None, nodes: int, share: float, evaluation: float) -> Plan:
    """As many calibrated nodes as the budget pays on the share asked for, ``nodes`` at most; if not one, a smaller
    share. Without a budget what was asked for stays.
    """
    if budget is None:
        return Plan(nodes, share, evaluation)
    affordable = [count for count in (*COUNTS, nodes) if count <= nodes and count * share * evaluation <= budget]
    if affordable:
        return Plan(max(affordable), share, evaluation)
    return Plan(1, min(share, budget / evaluation), evaluation)


def evaluation_cost(
    checkpointing: bool,
    seconds_a_token: float | None = None,
    forward_seconds_a_token: float | None = None,
    times: int = 1,
) -> float:
    """From one timed pass held against verl's own forward on the same batch; where either is unknown, by the count of
    operations, ``times`` over."""
    if not seconds_a_token or not forward_seconds_a_token:
        return times * EVALUATION[checkpointing]
    return seconds_a_token / (forward_seconds_a_token * FORWARDS_OF_UPDATE[checkpointing])


def calibration_settings(credit: Credit) -> dict[str, Any]:
    """What a calibration follows from, besides the model."""
    names = ("target", "interpolate", "attributor", "calibration_rollouts", "calibration_nodes")
    return {name: getattr(credit, name) for name in names} | {"counts": sorted({*COUNTS, credit.nodes})}


def plan_settings(credit: Credit, checkpointing: bool) -> dict[str, Any]:
    """What a plan follows from, besides the model and the machine."""
    names = ("budget", "nodes", "share", "measure", "attributor", "attributor_path", "attributor_workers")
    return {name: getattr(credit, name) for name in names} | {"checkpointing": checkpointing}


class Memory:
    """A json file beside the checkpoints: the calibration and the plan, made once and found again on resuming with the
    settings that they follow from."""

    def __init__(self, folder: str | Path, model_path: str) -> None:
        self.path = Path(folder) / MEMORY
        self.found: dict[str, Any] = {"model": str(model_path)}
        if self.path.is_file():
            kept = json.loads(self.path.read_text(encoding="utf-8"))
            if kept.get("model") == str(model_path):  # another model's path is steep elsewhere
                self.found = kept

    def get(self, name: str, settings: Mapping[str, Any]) -> Any:
        """What was kept under these settings, or None."""
        kept = self.found.get(name, {})
        return kept["found"] if kept.get("settings") == settings else None

    def keep(self, name: str, settings: Mapping[str, Any], found: Mapping[str, Any]) -> None:
        self.found[name] = {"settings": dict(settings), "found": dict(found)}
        write_text(self.path, json.dumps(self.found, indent=1) + "\n")


def nodes_for(credit: Credit, nodes: int, calibration: Mapping[str, Any] | None) -> Nodes:
    """The alphas and weights to evaluate; midpoint ones until there is a calibration."""
    if credit.quadrature.endswith(".json"):
        return load_nodes(credit.quadrature, nodes)
    rules = (calibration or {}).get("rules", {}) if credit.quadrature == CALIBRATED else {}
    if str(nodes) not in rules:
        return resolve(credit.quadrature, QUADRATURES)(nodes)
    rule = rules[str(nodes)]
    return torch.tensor(rule["alphas"], dtype=torch.float64), torch.tensor(rule["weights"], dtype=torch.float64)

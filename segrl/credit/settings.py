"""The ``segrl`` section of verl's config: its keys, their defaults, and what is refused before anything starts.

``configs/grpo.yaml`` says what each key does. Nothing here knows of verl, Ray or a model.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from segrl.attribution.evaluator import INTERPOLATE
from segrl.attribution.quadrature import CALIBRATED, RULES, midpoint
from segrl.importance import measure_of
from segrl.resolving import near, resolve
from segrl.segmentation import SEGMENTERS
from segrl.weighting import SIGNS, WEIGHTINGS

TARGETS = ("own", "gold")
ATTRIBUTORS = ("live", "frozen", "ref")
QUADRATURES = RULES | {CALIBRATED: midpoint}  # which serves until there is a calibration
# What a measure may read inside GRPO: from a backward pass of the attributor, and from what verl has computed anyway.
BY_GRADIENT = ("ig", "gradient_T")
AT_LEAST_ONE = (
    "nodes",
    "every",
    "calibration_rollouts",
    "calibration_nodes",
    "fidelity_rollouts",
    "fidelity_nodes",
    "attributor_workers",
)
FROM_VERL = ("entropy_T", "logp_T")
# Keys that earlier versions had, and what to set in their place.
REMOVED = {
    "budget": "segrl.budget is no longer a setting: set segrl.nodes, the points on each path, and segrl.share, the "
    "part of a step's tokens that is attributed; `segrl cost` says what they come to",
}


@dataclass
class CreditSettings:
    rule: str = "rank"
    rule_options: dict[str, Any] = field(default_factory=dict)
    measure: str = "ig"
    measure_options: dict[str, Any] = field(default_factory=dict)
    sign: str = "positive"
    warmup_steps: int = 0
    segmenter: str = "auto"
    segmentation: dict[str, Any] = field(default_factory=dict)
    tau: float = 0.7
    beta: float = 1.0
    every: int = 1
    share: float = 1.0
    target: str = "own"
    nodes: int = 1
    quadrature: str = CALIBRATED
    calibration_rollouts: int = 16
    calibration_nodes: int = 48
    interpolate: str = "response"
    certificate_every: int = 10
    fidelity_every: int = 50
    fidelity_rollouts: int = 8
    fidelity_nodes: int = 48
    tokens_per_forward: int | None = None
    checkpointing: bool | None = None
    attributor: str = "live"
    attributor_path: str | None = None
    attributor_dtype: str = "bfloat16"
    attributor_workers: int = 1
    attributor_gpus: float = 1.0
    poll_seconds: float = 2.0
    step_timeout: float | None = 7200
    dump_dir: str | None = None

    def __post_init__(self) -> None:
        resolve(self.rule, WEIGHTINGS, "weighting rule")
        resolve(self.segmenter, SEGMENTERS, "segmenter")
        _check_measure(self.measure)
        choices = (
            ("sign", SIGNS),
            ("target", TARGETS),
            ("interpolate", INTERPOLATE),
            ("attributor", ATTRIBUTORS),
        )
        for name, known in choices:
            if getattr(self, name) not in known:
                raise ValueError(f"segrl.{name}={getattr(self, name)!r}{near(getattr(self, name), known)}")
        if not self.quadrature.endswith(".json"):
            resolve(self.quadrature, QUADRATURES, "quadrature rule")
        for name in AT_LEAST_ONE:
            if getattr(self, name) < 1:
                raise ValueError(f"segrl.{name}={getattr(self, name)}, expected 1 or more")
        if self.quadrature == CALIBRATED and self.attributor != "frozen" and self.nodes > self.calibration_nodes:
            raise ValueError(
                f"segrl.nodes={self.nodes} are to be chosen among segrl.calibration_nodes={self.calibration_nodes}; "
                "give at least as many to choose from, or segrl.quadrature=midpoint"
            )
        for name in ("certificate_every", "fidelity_every", "warmup_steps", "attributor_gpus"):
            if getattr(self, name) < 0:
                raise ValueError(f"segrl.{name}={getattr(self, name)}, expected 0 or more")
        if self.step_timeout is not None and self.step_timeout <= 0:
            raise ValueError(f"segrl.step_timeout={self.step_timeout}, expected seconds, or null for no limit")
        if not 0 < self.share <= 1:
            raise ValueError(f"segrl.share={self.share}, expected a part of one, like 0.25")
        if (self.attributor == "frozen") != bool(self.attributor_path):
            raise ValueError(
                f"segrl.attributor={self.attributor} with attributor_path={self.attributor_path}: a frozen attributor "
                "needs a path, and the others take none"
            )

    @property
    def need(self) -> str | None:
        """What the measure reads, or None."""
        needs = measure_of(self.measure).needs
        return needs[0] if needs else None

    @property
    def reads_kinds(self) -> bool:
        """Whether the measure reads the planted kinds of the toy world."""
        return measure_of(self.measure).reads_kinds

    @property
    def attributes(self) -> bool:
        """Whether a model has to run for the scores."""
        return self.rule != "uniform" and self.need in BY_GRADIENT


def credit_from(config: DictConfig) -> CreditSettings:
    """The settings in verl's config; what is not given keeps its default."""
    given = config.get("segrl") or {}
    known = [field.name for field in fields(CreditSettings)]
    for key in given:
        if key in REMOVED:
            raise ValueError(REMOVED[str(key)])
        if key not in known:
            raise ValueError(f"segrl.{key} is not a setting{near(str(key), known)}")
    return cast(CreditSettings, OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(CreditSettings), given)))


def _check_measure(name: str) -> None:
    measure = measure_of(name)
    unread = [need for need in measure.needs if need not in (*BY_GRADIENT, *FROM_VERL)]
    if unread or len(measure.needs) > 1:
        raise ValueError(
            f"segrl.measure={name} reads {', '.join(measure.needs)}, which is not gathered while training; online are "
            "those that read one of " + ", ".join((*BY_GRADIENT, *FROM_VERL)) + ", or nothing"
        )

"""What a run will take, as lines to read, and the refusal of what does not fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from segrl.cost.hardware import GIB, Hardware
from segrl.cost.memory import OVERHEAD, Phase
from segrl.cost.shape import Shape


@dataclass(frozen=True)
class Plan:
    shape: Shape
    hardware: Hardware
    gpus: int  # 1 for a machine without any
    phases: tuple[Phase, ...]
    remedies: Mapping[str, str] = field(default_factory=dict)  # part of a phase -> the key that makes it smaller
    checkpoint: int = 0  # bytes
    kept: int | None = None  # checkpoints; None: all
    hours: float | None = None
    of: str = ""  # what the hours are of

    def lines(self) -> str:
        """The plan in a few lines."""
        each = f"{self.gpus} x {self.hardware.name}" if self.hardware.is_gpu else "this machine"
        holds = f"{self.hardware.memory / GIB:.3g} GiB" + (" each" if self.hardware.is_gpu and self.gpus > 1 else "")
        count = self.shape.parameters
        size = f"{count / 1e9:.3g} billion" if count >= 1e8 else f"{count / 1e6:.3g} million"
        lines = [f"plan: {size} parameters on {each} of {holds}"]
        lines += [f"  {phase.name:<12}{_phase(phase)}" for phase in self.phases]
        if self.checkpoint:
            kept = f", {self.kept} kept" if self.kept else ", all kept"
            lines.append(f"  {'disk':<12}{self.checkpoint / GIB:.3g} GiB a checkpoint{kept}")
        if self.hours is not None:
            lines.append(f"  {'time':<12}{hours_said(self.hours)} by flops, {self.of}")
        return "\n".join(lines)

    def check(self) -> None:
        """Refuse the first phase that needs more memory than there is, with the key to change."""
        reserve = OVERHEAD if self.hardware.is_gpu else 0
        for phase in self.phases:
            if phase.total + reserve > self.hardware.memory:
                part = max((part for part in phase.parts if part in self.remedies), key=phase.parts.__getitem__)
                spare = f" and {reserve / GIB:.0f} GiB to spare" if reserve else ""
                raise ValueError(
                    f"{phase.name} needs {_phase(phase)}{spare}; {self.hardware.name} has "
                    f"{self.hardware.memory / GIB:.3g} GiB: {self.remedies[part]}"
                )


def _phase(phase: Phase) -> str:
    parts = [f"{part} {size / GIB:.3g}" for part, size in phase.parts.items() if size >= GIB / 200]
    return f"{phase.total / GIB:.3g} GiB ({', '.join(parts)})"


def hours_said(hours: float) -> str:
    """The time in hours; in minutes where it is less than an hour, in seconds where it is less than a minute."""
    for name, unit in (("hours", 1), ("minutes", 60)):
        if hours * unit >= 1:
            return f"{hours * unit:,.3g} {name}" if hours * unit < 1000 else f"{hours * unit:,.0f} {name}"
    return f"{hours * 3600:.2g} seconds"

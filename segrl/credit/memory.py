"""The calibration and the weights of entropy of a run, kept beside its checkpoints."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segrl.attribution.calibration import COUNTS
from segrl.credit.settings import CreditSettings
from segrl.data.files import write_text

MEMORY = "segrl.json"


class Memory:
    """A json file beside the checkpoints, read again when the run is resumed. Each value in it is kept with the
    settings that it follows from."""

    def __init__(self, folder: str | Path, model_path: str) -> None:
        self.path = Path(folder) / MEMORY
        self.contents: dict[str, Any] = {"model": str(model_path)}
        if self.path.is_file():
            kept = json.loads(self.path.read_text(encoding="utf-8"))
            if kept.get("model") == str(model_path):  # another model's path is steep elsewhere
                self.contents = kept

    def get(self, name: str, settings: Mapping[str, Any]) -> Any:
        """The value that was kept under these settings, or None."""
        kept = self.contents.get(name, {})
        return kept["found"] if kept.get("settings") == settings else None

    def keep(self, name: str, settings: Mapping[str, Any], value: Mapping[str, Any]) -> None:
        self.contents[name] = {"settings": dict(settings), "found": dict(value)}
        write_text(self.path, json.dumps(self.contents, indent=1) + "\n")


def calibration_settings(settings: CreditSettings) -> dict[str, Any]:
    """The settings that a calibration follows from."""
    names = ("path", "output", "begin", "interpolate", "attributor", "calibration_rollouts", "calibration_nodes")
    basis = {name: getattr(settings, name) for name in names}
    target = next((side.explains for side in settings.path_sides), settings.target)
    return basis | {"target": target, "counts": sorted({*COUNTS, settings.nodes})}

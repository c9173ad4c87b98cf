"""segrl's add-on to verl. Importing this module registers it.

verl imports it in each of its processes, through the entry point ``verl.plugins`` or through
``VERL_USE_EXTERNAL_MODULES=segrl.verl``. Most of those processes serve rollouts or rewards and never see a trainer, so
the trainers are registered only where verl's own are imported.
"""

from __future__ import annotations

import importlib
import os
import sys
from importlib.abc import MetaPathFinder
from importlib.util import find_spec

TRAINERS = "verl.trainer.ppo.v1"


class _WithTrainers(MetaPathFinder):
    """A finder that imports segrl's trainers, which register themselves, right after verl's."""

    def find_spec(self, fullname, path, target=None):
        if fullname != TRAINERS:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        assert spec is not None
        assert spec.loader is not None
        run = spec.loader.exec_module

        def run_and_register(module) -> None:
            run(module)
            importlib.import_module("segrl.verl.trainer")

        spec.loader.exec_module = run_and_register  # type: ignore[method-assign]
        return spec


if os.environ.get("VERL_PLATFORM", "").strip().lower() == "cpu":
    importlib.import_module("segrl.verl.platform").activate()
if TRAINERS in sys.modules:
    importlib.import_module("segrl.verl.trainer")
else:
    sys.meta_path.insert(0, _WithTrainers())

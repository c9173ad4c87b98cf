"""What stands in scripts/, as modules."""

import importlib.util
import sys

from testkit.readme import ROOT


def loaded(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

"""The core needs neither verl, ray nor vllm; the command line starts without torch; what is imported is declared."""

import ast
import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import segrl

PACKAGE = Path(segrl.__file__).parent
WALLED = ("verl", "ray", "vllm")
# As in DESIGN.md, and in pyproject.toml's per-file-ignores.
ALLOWED = ("segrl.verl", "segrl.generation.vllm", "segrl.attribution.cluster")

IMPORT_BLOCKED = """
import importlib, json, sys

class Wall:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in walled:
            raise ImportError(f"the core imported {name}")

walled, modules = json.loads(sys.argv[1])
sys.meta_path.insert(0, Wall())
for module in modules:
    importlib.import_module(module)
"""


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts).removesuffix(".__init__")] = path
    return found


def core_modules() -> dict[str, Path]:
    return {
        name: path
        for name, path in modules().items()
        if not any(name == allowed or name.startswith(f"{allowed}.") for allowed in ALLOWED)
        and not name.endswith(".__main__")
    }


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=120)


def test_the_core_imports_with_verl_ray_and_vllm_blocked():
    done = run("-c", IMPORT_BLOCKED, json.dumps([WALLED, list(core_modules())]))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "start", ["import segrl", "import sys; sys.argv[1:] = ['--help']; import runpy; runpy.run_module('segrl')"]
)
def test_segrl_starts_without_torch(start):
    done = run("-X", "importtime", "-c", start)
    assert done.returncode == 0, done.stderr
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "segrl" in imported
    assert not imported & {"torch", "transformers", "hydra", *WALLED}


def third_party(path: Path) -> set[str]:
    """The top-level names that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(str(node.module).partition(".")[0])
    return names - sys.stdlib_module_names - {"segrl"}


def test_what_the_core_imports_is_among_its_dependencies():
    declared = {one.name.lower() for one in map(Requirement, metadata.requires("segrl")) if one.marker is None}
    distributions = metadata.packages_distributions()
    undeclared = {
        (module, name)
        for module, path in core_modules().items()
        for name in third_party(path)
        if not declared & {distribution.lower().replace("_", "-") for distribution in distributions.get(name, [name])}
    }
    assert not undeclared

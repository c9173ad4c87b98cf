"""The core needs neither verl, ray nor vllm; the command line starts without torch; what is imported is declared."""

import ast
import json
import subprocess
import sys
from functools import cache
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import segrl

PACKAGE = Path(segrl.__file__).parent
WALLED = ("verl", "ray", "vllm")
# As in docs/architecture.md, and in pyproject.toml's per-file-ignores.
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


@cache
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


# --- the arrows of the house -----------------------------------------------------------------------------------------

# From the ground up: a room imports from floors below it, wherever in a file the import stands.
FLOORS = (
    ("text", "resolving", "cost"),
    ("types",),
    ("tokenization", "loading", "toy", "grading", "selection", "weighting"),
    ("segmentation", "attribution", "generation"),
    ("importance",),
    ("data", "report", "launch", "trl"),
    ("evaluation", "worlds"),
    ("analysis",),
    ("sft", "credit"),
    ("verl",),
    ("commands",),
)
ALLOWED_ARROWS = {
    "text": set(),
    "resolving": set(),
    "cost": set(),
    "types": {"text"},
    "tokenization": {"text", "types"},
    "loading": set(),
    "toy": {"types"},
    "grading": {"resolving", "text"},
    "selection": {"types"},
    "weighting": {"resolving", "types"},
    "segmentation": {"resolving", "tokenization", "types"},
    "attribution": {"grading", "loading", "resolving", "tokenization", "types"},
    "generation": {"grading", "loading", "resolving", "text", "types"},
    "importance": {
        *("attribution", "generation", "grading", "loading", "resolving", "text", "tokenization", "toy", "types"),
    },
    "data": {"resolving", "text", "types"},
    "report": {"grading", "importance", "text", "types"},
    "launch": {"toy"},
    "trl": {"grading", "text"},
    "evaluation": {"data"},
    "worlds": {"data", "resolving", "segmentation", "toy", "types"},
    "analysis": {
        *("attribution", "evaluation", "grading", "importance", "resolving", "selection", "text", "toy", "types"),
    },
    "sft": {
        *("cost", "data", "launch", "loading", "resolving", "segmentation", "selection", "text", "tokenization"),
        *("types", "weighting"),
    },
    "credit": {
        *("attribution", "data", "grading", "importance", "loading", "resolving", "segmentation", "selection"),
        *("text", "toy", "types", "weighting"),
    },
    "verl": {
        *("attribution", "credit", "data", "grading", "importance", "launch", "loading", "resolving", "text", "types"),
    },
}


def imported(path: Path) -> set[str]:
    """The modules of segrl that a file imports, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and str(node.module).partition(".")[0] == "segrl":
            names |= {
                full if (full := f"{node.module}.{alias.name}") in modules() else node.module for alias in node.names
            }
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names if alias.name.startswith("segrl.")}
    return names


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def test_every_arrow_is_in_the_table_and_every_entry_is_an_arrow():
    arrows: dict[str, set[str]] = {name: set() for floor in FLOORS for name in floor}
    for module, path in modules().items():
        if room(module) not in ("", "__main__"):
            arrows[room(module)] |= {room(other) for other in imported(path)} - {room(module), ""}
    assert {name: arrows[name] for name in ALLOWED_ARROWS} == ALLOWED_ARROWS
    assert arrows.keys() == {*ALLOWED_ARROWS, "commands"}  # which may import every room


def test_the_arrows_point_down():
    floor = {name: number for number, floor in enumerate(FLOORS) for name in floor}
    up = [(name, other) for name, others in ALLOWED_ARROWS.items() for other in others if floor[other] >= floor[name]]
    assert not up


def test_no_file_imports_itself_in_a_circle():
    arrows = {module: imported(path) for module, path in modules().items()}
    while ground := [module for module, others in arrows.items() if not others & arrows.keys()]:
        for module in ground:
            del arrows[module]
    assert not arrows

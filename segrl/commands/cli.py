"""``segrl <command> key=value``: the commands, and how their errors reach a user. Starts without torch."""

from __future__ import annotations

import os
import sys
from importlib import import_module

import segrl
from segrl.resolving import near

# group -> command -> (where it lives, what it does)
GROUPS: dict[str, dict[str, tuple[str, str]]] = {
    "Most used": {
        "quickstart": ("segrl.commands.quickstart:quickstart", "the whole path, on the bundled model or yours"),
        "sft": ("segrl.commands.sft:main", "selective SFT on verl: traces -> a trained model"),
        "grpo": ("segrl.commands.grpo:main", "GRPO on verl with segment-weighted advantages"),
    },
    "Traces": {
        "generate": ("segrl.commands.generating:generate", "problems -> traces, sampled from a model"),
        "harvest": (
            "segrl.commands.generating:harvest",
            "keep each problem's shortest right and shortest wrong response, of many samples",
        ),
        "segment": ("segrl.commands.traces:segment", "traces -> segments"),
        "attribute": ("segrl.commands.traces:attribute", "traces -> integrated gradients of their answers"),
        "calibrate": ("segrl.commands.traces:calibrate", "fit a few nodes of the path to a model, in place of many"),
        "select": ("segrl.commands.traces:select", "traces -> scored segments and which of them to keep"),
        "export": ("segrl.commands.exporting:export", "traces and selections -> masks for other trainers"),
    },
    "Evaluation": {
        "evaluate": ("segrl.commands.evaluating:evaluate", "accuracy, pass@k and maj@k of a model on benchmarks"),
        "grade": ("segrl.commands.evaluating:grade", "verdicts on saved responses, whichever tool saved them"),
        "compare": ("segrl.commands.evaluating:compare", "the difference of two evaluations, with an interval"),
    },
    "Looking": {
        "explain": (
            "segrl.commands.explaining:explain",
            "which thoughts carried one response's answer, or misled it",
        ),
        "report": ("segrl.commands.looking:report", "traces, scores and selections as one offline page"),
        "show": ("segrl.commands.looking:show", "a trace in the terminal, coloured by importance"),
        "analyze": ("segrl.commands.analysing:analyze", "the paper's analysis of a set of traces: numbers and figures"),
        "truth": (
            "segrl.commands.analysing:truth",
            "every measure against what is known of thoughts: planted kinds, first wrong steps, Shapley values",
        ),
    },
    "Machine": {
        "doctor": ("segrl.commands.doctor:main", "what is installed, what is missing, and the command that brings it"),
        "cost": (
            "segrl.commands.costing:cost",
            "what a command takes in memory, disk and hours, without loading a model",
        ),
    },
}
COMMANDS = {name: entry for group in GROUPS.values() for name, entry in group.items()}
PLANNED = ("sft", "grpo", "attribute", "select", "evaluate")  # behind `segrl cost`
INPUTS = ("traces", "data_path", "val_path", "selections", "attributions", "a", "b")
OUTPUTS = ("out", "pruned")
USAGE = "usage: segrl <command> [key=value ...]   [--help [section or key] | --cfg job | --version]"
FLAGS = ("--help", "--cfg")


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help") or argv == ["help"]:
        print(_overview())
        return 0
    if argv[0] == "help":
        argv = [argv[1], "--help", *argv[2:]]
    if argv[0] == "--version":
        print(f"segrl {segrl.__version__}")
        return 0
    if argv[:2] in (["attribute", "calibrate"], ["analyze", "truth"]):
        argv = argv[1:]
    if argv[0] == "cost" and argv[1:2] and argv[1] in PLANNED:
        return _run(argv[1], argv[2:], "segrl.commands.costing:print_plan")
    if argv[0] not in COMMANDS:
        return _fail(f"segrl: no command is called {argv[0]!r}{near(argv[0], COMMANDS)}")
    return _run(argv[0], argv[1:])


def _run(command: str, arguments: list[str], planner: str = "") -> int:
    """Run the command, or the function that prints its plan; the exit code."""
    where, what = COMMANDS[command]
    try:
        overrides, flag, topic = _parsed(command, arguments)
        from segrl.commands.config import compose

        config = compose(command, overrides)
        _check(config)
        if flag:
            print(_help(command, what, config, topic) if flag == "--help" else _yaml(config), end="")
            return 0
        module, _, function = (planner or where).partition(":")
        return getattr(import_module(module), function)(config, *([command] if planner else [])) or 0
    except (ValueError, OSError, ImportError, MemoryError) as error:
        if os.environ.get("SEGRL_TRACEBACK"):
            raise
        return _fail(f"segrl {command}: {error}")
    except KeyboardInterrupt:
        print(f"\nsegrl {command}: interrupted; what was written stays, the same command goes on", file=sys.stderr)
        return 130


def _parsed(command: str, arguments: list[str]) -> tuple[list[str], str, str]:
    """What was typed as overrides, ``--help`` or ``--cfg`` if one of them was, and the word that stands beside it."""
    flags = [{"-h": "--help", "-c": "--cfg"}.get(word, word) for word in arguments if word.startswith("-")]
    words = [word for word in arguments if not word.startswith(("-", "~")) and "=" not in word]
    for flag in flags:
        if flag not in FLAGS:
            raise ValueError(f"unknown flag {flag!r}{near(flag, FLAGS)}")
    if len(words) > len(flags):
        raise ValueError(f"{words[0]!r} is no key=value; `segrl {command} --help` lists the keys")
    overrides = [word for word in arguments if not word.startswith("-") and word not in words]
    return overrides, "".join(flags[:1]), "".join(words)


def _check(config) -> None:
    """Refuse a limit below one, and an output that would take the place of an input or of another output, or would be
    read as a part of an input's folder."""
    if config.get("limit") is not None and config.limit < 1:
        raise ValueError(f"limit={config.limit}, expected 1 or more, or null for all")
    places: dict[str, str] = {}
    given = [(key, config.get(key)) for key in INPUTS]
    folders = {os.path.realpath(path): key for key, path in given if isinstance(path, str) and os.path.isdir(path)}
    for key in INPUTS + OUTPUTS:
        path = config.get(key)
        if not isinstance(path, str) or (not os.path.isfile(path) and key not in OUTPUTS):
            continue
        there = places.setdefault(os.path.realpath(path), key)
        if key in OUTPUTS and there != key:
            raise ValueError(f"{key}={path} would take the place of {there}; name another file")
        holder = folders.get(os.path.realpath(os.path.dirname(path)))
        if key in OUTPUTS and holder and path.endswith((".jsonl", ".parquet")):
            raise ValueError(f"{key}={path} would be read as a part of {holder}; name another folder")


def _fail(sentence: str) -> int:
    print(sentence, file=sys.stderr)
    return 2


def _overview() -> str:
    promise = "find the parts of a long reasoning trace that matter, and train on them"
    groups = [
        "\n".join([name, *(f"  {command:<12}{what}" for command, (_, what) in commands.items())])
        for name, commands in GROUPS.items()
    ]
    return "\n\n".join([f"segrl {segrl.__version__}: {promise}\n{USAGE}", *groups])


def _help(command: str, what: str, config, topic: str) -> str:
    from segrl.commands.help_screen import help_screen

    return help_screen(command, what, config, topic)


def _yaml(config) -> str:
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(config)

"""The keys of a command with their sentences, read from the comments of the yaml files and of the dataclasses.

`segrl <command> --help` and docs/configs.md are made of them. Starts without torch.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import MISSING, DictConfig, OmegaConf

from segrl.commands.config import CONFIG_DIR, ON_VERL, OWN_GROUPS, schema_of

KEY = re.compile(r"^(?P<indent> *)(?P<key>[\w.]+):(?P<value>(?: [^#]*)?)(?:# ?(?P<comment>.*))?$")
FIELD = re.compile(r"^    (?P<name>\w+): [^#]+?(?:  # (?P<comment>.*))?$")
ABOVE = re.compile(r"^    # (?P<comment>.*)$")
MORE = re.compile(r"^ {8,}# ?(?P<comment>.*)$")
PACKAGE = "# @package "
# What a user gives or changes first; the other keys follow in the order of their schema.
FIRST = (
    *(
        "model_path",
        "problem",
        "response",
        "answer",
        "page",
        "traces",
        "data_path",
        "val_path",
        "benchmark",
        "a",
        "b",
        "selections",
        "rollouts",
        "out",
    ),
    *("attributions", "attributor_path", "limit", "world", "half", "measures", "measure", "measure_options", "tau"),
    *("beta", "mode", "stages", "segmenter", "problems", "test_problems", "samples", "test_samples", "greedy", "k"),
    *("thinking", "keep", "backend", "server", "gpu", "segrl.rule", "segrl.rule_options", "segrl.measure"),
    *("segrl.negative_measure", "segrl.sign", "segrl.scope", "segrl.form", "segrl.segmenter"),
    *("segrl.target", "segrl.dump_dir", "segrl.share", "segrl.every", "segrl.warmup_steps"),
)


class Key(NamedTuple):
    name: str  # dotted
    value: str = ""  # as yaml writes it
    type: str = ""
    sentence: str = ""


class File(NamedTuple):
    """A yaml file: what it says of itself, and its keys."""

    head: str
    keys: list[Key]
    package: str  # where its keys belong, with a dot behind; empty: at the top


class Described(NamedTuple):
    """What a command's yaml says, its keys by name, its sections with their sentences, and its groups of files."""

    about: File
    keys: dict[str, Key]
    sections: dict[str, str]
    groups: list[str]


# --- commands --------------------------------------------------------------------------------------------------------


@cache
def command_keys(command: str) -> Described:
    """segrl's keys of a command with their defaults; of one that runs on verl without verl's."""
    path = CONFIG_DIR / f"{command}.yaml"
    described = Described(described_file(path), {}, {}, [])
    for entry in OmegaConf.load(path).defaults:
        if isinstance(entry, DictConfig):
            ((key, name),) = entry.items()
            group = str(key).removeprefix("optional ")
            described.groups.append(group)
            if file := options(group, command).get(name):
                _add_file(described, file, "" if group in OWN_GROUPS else f"{group}.")
        elif entry == f"{command}_schema":
            _add_schema(described, schema_of(command), "")
        elif entry == "_self_":
            _add_file(described, described.about, "", verls=command in ON_VERL)
        elif "@" in entry:
            _add_mixed_in(described, *entry.split("@"))
    names = sorted(described.keys, key=lambda name: FIRST.index(name) if name in FIRST else len(FIRST))
    return described._replace(keys={name: described.keys[name] for name in names})


def options(group: str, command: str) -> dict[str, File]:
    """The files of a group that a command can choose from, by name."""
    folder = CONFIG_DIR / command / group if group in OWN_GROUPS else CONFIG_DIR / group
    return {path.stem: described_file(path) for path in sorted(folder.glob("*.yaml"))}


def _add_mixed_in(described: Described, name: str, place: str) -> None:
    from segrl.commands.trace_schema import IN_VERLS

    _add_schema(described, IN_VERLS[name], "" if place == "_global_" else f"{place}.")


def _add_schema(described: Described, schema: type | None, prefix: str) -> None:
    """Add the fields of a dataclass, and as sections those that are dataclasses."""
    assert schema is not None
    if prefix:
        described.sections[prefix.removesuffix(".")] = purpose(schema)
    sentences = comments_of(schema)
    for field in fields(schema):
        name, factory = f"{prefix}{field.name}", field.default_factory
        if isinstance(factory, type) and is_dataclass(factory):
            _add_schema(described, factory, f"{name}.")
            continue
        value = factory() if factory is not dataclasses.MISSING else field.default
        kind = field.type if isinstance(field.type, str) else inspect.formatannotation(field.type)
        described.keys[name] = Key(name, "" if value == MISSING else shown(value), kind, sentences.get(field.name, ""))


def _add_file(described: Described, file: File, prefix: str, verls: bool = False) -> None:
    """Give the keys the values and sentences of a yaml; add those that are new, unless they are verl's."""
    for key in file.keys:
        name = f"{file.package or prefix}{key.name}"
        if verls and "." in name and not name.startswith("segrl."):
            continue
        if verls and "${" in key.value:
            _refer(described, described.keys.pop(name, Key(name)), key.value.strip("${}"))
        elif not key.value and name not in described.keys:
            described.sections[name] = key.sentence
        else:
            known = described.keys.get(name, Key(name))
            described.keys[name] = known._replace(
                value=key.value or known.value, sentence=key.sentence or known.sentence
            )


def _refer(described: Described, key: Key, other: str) -> None:
    """Give a key's sentence to the other key, which sets it."""
    if other in described.keys and key.sentence and not described.keys[other].sentence:
        described.keys[other] = described.keys[other]._replace(type=key.type, sentence=key.sentence)


# --- files and dataclasses -------------------------------------------------------------------------------------------


def described_file(path: Path) -> File:
    """What a yaml says of itself, and its keys, dotted, with the comments above, beside and below them."""
    head, above, keys, parents, package = [], [], [], [], ""  # type: ignore[var-annotated]
    for line in path.read_text().splitlines():
        key, more = KEY.match(line), MORE.match(line)
        if line.startswith(PACKAGE):
            package = line.removeprefix(PACKAGE).replace("_global_", "")
        elif line.startswith("#"):
            (above if parents else head).append(line.lstrip("# "))
        elif more and keys:
            keys[-1] = keys[-1]._replace(sentence=f"{keys[-1].sentence} {more['comment']}".strip())
        elif key:
            parents[len(key["indent"]) // 2 :] = [key["key"]]
            sentence = " ".join([*above, key["comment"] or ""]).strip()
            keys.append(Key(".".join(parents), key["value"].strip(), sentence=sentence))
            above = []
    keys = [key for key in keys if not key.name.startswith("defaults") and (key.value or key.sentence)]
    return File(" ".join(head), keys, f"{package}." if package else "")


def comments_of(schema: type) -> dict[str, str]:
    """The comments beside and above the fields of a dataclass and of those that it extends, or of the parameters that
    they are made of.
    """
    return {name: comment for base in filter(is_dataclass, reversed(schema.__mro__)) for name, comment in _read(base)}


def _read(base: type) -> Iterator[tuple[str, str]]:
    above: list[str] = []
    for line in inspect.getsource(vars(base).get("described_in", base)).splitlines():
        if match := FIELD.match(line):
            yield match["name"], " ".join([*above, match["comment"] or ""]).strip()
        above = [*above, more["comment"]] if (more := ABOVE.match(line)) else []


def purpose(section: type) -> str:
    """What a section is for: its docstring up to the first colon or full stop."""
    said = re.split(r"(?<!Eq)[:.](?:\s|$)", inspect.getdoc(section) or "", maxsplit=1)[0]
    return f"{said[:1].lower()}{said[1:]}".replace("\n", " ")


def shown(value: Any) -> str:
    """A value as it is typed behind ``key=``."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {shown(part)}' for key, part in value.items())}}}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(shown, value))}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)

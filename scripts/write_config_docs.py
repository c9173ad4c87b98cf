"""docs/configs.md from the schema and the yaml files, whose comments are the explanations.

    python scripts/write_config_docs.py          write it
    python scripts/write_config_docs.py --check  only say whether it is up to date

verl's own keys of `segrl sft` and `segrl grpo` are left out: they are verl's documentation.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import NamedTuple

import yaml
from omegaconf import MISSING

from segrl.commands.cli import COMMANDS
from segrl.commands.config import CONFIG_DIR, ON_VERL, OWN_GROUPS, schema_of
from segrl.commands.trace_schema import SECTIONS, ColdStart
from segrl.credit.curriculum import CurriculumSettings
from segrl.credit.settings import CreditSettings
from segrl.sft.masking import Rules

OUT = Path(__file__).parent.parent / "docs" / "configs.md"
KEY = re.compile(r"^(?P<indent> *)(?P<key>[\w.]+):(?P<value>(?: [^#]*)?)(?:# ?(?P<comment>.*))?$")
FIELD = re.compile(r"^    (?P<name>\w+): [^#]+?(?:  # (?P<comment>.*))?$")
ABOVE = re.compile(r"^    # (?P<comment>.*)$")
MORE = re.compile(r"^ {8,}# ?(?P<comment>.*)$")
# What stands in sft.yaml and grpo.yaml beside `segrl.` and is not verl's.
OURS = ("model_path", "attributor_path", "data_path", "out", "traces", "val_path", "selections", "attributions")
OURS += ("tau", "beta", "mode", "stages", "nproc", "node_rank", "master", "gpu")
# What a dataclass mixes into a command's config, behind a prefix.
MIXED_IN: dict[str, list[tuple[str, type]]] = {
    "sft": [("", ColdStart), ("segrl.", Rules)],
    "grpo": [("segrl.", CreditSettings), ("segrl.curriculum.", CurriculumSettings)],
    "export": [("masking.", Rules)],
}
HEAD = """# Configs

Written by `python scripts/write_config_docs.py` from the schemas
([schema.py](../segrl/commands/schema.py), [trace_schema.py](../segrl/commands/trace_schema.py)) and the values in
[configs/](../configs/).
Every key is given as `key=value`; a typo fails at the start and names its neighbour.
`segrl <command> --help` prints the values as they are now, `--cfg job` as yaml alone.

A key in a section is written with a dot, `selection.tau=0.6`. A section's other file is chosen by its name:
`selection=authors`. Where a value names a function (`segmenter`, `measure`, `segrl.rule`, `backend`),
`package.module:function` names one of yours.
"""


class Key(NamedTuple):
    name: str
    value: str
    comment: str


def main() -> int:
    text = page()
    if "--check" in sys.argv:
        return 0 if OUT.read_text() == text else 1
    OUT.write_text(text)
    return 0


def page() -> str:
    parts = [HEAD, "# Commands"]
    parts += [command_part(name, what) for name, (_, what) in COMMANDS.items()]
    parts += ["# Sections", *map(section_part, sections()), "# Presets", *map(presets_part, COMMANDS)]
    parts += ["## Methods of segrl grpo", *options("method", CONFIG_DIR / "grpo" / "method")]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def command_part(name: str, what: str) -> str:
    path, schema = CONFIG_DIR / f"{name}.yaml", schema_of(name)
    head, keys = described(path)
    types = types_of(schema) if schema else {}
    if schema is None:
        shown_keys = [
            key for key in keys if key.name in OURS or (key.name.startswith("segrl.") and "${" not in key.value)
        ]
    else:
        shown_keys = keys_of(schema, keys)
    for prefix, section in MIXED_IN.get(name, ()):
        types = {**types_of(section, prefix), **types}
        shown_keys += [key for key in section_keys(section, prefix) if key.name not in {each.name for each in keys}]
    used = [f"[{group}](#{anchor(group, name)})" for group in groups(path)]
    note = f"Sections: {', '.join(used)}." if used else ""
    said = f"{what[0].upper()}{what[1:]}{'' if what.endswith('?') else '.'}"
    return "\n\n".join(filter(None, [f"## segrl {name}", said, head, note, table(shown_keys, types)]))


def section_part(group: str) -> str:
    """The default values of a section explained, then what else there is to choose."""
    section = SECTIONS.get(group)
    shown = [f"**`{group}=default`**", table(section_keys(section), types_of(section))] if section else []
    return "\n\n".join([f"## {group}", *shown, *options(group, CONFIG_DIR / group)])


def presets_part(command: str) -> str:
    """The presets of a command: what each is, and of those that are short the values too."""
    folder = CONFIG_DIR / command / "preset"
    return "\n\n".join([f"## Presets of segrl {command}", *options("preset", folder)]) if folder.is_dir() else ""


def options(group: str, folder: Path) -> list[str]:
    """A paragraph for each file of a group; of the presets of `sft` and `grpo` without their keys, mostly verl's."""
    paragraphs = []
    for path in sorted(folder.glob("*.yaml"), key=lambda path: (path.stem != "default", path.stem)):
        head, keys = described(path)
        verls = group == "preset" and folder.parent.name in ON_VERL
        shown = "" if verls else ", ".join(f"`{key.name}: {key.value}`" for key in keys)
        shown = table(keys, {}) if path.stem == "default" else shown
        paragraphs += filter(None, [f"**`{group}={path.stem}`** {head}".strip(), shown])
    return paragraphs


def sections() -> list[str]:
    folders = {path.name for path in CONFIG_DIR.iterdir() if path.is_dir() and path.name not in COMMANDS}
    return sorted(folders | set(SECTIONS))


def anchor(group: str, command: str) -> str:
    return f"{group}s-of-segrl-{command}" if group in OWN_GROUPS else group


def groups(path: Path) -> list[str]:
    """The sections that a command takes: those in its defaults list."""
    given = yaml.safe_load(path.read_text())["defaults"]
    return [key.removeprefix("optional ") for entry in given if isinstance(entry, dict) for key in entry]


# --- reading ---------------------------------------------------------------------------------------------------------


def described(path: Path) -> tuple[str, list[Key]]:
    """What a file says of itself, and its keys, dotted, with the comments above, beside and below them."""
    head: list[str] = []
    above: list[str] = []
    keys: list[Key] = []
    parents: list[str] = []
    for line in path.read_text().splitlines():
        key, more = KEY.match(line), MORE.match(line)
        if line.startswith("#"):
            (above if parents else head).append(line.lstrip("# "))
        elif more and keys:
            keys[-1] = keys[-1]._replace(comment=f"{keys[-1].comment} {more['comment']}".strip())
        elif key:
            parents[len(key["indent"]) // 2 :] = [key["key"]]
            comment = " ".join([*above, key["comment"] or ""]).strip()
            keys.append(Key(".".join(parents), key["value"].strip(), comment))
            above = []
    head = [line for line in head if not line.startswith("@package")]
    return " ".join(head), [key for key in keys if not key.name.startswith("defaults") and (key.value or key.comment)]


def keys_of(schema: type, keys: Sequence[Key]) -> list[Key]:
    """The keys that have their value in the schema, then those of the yaml, each explained in either."""
    comments, given = comments_of(schema), {key.name for key in keys}
    in_schema = [key for key in section_keys(schema) if key.name not in given and key.value != shown(MISSING)]
    return in_schema + [key._replace(comment=key.comment or comments.get(key.name, "")) for key in keys]


def section_keys(section: type, prefix: str = "") -> list[Key]:
    """The keys of a section that a dataclass is, with the defaults of its fields."""
    comments, keys = comments_of(section), []
    for field in fields(section):
        made = field.default_factory is not dataclasses.MISSING
        if is_dataclass(field.default_factory):
            continue  # a section of its own
        value = shown(field.default_factory() if made else field.default)
        keys.append(Key(f"{prefix}{field.name}", value, comments[field.name]))
    return keys


def comments_of(schema: type) -> dict[str, str]:
    """The comments beside and above the fields of a dataclass and of those that it extends, or of the parameters that
    they are made of.
    """
    comments: dict[str, str] = {}
    for base in filter(is_dataclass, reversed(schema.__mro__)):
        above: list[str] = []
        for line in inspect.getsource(vars(base).get("described_in", base)).splitlines():
            if match := FIELD.match(line):
                comments[match["name"]] = " ".join([*above, match["comment"] or ""]).strip()
            above = [*above, more["comment"]] if (more := ABOVE.match(line)) else []
    return comments


def shown(value: object) -> str:
    """A value as yaml writes it."""
    return yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("...\n").strip()


def types_of(schema: type, prefix: str = "") -> Mapping[str, str]:
    return {f"{prefix}{field.name}": type_name(field.type) for field in fields(schema)}


def type_name(annotation: object) -> str:
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


# --- writing ---------------------------------------------------------------------------------------------------------


def table(keys: Sequence[Key], types: Mapping[str, str]) -> str:
    if not keys:
        return ""
    rows = [(key.name, key.value, types.get(key.name, ""), key.comment) for key in keys]
    lines = ["| key | value | type | |", "|---|---|---|---|"]
    return "\n".join(
        [*lines, *(f"| `{name}` | {code(value)} | {code(kind)} | {cell(text)} |" for name, value, kind, text in rows)]
    )


def code(text: str) -> str:
    return f"`{text}`".replace("|", "\\|") if text else ""


def cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    sys.exit(main())

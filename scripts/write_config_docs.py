"""docs/configs.md from the schema and the yaml files, whose comments are the explanations.

    python scripts/write_config_docs.py          write it
    python scripts/write_config_docs.py --check  only say whether it is up to date

verl's own keys of `segrl sft` and `segrl grpo` are left out: they are verl's documentation.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import NamedTuple

import yaml

from segrl.commands.cli import COMMANDS
from segrl.commands.config import CONFIG_DIR, ON_VERL
from segrl.commands.schema import SCHEMAS, Command
from segrl.credit.settings import CreditSettings

OUT = Path(__file__).parent.parent / "docs" / "configs.md"
KEY = re.compile(r"^(?P<indent> *)(?P<key>[\w.]+):(?P<value>(?: [^#]*)?)(?:# ?(?P<comment>.*))?$")
MORE = re.compile(r"^ {8,}# ?(?P<comment>.*)$")
# What stands in sft.yaml and grpo.yaml beside `segrl.` and is not verl's.
OURS = ("traces", "val_path", "selections", "attributions", "measure", "tau", "beta", "mode", "stages", "nproc")
OURS += ("node_rank", "master")
# What every command knows.
COMMON = {
    "model_path": "the model that answers or is trained: a folder or hub id; default: the bundled toy model",
    "attributor_path": "the model that explains; default: `model_path`",
    "data_path": "problems with answers: jsonl, parquet, a folder or glob of them, or a hub id; default: the toy world",
    "traces": "responses to read: the same kinds of files, or the folder of `segrl generate`",
    "out": "what is written: a folder or a file, as the command says",
    "template": "how a prompt is rendered: `chat`, `plain`, or a text that holds `{problem}`",
    "dtype": "of models that transformers loads: `float32`, `bfloat16`, `float16`",
    "device": "`auto`, `cpu`, `cuda`, `cuda:1`, ...",
    "limit": "read only so many rows",
}
HEAD = """# Configs

Written by `python scripts/write_config_docs.py` from the schema
([segrl/commands/schema.py](../segrl/commands/schema.py)) and the values in [configs/](../configs/).
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
    common = table([Key(name, "null", COMMON[name]) for name in COMMON], types_of(Command), values_of(Command))
    parts = [HEAD, f"## Keys of every command\n\n{common}", "# Commands"]
    parts += [command_part(name, what) for name, (_, what) in COMMANDS.items()]
    parts += ["# Sections", *map(section_part, sections())]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def command_part(name: str, what: str) -> str:
    path = CONFIG_DIR / f"{name}.yaml"
    head, keys = described(path)
    types = types_of(SCHEMAS[name]) if name in SCHEMAS else types_of(CreditSettings, "segrl.") if name == "grpo" else {}
    if name in ON_VERL:
        own = [key for key in keys if key.name in OURS or (key.name.startswith("segrl.") and "${" not in key.value)]
    else:
        own = [key for key in keys if key.name not in COMMON or key.comment]
    used = [f"[{group}](#{group})" for group in groups(path)]
    note = f"Sections: {', '.join(used)}." if used else ""
    said = f"{what[0].upper()}{what[1:]}{'' if what.endswith('?') else '.'}"
    return "\n\n".join(filter(None, [f"## segrl {name}", said, head, note, table(own, types)]))


def section_part(group: str) -> str:
    """The default values explained, then what else there is to choose; of a preset only what it is."""
    folder = CONFIG_DIR / group
    files = sorted(folder.glob("*.yaml"), key=lambda path: (path.stem != "default", path.stem))
    parts = [f"## {group}"]
    for path in files:
        head, keys = described(path)
        shown = ", ".join(f"`{key.name}: {key.value}`" for key in keys) if not group.endswith("_preset") else ""
        shown = table(keys, {}) if path.stem == "default" else shown
        parts += filter(None, [f"**`{group}={path.stem}`** {head}".strip(), shown])
    return "\n\n".join(parts)


def sections() -> list[str]:
    return sorted(path.name for path in CONFIG_DIR.iterdir() if path.is_dir())


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
        found, more = KEY.match(line), MORE.match(line)
        if line.startswith("#"):
            (above if parents else head).append(line.lstrip("# "))
        elif more and keys:
            keys[-1] = keys[-1]._replace(comment=f"{keys[-1].comment} {more['comment']}".strip())
        elif found:
            parents[len(found["indent"]) // 2 :] = [found["key"]]
            comment = " ".join([*above, found["comment"] or ""]).strip()
            keys.append(Key(".".join(parents), found["value"].strip(), comment))
            above = []
    head = [line for line in head if not line.startswith("@package")]
    return " ".join(head), [key for key in keys if not key.name.startswith("defaults") and (key.value or key.comment)]


def types_of(schema: type, prefix: str = "") -> Mapping[str, str]:
    hints = schema.__dataclass_fields__
    return {f"{prefix}{name}": str(field.type) for name, field in hints.items()}


def values_of(schema: type) -> Mapping[str, str]:
    return {field.name: "null" if field.default is None else str(field.default) for field in fields(schema)}


# --- writing ---------------------------------------------------------------------------------------------------------


def table(keys: Sequence[Key], types: Mapping[str, str], values: Mapping[str, str] | None = None) -> str:
    if not keys:
        return ""
    rows = [(key.name, (values or {}).get(key.name, key.value), types.get(key.name, ""), key.comment) for key in keys]
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

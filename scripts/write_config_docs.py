"""docs/configs.md from the schema and the yaml files, whose comments are the explanations.

    python scripts/write_config_docs.py          write it
    python scripts/write_config_docs.py --check  only say whether it is up to date

`segrl <command> --help` shows the same sentences: segrl/commands/describing.py reads them. verl's own keys of
`segrl sft` and `segrl grpo` are left out: they are verl's documentation.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from segrl.commands.cli import COMMANDS
from segrl.commands.config import ON_VERL, OWN_GROUPS
from segrl.commands.describing import Key, command_keys, options
from segrl.commands.examples import EXAMPLES

OUT = Path(__file__).parent.parent / "docs" / "configs.md"
HEAD = """# Configs

Every key of every command: its value, its type and what it is for.

`segrl <command> --help` shows the same on a screen, with the values as they are now. What has no room there is behind
`--help <section>`, `--help <key>`, `--help preset` and `--help method`; `segrl grpo --help verl` and
`segrl sft --help verl` print verl's keys too. `--cfg job` prints the config as yaml.

Every key is given as `key=value`; a typo fails at the start and names its neighbour. A key in a section is written with
a dot, `selection.tau=0.6`. A section's other file is chosen by its name: `selection=authors`. Where a value names a
function (`segmenter`, `measure`, `segrl.rule`, `backend`), `package.module:function` names one of yours.

`python scripts/write_config_docs.py` writes this page from the comments in the schemas
([schema.py](../segrl/commands/schema.py), [trace_schema.py](../segrl/commands/trace_schema.py)) and in
[configs/](../configs/).
"""


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
    parts += ["## Methods of segrl grpo", *option_parts("method", "grpo")]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def command_part(name: str, what: str) -> str:
    """What a command does, examples, its sections and its keys; those of shared sections stand under these."""
    described = command_keys(name)
    said = f"{what[0].upper()}{what[1:]}{'' if what.endswith('?') else '.'}"
    head = described.about.head.removeprefix(f"segrl {name}: {said} ")
    examples = "\n".join(["```bash", *EXAMPLES[name], "```"])
    used = ", ".join(f"[{group}](#{anchor(group, name)})" for group in described.groups)
    here = {key.name for key in described.about.keys}
    keys = [key for key in described.keys.values() if key.name in here or root(key) not in described.groups]
    return "\n\n".join(
        filter(None, [f"## segrl {name}", said, head, examples, used and f"Sections: {used}.", table(keys)])
    )


def section_part(group: str) -> str:
    """The default values of a section explained, then what else there is to choose."""
    command = next(name for name in COMMANDS if group in command_keys(name).groups)
    described = command_keys(command)
    purpose = described.sections[group]
    keys = [key for key in described.keys.values() if root(key) == group]
    parts = [f"## {group}", f"{purpose[0].upper()}{purpose[1:]}.", f"**`{group}=default`**", table(keys)]
    return "\n\n".join([*parts, *option_parts(group, command)])


def presets_part(command: str) -> str:
    """The presets of a command: what each is, and the values but of those that are mostly verl's."""
    parts = option_parts("preset", command) if "preset" in command_keys(command).groups else []
    return "\n\n".join([f"## Presets of segrl {command}", *parts]) if parts else ""


def option_parts(group: str, command: str) -> list[str]:
    """A paragraph for each file of a group and its keys; of the presets of `sft` and `grpo` without keys."""
    parts = []
    for name, file in options(group, command).items():
        if name != "default":
            verls = group == "preset" and command in ON_VERL
            values = "" if verls else ", ".join(f"`{file.package}{key.name}: {key.value}`" for key in file.keys)
            parts += filter(None, [f"**`{group}={name}`** {file.head}".strip(), values])
    return parts


def sections() -> list[str]:
    return sorted({group for name in COMMANDS for group in command_keys(name).groups if group not in OWN_GROUPS})


def anchor(group: str, command: str) -> str:
    return f"{group}s-of-segrl-{command}" if group in OWN_GROUPS else group


def root(key: Key) -> str:
    """The section at the top in which a key lies."""
    return key.name.partition(".")[0]


def table(keys: Iterable[Key]) -> str:
    rows = [f"| `{key.name}` | {code(key.value)} | {code(key.type)} | {cell(key.sentence)} |" for key in keys]
    return "\n".join(["| key | value | type | |", "|---|---|---|---|", *rows]) if rows else ""


def code(text: str) -> str:
    return f"`{text}`".replace("|", "\\|") if text else ""


def cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    sys.exit(main())

"""What `segrl <command> --help` prints: a screen on the command, or on its presets, a section, a key or verl's keys."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Sequence
from difflib import get_close_matches

from omegaconf import DictConfig, OmegaConf

from segrl.commands.config import ON_VERL, OWN_GROUPS, selected
from segrl.commands.describing import Described, Key, command_keys, options, shown
from segrl.commands.examples import EXAMPLES
from segrl.resolving import near

LINES, WIDTH = 60, 100
COLUMN, SECTION_COLUMN = 32, 20  # where sentences begin, at most
VALUE = 60  # characters of a value that are shown beside others
VERLS = "every other key, such as trainer.total_epochs and data.train_batch_size"


def help_screen(command: str, what: str, config: DictConfig, topic: str = "") -> str:
    """The screen on the command, or on a topic: a section, a key, ``preset``, ``method`` or ``verl``."""
    described = command_keys(command)
    if topic == "verl" and command in ON_VERL:
        return f"segrl {command}: verl's whole config, segrl's keys among it\n\n{OmegaConf.to_yaml(config)}"
    if not topic:
        lines = _main(command, what, config)
    elif topic in OWN_GROUPS and topic in described.groups:
        lines = [f"segrl {command}, {topic}=...", "", *_choices(command, topic)]
    elif sections := _named(topic, described.sections):
        lines = _section(command, sections[0], config)
    elif keys := _named(topic, described.keys):
        lines = [line for name in keys for line in _alone(_now(described.keys[name], config))]
    else:
        topics = _topics(command)
        close = get_close_matches(topic, [*topics, *described.keys], n=1)
        raise ValueError(f"--help has nothing on {topic!r}{near(topic, close or topics)}")
    return "\n".join(lines) + "\n"


def _topics(command: str) -> list[str]:
    """What can stand behind ``--help``, beside keys."""
    described = command_keys(command)
    groups = [group for group in OWN_GROUPS if group in described.groups]
    return [*groups, *described.sections, *(["verl"] if command in ON_VERL else [])]


def _named(topic: str, names: Iterable[str]) -> list[str]:
    """The names that are the topic or end in it."""
    return [name for name in names if f".{name}".endswith(f".{topic}")]


# --- screens ---------------------------------------------------------------------------------------------------------


def _main(command: str, what: str, config: DictConfig) -> list[str]:
    """What the command does, examples, presets, keys and sections."""
    described, title = command_keys(command), f"segrl {command}: {what}"
    lines = [title, *textwrap.wrap(described.about.head.removeprefix(f"{title}. "), WIDTH), ""]
    lines += [*(f"  {example}" for example in EXAMPLES[command]), ""]
    for group in OWN_GROUPS:
        if group in described.groups and (choices := _choices(command, group, short=True)):
            lines += [f"{group.capitalize()}s, {group}=... (in full: --help {group})", *choices, ""]
    keys = [_now(key, config) for key in _under(described, "", "segrl")]
    if not keys:
        return [*lines, "It takes no keys."]
    after = _closed(command, "", "segrl")
    after += ["", f"`segrl {command} --help <key>` says all of a key, `--cfg job` prints the config as yaml."]
    lines += ["Keys and their values now"]
    return [*lines, *_table(keys, LINES - len(lines) - len(after), f"segrl {command} --help segrl"), *after]


def _section(command: str, section: str, config: DictConfig) -> list[str]:
    """The keys of a section, and the sections in it: open where ``LINES`` lines hold their keys too."""
    described = command_keys(command)
    lines = [*textwrap.wrap(f"segrl {command}, section {section}: {described.sections[section]}", WIDTH), ""]
    lines += [*choices, ""] if (choices := _choices(command, section)) else []
    inside = [_now(key, config) for name, key in described.keys.items() if name.startswith(f"{section}.")]
    room = LINES - len(lines)
    if _height(_entries(inside)[0]) <= room:
        return [*lines, *_table(inside, room)]
    after = _closed(command, section)
    return [*lines, *_table([key for key in inside if _parent(key.name) == section], room - len(after)), *after]


def _closed(command: str, *parents: str) -> list[str]:
    """A line for each section that lies directly in one of the parents and is none of them, and one for verl's keys."""
    described, lines = command_keys(command), []
    for section, purpose in described.sections.items():
        if section in parents or _parent(section) not in parents:
            continue
        number = sum(name.startswith(f"{section}.") for name in described.keys)
        files = [name for name in options(section, command) if name != "default"] if section in described.groups else []
        choice = f"; {section}={', '.join(files)}" if files else ""
        lines += _entry(section, f"{number} keys: {purpose}{choice}", SECTION_COLUMN)
    if command in ON_VERL and "" in parents:
        lines += _entry("verl", VERLS, SECTION_COLUMN)
    return ["", f"Sections, opened by `segrl {command} --help <section>`", *lines] if lines else []


def _choices(command: str, group: str, short: bool = False) -> list[str]:
    """What each file of a group says of itself; in ``short`` its first sentence, in a line."""
    heads = {name: file.head for name, file in options(group, command).items() if name != "default"}
    column = max((len(name) for name in heads), default=0) + 4
    entry = _cut if short else _entry
    return [line for name, head in heads.items() for line in entry(name, first(head) if short else head, column)]


# --- keys ------------------------------------------------------------------------------------------------------------


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def _under(described: Described, *sections: str) -> list[Key]:
    return [key for name, key in described.keys.items() if _parent(name) in sections]


def _now(key: Key, config: DictConfig) -> Key:
    """The key with its value in the config."""
    return key._replace(value=shown(selected(config, key.name)))


def _table(keys: Sequence[Key], room: int, more: str = "") -> list[str]:
    """A line or more for each key: its first sentence, and as far as there is room all that is said of it.

    Where even first sentences have no room, the last keys are left to the command that shows ``more``; without such a
    command the last sentences are cut.
    """
    entries, column = _entries(keys)
    dropped = _drop(entries, room) if more else 0
    spare = room - bool(dropped) - _height(entries)
    for position in reversed(range(len(entries))):
        if spare < 0:
            spare += len(entries[position]) - 1
            entries[position] = _cut(_typed(keys[position]), keys[position].sentence, column)
    for position, key in enumerate(keys[: len(entries)]):
        whole = _entry(_typed(key), key.sentence, column)
        if len(whole) - len(entries[position]) <= spare:
            spare -= len(whole) - len(entries[position])
            entries[position] = whole
    lines = [line for entry in entries for line in entry]
    return [*lines, f"  and {dropped} more: {more}"] if dropped else lines


def _entries(keys: Sequence[Key]) -> tuple[list[list[str]], int]:
    """The lines of each key with its first sentence, and the column where sentences begin."""
    column = min(COLUMN, max(len(_typed(key)) for key in keys) + 4)
    return [_entry(_typed(key), first(key.sentence), column) for key in keys], column


def _height(entries: Sequence[list[str]]) -> int:
    return sum(map(len, entries))


def _drop(entries: list[list[str]], room: int) -> int:
    """Take the last entries away until the others and a line more have room; how many were taken."""
    before = len(entries)
    while _height(entries) + (len(entries) < before) > room:
        entries.pop()
    return before - len(entries)


def _cut(left: str, text: str, column: int) -> list[str]:
    """An entry of one line."""
    width = WIDTH - max(column, len(left) + 4)
    return _entry(left, textwrap.shorten(text, width, placeholder=" ..."), column)


def _typed(key: Key) -> str:
    return f"{key.name}={key.value if len(key.value) <= VALUE else key.value[:VALUE] + '...'}"


def _alone(key: Key) -> list[str]:
    """All that is said of a key."""
    kind = f" ({key.type})" if key.type else ""
    return [f"{key.name}={key.value}{kind}", *(f"  {line}" for line in textwrap.wrap(key.sentence, WIDTH - 2))]


def _entry(left: str, text: str, column: int) -> list[str]:
    """``left``, and beside it the text, which begins at the column or, where ``left`` is longer, behind it or below."""
    left = f"  {left}"
    if len(left) + 2 > column and len(left) + 2 + len(text) <= WIDTH:
        return [f"{left}  {text}".rstrip()]
    lines = textwrap.wrap(text, WIDTH - column)
    if len(left) + 2 > column:
        return [left, *(" " * column + line for line in lines)]
    return [f"{left:<{column}}{lines[0] if lines else ''}".rstrip(), *(" " * column + line for line in lines[1:])]


def first(text: str) -> str:
    """The first sentence of a text, up to a full stop or a semicolon; three dots end none."""
    sentence = re.split(r"(?<!Eq)(?<!\.)\. |; ", text, maxsplit=1)[0]
    return sentence if sentence.endswith("...") else sentence.removesuffix(".")

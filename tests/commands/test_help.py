"""`segrl <command> --help`: each screen is short, and together they hold every key with a sentence."""

import re

import pytest
import yaml
from omegaconf import DictConfig, OmegaConf

from segrl.commands.cli import COMMANDS, main
from segrl.commands.config import CONFIG_DIR, ON_VERL, OWN_GROUPS, compose
from segrl.commands.describing import Key, command_keys, described_file, options
from segrl.commands.examples import EXAMPLES
from segrl.commands.help_screen import first, help_screen


def leaves(node, free=True, prefix=""):
    """The dotted names of the values in a config; a mapping without named keys is a value."""
    for key in node:
        child = node._get_node(key)
        mapping = isinstance(child, DictConfig) and not child._is_none() and not OmegaConf.is_interpolation(node, key)
        if mapping and len(child) and not (free and OmegaConf.get_type(child) is dict):
            yield from leaves(child, free, f"{prefix}{key}.")
        elif free or not OmegaConf.is_interpolation(node, key):
            yield f"{prefix}{key}"


def keys_in(config, command):
    """The command's keys in its composed config; of one on verl those in `segrl` and at the top of its yaml."""
    if command not in ON_VERL:
        return set(leaves(config))
    written = yaml.safe_load((CONFIG_DIR / f"{command}.yaml").read_text())
    top = {key for key, value in written.items() if not isinstance(value, (dict, list))}
    return top | {f"segrl.{name}" for name in leaves(config.segrl, free=False)}


@pytest.mark.parametrize("command", COMMANDS)
def test_the_screens_are_short_and_hold_every_key(command):
    if command in ON_VERL:
        pytest.importorskip("verl")
    # The default method gives options to its rule, whose keys no schema names.
    config, described = compose(command, ["method=uniform"] if command == "grpo" else []), command_keys(command)
    main_screen = help_screen(command, "what it does", config)
    sections = [help_screen(command, "", config, section) for section in described.sections]
    for screen in (main_screen, *sections):
        lines = screen.splitlines()
        assert len(lines) <= 60
        assert max(map(len, lines)) <= 100
    shown = set(re.findall(r"^  ([\w.]+)=", "\n".join([main_screen, *sections]), re.MULTILINE))
    assert keys_in(config, command) <= shown == set(described.keys)
    assert [name for name, key in described.keys.items() if not key.sentence] == []
    assert all(described.sections.values())
    names = [name for group in OWN_GROUPS if group in described.groups for name in options(group, command)]
    assert [name for name in [*names, *EXAMPLES[command]] if f"  {name}" not in main_screen] in ([], ["default"])


def test_every_file_that_can_be_chosen_says_what_it_is():
    files = [path for path in CONFIG_DIR.rglob("*.yaml") if path.stem != "default"]
    silent = [path.name for path in files if not described_file(path).head]
    assert silent == ["doctor.yaml"]  # the table of commands says it


def test_a_key_shows_its_value_now_and_alone_all_that_is_said_of_it(capsys):
    assert main(["select", "selection.tau=0.6", "--help", "selection"]) == 0
    assert "  selection.tau=0.6  " in capsys.readouterr().out
    assert main(["select", "--help", "measure"]) == 0
    whole = " ".join(capsys.readouterr().out.split())
    assert whole == f"measure=first_and_last (str) {command_keys('select').keys['measure'].sentence}"


def test_verls_keys_stand_behind_verl(capsys):
    pytest.importorskip("verl")
    assert main(["grpo", "method=uniform", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "  segrl.rule=uniform  " in shown
    assert "actor_rollout_ref" not in shown
    assert main(["grpo", "method=uniform", "--help", "verl"]) == 0
    config = yaml.safe_load(capsys.readouterr().out.partition("\n\n")[2])
    assert config["segrl"]["rule"] == "uniform"
    assert "optim" in config["actor_rollout_ref"]["actor"]


def test_sentences_are_read_above_beside_and_below_a_key(tmp_path):
    (tmp_path / "some.yaml").write_text(
        "# @package part\n# What it is.\ndefaults: [default]\na: 1  # beside\n# above\nb:\n  c: [2]\n"
        "  d: x   # begun,\n         # ended\n"
    )
    file = described_file(tmp_path / "some.yaml")
    assert (file.head, file.package) == ("What it is.", "part.")
    expected = [
        Key("a", "1", "", "beside"),
        Key("b", "", "", "above"),
        Key("b.c", "[2]"),
        Key("b.d", "x", "", "begun, ended"),
    ]
    assert file.keys == expected


def test_the_first_sentence_ends_at_a_stop_or_a_semicolon():
    texts = {"right (Eq. 2); or left": "right (Eq. 2)", "one. two": "one", "at 1.5; no": "at 1.5", "one.": "one"}
    texts |= {"ig, ...; or": "ig, ...", "ig, ... or oar. two": "ig, ... or oar", "cpu, ...": "cpu, ..."}
    assert [first(text) for text in texts] == [*texts.values()]

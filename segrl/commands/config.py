"""A command's config: the values in ``configs/`` over its schema, then what was typed, and a sentence where that fails.

One yaml per command, one group per section; Hydra composes them.
"""

from __future__ import annotations

import re
from dataclasses import asdict
from difflib import get_close_matches
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException, ValidationError

from segrl.commands.schema import SCHEMAS
from segrl.resolving import near

__all__ = ["CONFIG_DIR", "ON_VERL", "ConfigError", "compose", "needed", "selected"]

_PACKAGED = Path(__file__).parent.parent / "configs"
CONFIG_DIR = _PACKAGED if _PACKAGED.is_dir() else Path(__file__).parents[2] / "configs"
ON_VERL = ("sft", "grpo")  # composed over verl's own config, which is their schema
# Keys that users knew by another name.
RENAMED = {
    "attribution.rule": "attribution.quadrature",
    "masking.weighting": "masking.rule",
    "masking.weighting_options": "masking.rule_options",
    "segrl.weighting": "segrl.rule",
    "segrl.weighting_options": "segrl.rule_options",
}
OPTION = re.compile(r"Could not find '([^']+)/([^'/]+)'\s+Available options in '[^']+':((?:\n\t\S+)+)")
MANY = 12  # keys that an error sentence does not list
OWN_GROUPS = ("preset", "method")  # folders in a command's own folder
# Keys at the top of a command that users knew by another name.
RENAMED_IN = {
    "sft": {"sft_preset": "preset"},
    "grpo": {"grpo_preset": "preset"},
    "evaluate": {"evaluation": "preset"},
    "quickstart": {"size": "preset", "sft": "for_sft", "grpo": "for_grpo"},
}
# Keys whose values are taken as they are typed: Hydra reads no # in the id of a sample and no = in a value.
TEXTS = {
    "explain": ("problem", "answer", "response", "id"),
    "show": ("id",),
    "quickstart": ("for_sft", "for_grpo"),
}


class ConfigError(ValueError):
    """What was typed does not fit the command's schema."""


def compose(command: str, overrides: list[str]) -> DictConfig:
    """The config of ``command``: its yaml over its schema, then the overrides. Frozen."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException

    _store_schemas(command)
    _check_former(command, overrides)
    _check_groups(command, overrides)
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
            typed = _opened(command, _quoted(command, _own_rule(command, overrides)))
            config = hydra_compose(command, overrides=[_search_path(command), *typed])
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_sentence(command, error)) from error
    OmegaConf.set_readonly(config, True)
    return config


def schema_of(command: str) -> type | None:
    """The dataclass of a command's keys; None of one that runs on verl. Most import torch."""
    if command in SCHEMAS or command in ON_VERL:
        return SCHEMAS.get(command)
    from segrl.commands.trace_schema import TRACE_SCHEMAS

    return TRACE_SCHEMAS[command]


def _own_schema(command: str) -> type:
    """The dataclass of a command's keys; of one that runs on verl that of keys that stand beside verl's."""
    if command in ON_VERL:
        from segrl.commands.trace_schema import BESIDE_VERLS

        return BESIDE_VERLS[command]
    schema = schema_of(command)
    assert schema is not None
    return schema


@cache
def _store_schemas(command: str) -> None:
    """Give Hydra the schemas of the command, once a process: it takes half as long as composing the yaml."""
    from hydra.core.config_store import ConfigStore

    store = ConfigStore.instance()
    if command in SCHEMAS:
        store.store(name=f"{command}_schema", node=SCHEMAS[command])
        return
    from segrl.commands.trace_schema import IN_VERLS, SECTIONS

    for name, mixed_in in IN_VERLS.items():
        grouped = {key for key, value in vars(mixed_in()).items() if type(value) in SECTIONS.values()}
        store.store(name=name, node={key: value for key, value in asdict(mixed_in()).items() if key not in grouped})
    for group, section in SECTIONS.items():
        store.store(group=group, name="default", node=_writable(section))
    if schema := schema_of(command):
        store.store(name=f"{command}_schema", node=_writable(schema))


def _writable(schema: type) -> DictConfig:
    """The schema as a node; OmegaConf refuses every change of a frozen dataclass."""
    node = OmegaConf.structured(schema)
    for section in (node, *(node._get_node(key) for key in node)):
        if isinstance(section, DictConfig):
            section._set_flag("readonly", None)
    return node


def _check_former(command: str, overrides: list[str]) -> None:
    """Refuse a key's former name with the new one. After a ``+`` Hydra would add the key, and nothing would read it."""
    for override in overrides:
        key, _, value = override.lstrip("+").partition("=")
        if now := RENAMED_IN.get(command, {}).get(key):
            raise ConfigError(f"{key}= is now {now}={value}")
        former = next((name for name in RENAMED if f"{key}.".startswith(f"{name}.")), None)
        if former and not (command == "grpo" and former.startswith("segrl.")):
            raise ConfigError(f"{former}= is now {RENAMED[former]}=")


def _check_groups(command: str, overrides: list[str]) -> None:
    """Hydra leaves out a preset or a method that it does not find, since having none is allowed; then nothing would be
    as asked."""
    for override in overrides:
        key, _, name = override.lstrip("+").partition("=")
        known = {file.stem for file in (CONFIG_DIR / command / key).glob("*.yaml")} if key in OWN_GROUPS else set()
        if known and name not in known:
            raise ConfigError(f"there is no {key}={name}{near(name, known)}")


def _own_rule(command: str, overrides: list[str]) -> list[str]:
    """The overrides, with ``method=uniform``, which has no options, where a rule is typed and no method: the options of
    the default method are not that rule's."""
    typed = {override.lstrip("+").partition("=")[0] for override in overrides}
    alone = command == "grpo" and "segrl.rule" in typed and "method" not in typed
    return [*overrides, "method=uniform"] if alone else overrides


def _quoted(command: str, overrides: list[str]) -> list[str]:
    """The overrides with their texts in quotes, where neither Hydra nor OmegaConf reads anything into them. Of others
    a ~ that the shell has left is the home folder; Hydra's grammar has none.
    """
    texts, home = TEXTS.get(command, ()), rf"\1{Path.home()}/"
    return [
        _in_quotes(override) if override.partition("=")[0] in texts else re.sub(r"^([^=]+=)~/", home, override)
        for override in overrides
    ]


def _in_quotes(override: str) -> str:
    key, equals, value = override.partition("=")
    if value in ("", "null"):
        return override
    value = re.sub(r"(\\*)\$\{", r"\1\1\\${", value)  # no interpolation; backslashes before it count double
    value = re.sub(r"(\\*)('|\Z)", lambda match: match[1] * 2 + ("\\'" if match[2] else ""), value)
    return f"{key}{equals}'{value}'"


def selected(config: DictConfig, key: str) -> Any:
    """The value of a dotted key, a section as plain dicts and lists."""
    value: Any = OmegaConf.select(config, key)
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def needed(config: DictConfig, *keys: str) -> list[Any]:
    """The values of keys that a command cannot do without."""
    missing = [key for key in keys if config.get(key) is None]
    if missing:
        raise ConfigError(f"{' and '.join(missing)} must be given, like {missing[0]}=...")
    return [config[key] for key in keys]


def _search_path(command: str) -> str:
    """The override that has Hydra look into the command's own folder, which holds its presets, and into verl's."""
    folders = [folder for folder in (CONFIG_DIR / command,) if folder.is_dir()]
    folders += [_verl_configs()] if command in ON_VERL else []
    places = ",".join(f"'file://{folder}'" for folder in folders)
    return f"hydra.searchpath=[{places}]"


def _verl_configs() -> Path:
    """verl's own yaml files, found without importing verl."""
    spec = find_spec("verl")
    folders = [Path(place) / "trainer" / "config" for place in (spec and spec.submodule_search_locations) or ()]
    if not any(folder.is_dir() for folder in folders):
        raise ConfigError("this command runs on verl, which is not installed; see `segrl doctor`")
    return next(folder for folder in folders if folder.is_dir())


def _opened(command: str, overrides: list[str]) -> list[str]:
    """A free mapping such as ``measure_options`` takes any key; Hydra wants a ``++`` before such a one."""
    schema = _own_schema(command)
    return [f"++{override}" if _is_free(schema, override.partition("=")[0]) else override for override in overrides]


def _is_free(schema: type, key: str) -> bool:
    """Whether the key is, or lies in, a mapping whose keys the schema does not name."""
    node = OmegaConf.structured(schema)
    for part in key.split("."):
        if not isinstance(node, DictConfig) or part not in node:
            return False
        node = node._get_node(part)
        if isinstance(node, DictConfig) and OmegaConf.get_type(node) is dict:
            return True
    return False


def _sentence(command: str, error: Exception) -> str:
    """What was typed, what was expected: out of the chain of exceptions that Hydra raises."""
    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(cause)
    for cause in chain:
        if isinstance(cause, ValidationError) and getattr(cause, "full_key", None):
            return f"{cause.full_key}: {str(cause).splitlines()[0]}"
        if isinstance(cause, (ConfigKeyError, ConfigAttributeError)):
            return _unknown_key(command, str(getattr(cause, "full_key", "")) or str(cause))
    unknown = re.search(r"Could not override '([^']+)'", str(error))
    if unknown:
        return _unknown_key(command, unknown[1])
    if option := OPTION.search(str(error)):
        return f"there is no {option[1]}={option[2]}{near(option[2], option[3].split())}"
    unread = next((str(typed) for cause in chain if (typed := getattr(cause, "override", None))), None)
    if unread or "Ambiguous value" in str(error):
        typed = unread or re.findall(r"'([^']+)'", str(error))[0]
        key = typed.partition("=")[0]
        quoted = f"a text with spaces, commas or signs as {key}=\"'a, b'\""
        return f"{typed} cannot be read; write a list as {key}=[a,b], and {quoted}"
    return " ".join(str(error).split())


def _unknown_key(command: str, key: str) -> str:
    parent, _, last = key.rpartition(".")
    if command == "grpo" and parent == "segrl":
        from segrl.credit.settings import REMOVED

        if last in REMOVED:
            return REMOVED[last]
    known = _keys(command, parent) or _verls_keys(command, parent)
    if not known and parent:
        return _unknown_key(command, parent)
    if len(known) > MANY and not get_close_matches(last, known):
        return (
            f"there is no key {key!r}; `segrl {command} --help{f' {parent}' if parent else ''}` lists those there are"
        )
    return f"there is no key {key!r}{near(last, known)}"


def _verls_keys(command: str, parent: str) -> set[str]:
    """The keys under ``parent`` in verl's own config."""
    node = OmegaConf.select(compose(command, []), parent) if command in ON_VERL else None
    return {str(key) for key in node} if isinstance(node, DictConfig) else set()


def _keys(command: str, parent: str) -> set[str]:
    """The keys under ``parent`` in the schema, and at the top those of the command's yaml."""
    node = OmegaConf.structured(_own_schema(command))
    for part in filter(None, parent.split(".")):
        if not isinstance(node, DictConfig) or part not in node:
            return set()
        node = node._get_node(part)
    names = {str(key) for key in node} if isinstance(node, DictConfig) else set()
    return names if parent else names | {*OmegaConf.load(CONFIG_DIR / f"{command}.yaml")} - {"defaults"}

"""A config composed once, then changed: half a second the less for each test that changes one of verl's.

sft and grpo are composed over verl's own config; without verl their tests are skipped.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from segrl.commands.config import ON_VERL, compose
from segrl.launch import editable

needs_verl = pytest.mark.skipif(find_spec("verl") is None, reason="verl is not installed")


@cache
def _composed(command: str, *given: str) -> DictConfig:
    return compose(command, list(given))


def changed(command: str, preset: str | None, *overrides: str) -> DictConfig:
    """As composing with these overrides, none of which names a group."""
    if command in ON_VERL:
        pytest.importorskip("verl")
    groups = [f"preset={preset}"] if preset else []
    if any(one.startswith("segrl.rule=") for one in overrides):
        groups += ["method=uniform"]
    config = editable(_composed(command, "out=here", *groups))
    for one in OverridesParser.create().parse_overrides(list(overrides)):
        OmegaConf.update(config, one.key_or_group, one.value(), force_add=one.is_add())
    return config

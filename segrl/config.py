"""The schema of every command (dataclasses in Hydra's ConfigStore), where the values are, and how both become a config.

A choice from a table (``segmenter``, ``measure``, ``rule``) is a key of its own; how a stage works is in its section.
Values stand in ``configs/``: one yaml per command, one group per section.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException, ValidationError

from segrl.resolving import near, resolve

__all__ = ["CONFIG_DIR", "SCHEMAS", "ConfigError", "compose", "resolve"]

_PACKAGED = Path(__file__).parent / "configs"
CONFIG_DIR = _PACKAGED if _PACKAGED.is_dir() else Path(__file__).parent.parent / "configs"


class ConfigError(ValueError):
    """What was typed does not fit the command's schema."""


# --- sections --------------------------------------------------------------------------------------------------------


@dataclass
class SegmentationConfig:
    min_tokens: int = MISSING
    max_segments: int | None = MISSING
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class AttributionConfig:
    rule: str = MISSING
    nodes: int = MISSING
    tolerance: float | None = MISSING
    max_nodes: int = MISSING
    target: str = MISSING
    template: str = MISSING
    context: str = MISSING
    interpolate: str = MISSING
    hide_answer: bool = MISSING
    baseline: Any = MISSING
    batch_tokens: int | None = MISSING
    checkpointing: bool | None = MISSING
    engine: str = MISSING
    compat: str | None = MISSING


@dataclass
class SelectionConfig:
    tau: float = MISSING
    beta: float = MISSING
    beta_min_tokens: int = MISSING
    force: list[int] = MISSING
    match_tokens: float | None = MISSING
    consistency: str = MISSING


@dataclass
class EvidenceConfig:
    shared_prefixes: bool = MISSING
    samples: int = MISSING
    temperature: float = MISSING
    answer_tokens: int = MISSING
    seed: int = MISSING


@dataclass
class AnalysisConfig:
    tau: float = MISSING
    beta: float = MISSING
    taus: list[float] = MISSING
    betas: list[float] = MISSING
    held: float = MISSING
    gain: str = MISSING
    samples: int = MISSING
    temperature: float = MISSING
    answer_tokens: int = MISSING
    truncation: str = MISSING
    bleu_tokenize: str = MISSING


@dataclass
class MaskingConfig:
    mode: str = MISSING
    end: str = MISSING
    think_end: str = MISSING
    boxed: str = MISSING
    too_long: str = MISSING
    normalise: str = MISSING
    weighting: str = MISSING
    weighting_options: dict[str, Any] = field(default_factory=dict)


@dataclass
class TransformersConfig:
    dtype: str = MISSING
    device: str = MISSING


@dataclass
class VllmConfig:
    dtype: str = MISSING
    engine: dict[str, Any] = field(default_factory=dict)


@dataclass
class OpenAIConfig:
    server: str | None = MISSING
    endpoint: str = MISSING
    prompt: str = MISSING
    model: str | None = MISSING
    key_variable: str = MISSING
    extra: dict[str, Any] = field(default_factory=dict)
    concurrency: int = MISSING
    retries: int = MISSING
    backoff: float = MISSING
    timeout: float = MISSING


@dataclass
class GenerationConfig:
    n: int = MISSING
    temperature: float = MISSING
    top_p: float = MISSING
    max_tokens: int = MISSING
    stop: list[str] = MISSING
    seed: int = MISSING
    batch: int = MISSING
    transformers: TransformersConfig = field(default_factory=TransformersConfig)
    vllm: VllmConfig = field(default_factory=VllmConfig)
    openai: OpenAIConfig = field(default_factory=OpenAIConfig)


# --- commands --------------------------------------------------------------------------------------------------------


@dataclass
class Command:
    """The keys that every command knows; each says which of them it needs."""

    model_path: str | None = None
    attributor_path: str | None = None
    data_path: str | None = None
    traces: str | None = None
    out: str | None = None
    template: str = "chat"
    dtype: str = "float32"
    device: str = "auto"
    limit: int | None = None


@dataclass
class Segment(Command):
    segmenter: str = MISSING
    segmentation: SegmentationConfig = field(default_factory=SegmentationConfig)


@dataclass
class Attribute(Command):
    executor: str = MISSING
    workers: int = MISSING
    shard: int = MISSING
    attribution: AttributionConfig = field(default_factory=AttributionConfig)


@dataclass
class Calibrate(Command):
    grid: int = MISSING
    attribution: AttributionConfig = field(default_factory=AttributionConfig)


@dataclass
class Select(Segment):
    measure: str = MISSING
    measure_options: dict[str, Any] = field(default_factory=dict)
    attributions: str | None = None
    pruned: str | None = None
    attribution: AttributionConfig = field(default_factory=AttributionConfig)
    evidence: EvidenceConfig = field(default_factory=EvidenceConfig)
    selection: SelectionConfig = field(default_factory=SelectionConfig)


@dataclass
class Generate(Command):
    backend: str = MISSING
    server: str | None = None
    generation: GenerationConfig = field(default_factory=GenerationConfig)


@dataclass
class Harvest(Generate):
    thinking: str = MISSING
    keep: str = MISSING
    unanswered: bool = MISSING


@dataclass
class Evaluate(Generate):
    benchmark: Any = MISSING  # a name or a list of names
    samples: dict[str, int | None] = field(default_factory=dict)
    greedy: bool = MISSING
    k: list[int] | None = MISSING
    thinking: str = MISSING


@dataclass
class Grade(Command):
    thinking: str = MISSING
    k: list[int] | None = MISSING


@dataclass
class Export(Command):
    selections: str | None = None
    max_length: int | None = None
    masking: MaskingConfig = field(default_factory=MaskingConfig)


@dataclass
class Compare(Command):
    a: str | None = None
    b: str | None = None


@dataclass
class Analyze(Generate):
    segmenter: str = MISSING
    measure: str = MISSING
    measure_options: dict[str, Any] = field(default_factory=dict)
    thinking: str = MISSING
    seed: int = MISSING
    shard: int = MISSING
    judge_path: str | None = None
    segmentation: SegmentationConfig = field(default_factory=SegmentationConfig)
    attribution: AttributionConfig = field(default_factory=AttributionConfig)
    analysis: AnalysisConfig = field(default_factory=AnalysisConfig)


@dataclass
class Truth(Segment):
    measures: list[str] | None = None
    measure_options: dict[str, Any] = field(default_factory=dict)
    tau: float = MISSING
    beta: float = MISSING
    seed: int = MISSING
    shard: int = MISSING
    attribution: AttributionConfig = field(default_factory=AttributionConfig)


@dataclass
class Cost(Command):
    length: int = MISSING
    rollouts: int = MISSING
    gpus: int = MISSING
    gpu: str = MISSING
    utilisation: float = MISSING
    nodes: int = MISSING
    share: float = MISSING
    certificate_every: int = MISSING
    checkpointing: bool = MISSING
    tokens_per_forward: int = MISSING


@dataclass
class Report(Command):
    selections: Any = None  # a path or a list of paths
    attributions: str | None = None
    rollouts: str | None = None
    title: str | None = None
    tau: float = MISSING
    beta: float = MISSING
    beta_min_tokens: int = MISSING
    force: list[int] = MISSING


@dataclass
class Show(Command):
    selections: str | None = None
    attributions: str | None = None
    id: str | None = None


@dataclass
class Quickstart(Command):
    problems: int = MISSING
    test_problems: int = MISSING
    samples: int = MISSING
    test_samples: int = MISSING
    batch: int = MISSING
    steps: int = MISSING
    seed: int = MISSING
    max_tokens: int = MISSING
    backend: str = MISSING
    sft: list[str] = MISSING
    grpo: list[str] = MISSING


SCHEMAS: dict[str, type[Command]] = {
    "doctor": Command,
    "quickstart": Quickstart,
    "generate": Generate,
    "harvest": Harvest,
    "segment": Segment,
    "attribute": Attribute,
    "calibrate": Calibrate,
    "select": Select,
    "evaluate": Evaluate,
    "grade": Grade,
    "export": Export,
    "compare": Compare,
    "analyze": Analyze,
    "truth": Truth,
    "cost": Cost,
    "report": Report,
    "show": Show,
}
ON_VERL = ("sft", "grpo")  # composed over verl's own config, which is their schema


# --- composing -------------------------------------------------------------------------------------------------------


def compose(command: str, overrides: list[str]) -> DictConfig:
    """The config of ``command``: its yaml over its schema, then the overrides. Frozen."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException

    _store_schemas()
    search = [f"hydra.searchpath=[{_verl_configs()}]"] if command in ON_VERL else []
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        try:
            config = hydra_compose(command, overrides=[*search, *_opened(command, overrides)])
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(_sentence(command, error)) from error
    OmegaConf.set_readonly(config, True)
    return config


@cache
def _store_schemas() -> None:
    """Once a process: each is half as dear as a command's yaml."""
    from hydra.core.config_store import ConfigStore

    for name, schema in SCHEMAS.items():
        ConfigStore.instance().store(name=f"{name}_schema", node=schema)


def needed(config: DictConfig, *keys: str) -> list[Any]:
    """The values of keys that a command cannot do without."""
    missing = [key for key in keys if config.get(key) is None]
    if missing:
        raise ConfigError(f"{' and '.join(missing)} must be given, like {missing[0]}=...")
    return [config[key] for key in keys]


def _verl_configs() -> str:
    """verl's own yaml files, found without importing verl."""
    spec = find_spec("verl")
    folders = [Path(place) / "trainer" / "config" for place in (spec and spec.submodule_search_locations) or ()]
    if not any(folder.is_dir() for folder in folders):
        raise ConfigError("this command runs on verl, which is not installed; see `segrl doctor`")
    return f"file://{next(folder for folder in folders if folder.is_dir())}"


def _opened(command: str, overrides: list[str]) -> list[str]:
    """A free mapping such as ``measure_options`` takes any key; Hydra wants a ``++`` before such a one."""
    schema = SCHEMAS.get(command)
    return [f"++{one}" if schema and _is_free(schema, one.partition("=")[0]) else one for one in overrides]


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
    return " ".join(str(error).split())


def _unknown_key(command: str, key: str) -> str:
    parent, _, last = key.rpartition(".")
    return f"there is no key {key!r}{near(last, _keys(SCHEMAS.get(command), parent))}"


def _keys(schema: type | None, parent: str) -> list[str]:
    """The keys under ``parent`` in the schema."""
    if schema is None:
        return []
    node = OmegaConf.structured(schema)
    for part in filter(None, parent.split(".")):
        if not isinstance(node, DictConfig) or part not in node:
            return []
        node = node._get_node(part)
    return [str(key) for key in node] if isinstance(node, DictConfig) else []

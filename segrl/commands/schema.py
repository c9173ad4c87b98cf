"""The schemas of the commands that start without torch, as dataclasses: what keys a command has and of what type.

A value that is MISSING here stands in ``configs/``. The other commands are in trace_schema.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

# --- sections --------------------------------------------------------------------------------------------------------


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
    """How responses are sampled: the section ``generation``."""

    n: int = MISSING
    temperature: float = MISSING
    top_p: float = MISSING
    repetition_penalty: float = MISSING
    max_tokens: int = MISSING
    stop: list[str] = MISSING
    seed: int = MISSING
    batch: int = MISSING
    transformers: TransformersConfig = field(default_factory=TransformersConfig)
    vllm: VllmConfig = field(default_factory=VllmConfig)
    openai: OpenAIConfig = field(default_factory=OpenAIConfig)


# --- commands --------------------------------------------------------------------------------------------------------


@dataclass
class Prompted:
    """The keys of what renders prompts for a model."""

    model_path: str | None = None  # the model that answers: a folder or hub id; null: the bundled toy model
    template: str = "chat"  # how a prompt is rendered: `chat`, `plain`, or a text that holds `{problem}`
    limit: int | None = None  # read only so many rows


@dataclass
class ReadTraces(Prompted):
    """The keys of what reads responses and their tokens."""

    attributor_path: str | None = None  # the model that explains, whose tokenizer counts; null: `model_path`
    traces: str | None = None  # responses: jsonl, parquet, a folder or glob of them, a hub id, or what `generate` wrote


@dataclass
class Planned:
    """What a plan is made for."""

    gpu: str | None = None  # the GPU to plan for where none is here; h200, h100, a100, a100-40gb, l40s, a10, 4090


@dataclass
class Graded:
    """What counts as an answer."""

    thinking: str = "auto"  # is a box before </think> an answer? auto, required, none


@dataclass
class LoadedModel:
    """How a model that transformers loads is held."""

    dtype: str = "float32"  # of the weights: `float32`, `bfloat16`, `float16`
    device: str = "auto"  # where the model runs: `auto`, `cpu`, `cuda`, `cuda:1`, ...


@dataclass
class Sampler(LoadedModel):
    """What samples responses."""

    # of the weights: `auto`, `float32`, `bfloat16`, `float16`; `auto`: with vLLM as in the model's config.json, with
    # transformers float32
    dtype: str = "auto"
    # what samples: transformers, vllm, openai (a server), or package.module:function
    backend: str = "transformers"
    server: str | None = None  # of backend=openai, such as http://localhost:8000/v1
    generation: GenerationConfig = field(default_factory=GenerationConfig)


@dataclass
class Doctor:
    """No key: it looks at what is installed."""


@dataclass
class Generate(Sampler, Prompted):
    data_path: str | None = None  # problems with answers: jsonl, parquet, a folder, a glob, a hub id; null: toy ones
    out: str | None = None  # a folder


@dataclass
class Harvest(Graded, Generate):
    traces: str | None = None  # responses to choose from: as data_path, or what `generate` wrote; null: sampled here
    keep: str = MISSING
    unanswered: bool = MISSING


@dataclass
class Evaluate(Planned, Graded, Generate):
    benchmark: Any = MISSING
    samples: dict[str, int | None] = field(default_factory=dict)
    greedy: bool = MISSING
    k: list[int] | None = MISSING


@dataclass
class Grade(Graded):
    traces: str | None = None  # responses: jsonl, parquet, a folder or glob of them, or what `generate` wrote
    out: str | None = None  # a .jsonl or .parquet file, or a folder
    limit: int | None = None  # read only so many rows
    k: list[int] | None = MISSING


@dataclass
class Compare:
    a: str | None = None
    b: str | None = None
    out: str | None = None  # a .json file of the differences


@dataclass
class Cost:
    model_path: str | None = None  # the model to train: a folder or hub id; null: the bundled toy model
    length: int = MISSING
    rollouts: int = MISSING
    gpus: int = MISSING
    gpu: str = MISSING
    utilisation: float = MISSING
    nodes: int = MISSING
    share: float = MISSING
    certificate_every: int = MISSING
    path: str = MISSING
    checkpointing: bool = MISSING
    tokens_per_forward: int = MISSING


@dataclass
class Report(ReadTraces):
    out: str | None = None  # an .html file
    selections: Any = None
    attributions: str | None = None
    rollouts: str | None = None
    metrics: str | None = None
    title: str | None = None
    tau: float = MISSING
    beta: float = MISSING
    beta_min_tokens: int = MISSING
    force: list[int] = MISSING


@dataclass
class Show(ReadTraces):
    selections: str | None = None
    attributions: str | None = None
    id: str | None = None


@dataclass
class Quickstart:
    model_path: str | None = None  # the model to train: a folder or hub id; null: the bundled toy model
    data_path: str | None = None  # problems with answers: jsonl, parquet, a folder, a glob, a hub id; null: toy ones
    out: str | None = None  # a folder
    problems: int = MISSING
    test_problems: int = MISSING
    samples: int = MISSING
    test_samples: int = MISSING
    batch: int = MISSING
    steps: int = MISSING
    seed: int = MISSING
    max_tokens: int = MISSING
    backend: str = MISSING
    for_sft: str = MISSING
    for_grpo: str = MISSING


SCHEMAS: dict[str, type] = {
    "doctor": Doctor,
    "quickstart": Quickstart,
    "generate": Generate,
    "harvest": Harvest,
    "evaluate": Evaluate,
    "grade": Grade,
    "compare": Compare,
    "cost": Cost,
    "report": Report,
    "show": Show,
}

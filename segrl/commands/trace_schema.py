"""The schemas of the commands whose sections are the options of a function.

Its dataclass or its signature is the section, and the only place of the defaults.

A choice from a table (``segmenter``, ``measure``, ``rule``) is a key of its own; how a stage works is in its section.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, make_dataclass
from functools import partial
from typing import Any, get_type_hints

from omegaconf import MISSING

from segrl.attribution.engine import AttributionSettings
from segrl.commands.schema import Graded, LoadedModel, Planned, ReadTraces, Sampler
from segrl.credit.settings import CreditSettings
from segrl.importance.reading import EvidenceSettings
from segrl.segmentation import segment
from segrl.selection import select
from segrl.sft.masking import Rules

# --- sections --------------------------------------------------------------------------------------------------------


def section_of(function: Callable, *names: str) -> type:
    """A dataclass of some parameters of a function, with its types and defaults; a tuple becomes a list, as in yaml."""
    hints, parameters = get_type_hints(function), inspect.signature(function).parameters
    options: list[tuple[str, Any, Any]] = []
    for name in names:
        default = parameters[name].default
        if isinstance(default, tuple):
            options.append((name, list[int], field(default_factory=partial(list, default))))
        else:
            options.append((name, hints[name], default))
    return make_dataclass(function.__name__, options, namespace={"described_in": function})


SELECTION = section_of(
    select, "tau", "beta", "beta_min_tokens", "force", "match_tokens", "match_segments", "consistency"
)
SEGMENTATION = section_of(segment, "min_tokens", "max_segments")


@dataclass
class SelectionSettings(SELECTION):  # type: ignore[valid-type, misc]
    """Which segments are kept (Eq. 5 to 7): the section ``selection``, the options of :func:`segrl.select`."""


@dataclass
class SegmentationSettings(SEGMENTATION):  # type: ignore[valid-type, misc]
    """How segments are joined, and the segmenter's options: the section ``segmentation``."""

    # of the segmenter: {word_boundary: true, crlf: true} for keywords, {pattern: ...} for regex
    options: dict[str, Any] = field(default_factory=dict)


SECTIONS: dict[str, type] = {
    "attribution": AttributionSettings,
    "segmentation": SegmentationSettings,
    "evidence": EvidenceSettings,
    "selection": SelectionSettings,
}


@dataclass
class AnalysisConfig:
    """Thresholds of the figures, and how they are made: the section ``analysis``."""

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
class SecondRound:
    """What follows where the judge came to no verdict: the section ``second_round``."""

    temperature: float = MISSING
    max_tokens: int = MISSING


# --- commands --------------------------------------------------------------------------------------------------------


@dataclass
class Cut:
    """How a response is cut into segments."""

    # where to cut: keywords, retro_search, paragraphs, fixed, regex, auto; or package.module:function
    segmenter: str = "keywords"
    segmentation: SegmentationSettings = field(default_factory=SegmentationSettings)


@dataclass
class Segment(Cut, ReadTraces):
    out: str | None = None  # a .jsonl or .parquet file


@dataclass
class Spread(Planned, LoadedModel):
    """Where many traces are attributed or scored, and what a kill can lose of it."""

    # where it runs: local, ray or auto. local: in this process; ray: an actor per GPU, or per share of the cores, on
    # all nodes of the cluster; auto: ray where this machine has several GPUs
    executor: str = "auto"
    workers: int = 0  # actors on ray; 0: one per GPU, or one
    shard: int = 32  # traces in a shard; what a kill can lose


@dataclass
class Attribute(Spread, ReadTraces):
    out: str | None = None  # a folder
    attribution: AttributionSettings = field(default_factory=AttributionSettings)


@dataclass
class Measured(Cut, Spread):
    """What the segments of many traces are scored by."""

    # what a segment is scored by: first_and_last, contribution, ig, ...; or package.module:function.
    # first_and_last: the mean of what the thought adds to the answer's log-odds alone, and of what is lost without it;
    # alone: the first of the two; shapley: the mean over many subsets of the thoughts; contribution: what the segment
    # adds to the answer, read from one gate; mistake: what speaks for a wrong answer against the gold one;
    # continuation_gain: samples the response on from each thought; ig: the paper's, with attribution=paper; variants
    # of it: strength, abs_ig_tokens, ig_tokens; support: what the text after the segment loses without it; rivals: pmi,
    # confidence_gain, confidence_gain_cheap, leave_one_out, grad_input, oar, grail, attention, entropy, surprise,
    # perplexity, first_correct; controls: random, permuted_ig, length, position, oracle
    measure: str = "first_and_last"


@dataclass
class ColdStart(Measured):
    """How `segrl sft` attributes and selects by itself, in the words of `segrl attribute` and `segrl select`."""

    attribution: AttributionSettings = field(default_factory=AttributionSettings)


@dataclass
class Calibrate(LoadedModel, ReadTraces):
    out: str | None = None  # a .json file
    grid: int = MISSING
    attribution: AttributionSettings = field(default_factory=AttributionSettings)


@dataclass
class Select(Measured, ReadTraces):
    out: str | None = None  # a .jsonl or .parquet file
    measure_options: dict[str, Any] = field(default_factory=dict)
    attributions: str | None = None
    pruned: str | None = None
    attribution: AttributionSettings = field(default_factory=AttributionSettings)
    evidence: EvidenceSettings = field(default_factory=EvidenceSettings)
    selection: SelectionSettings = field(default_factory=SelectionSettings)


@dataclass
class Explain(Cut, LoadedModel, ReadTraces):
    problem: str | None = None
    response: str | None = None
    answer: str | None = None
    id: str | None = None
    page: str | None = None
    measure: str = "first_and_last"
    measure_options: dict[str, Any] = field(default_factory=dict)
    temperature: float = MISSING
    max_tokens: int = MISSING
    seed: int = MISSING
    attribution: AttributionSettings = field(default_factory=AttributionSettings)
    evidence: EvidenceSettings = field(default_factory=EvidenceSettings)
    selection: SelectionSettings = field(default_factory=SelectionSettings)


@dataclass
class Export(ReadTraces):
    out: str | None = None  # a folder
    selections: str | None = None
    tau: float | None = None
    beta: float | None = None
    max_length: int | None = None
    masking: Rules = field(default_factory=Rules)


@dataclass
class Analyze(Cut, Graded, Sampler, ReadTraces):
    out: str | None = None  # a folder
    measure: str = MISSING
    measure_options: dict[str, Any] = field(default_factory=dict)  # of the measure
    seed: int = MISSING
    shard: int = MISSING
    judge_path: str | None = None
    second_round: SecondRound = field(default_factory=SecondRound)
    attribution: AttributionSettings = field(default_factory=AttributionSettings)
    analysis: AnalysisConfig = field(default_factory=AnalysisConfig)


@dataclass
class Truth(LoadedModel, ReadTraces):
    out: str | None = None  # a folder
    world: str = "toy"  # where the traces come from: toy, lines, worded or real
    half: str = "test"  # its traces to look at: test, dev (on which to choose) or all
    # of the world: {ask: last} and {wrong: true} for toy, {wrong: true} for worded, {path: ...} for lines and real
    world_options: dict[str, Any] = field(default_factory=dict)
    measures: list[str] | None = None  # arms of the table or measures; null: every arm
    measure_options: dict[str, Any] = field(default_factory=dict)  # by measure: {shapley: {...}}
    forwards: int = 512  # of sampled Shapley values, where there are too many thoughts for exact ones
    seed: int = 0  # of the traces and of sampled values
    shard: int = 2  # traces in a shard; what a kill can lose
    attribution: AttributionSettings = field(default_factory=AttributionSettings)


TRACE_SCHEMAS: dict[str, type] = {
    "segment": Segment,
    "attribute": Attribute,
    "calibrate": Calibrate,
    "select": Select,
    "explain": Explain,
    "export": Export,
    "analyze": Analyze,
    "truth": Truth,
}


@dataclass
class Sft(ColdStart):
    """The keys of `segrl sft` whose types are known, beside verl's."""

    segrl: Rules = field(default_factory=Rules)


@dataclass
class Grpo:
    """The keys of `segrl grpo` whose types are known, beside verl's."""

    segrl: CreditSettings = field(default_factory=CreditSettings)


BESIDE_VERLS: dict[str, type] = {"sft": Sft, "grpo": Grpo}
# What is mixed into verl's config, as plain mappings: verl's own main runs on them.
IN_VERLS: dict[str, type] = {"masking": Rules, "credit": CreditSettings, "cold_start": ColdStart}

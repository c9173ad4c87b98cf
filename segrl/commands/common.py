"""What several commands need: traces, tokenizer and models by their keys, a progress bar, and the summary."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from segrl.commands.config import ConfigError, needed
from segrl.types import Segments, TokenisedTrace, Trace, given

if TYPE_CHECKING:
    from segrl.grading import Verdict


SUMMARY = "SEGRL_SUMMARY"  # the environment variable that names a file for what ``say`` prints
METRICS = "VERL_FILE_LOGGER_PATH"  # verl's variable: where its logger ``file`` writes


def say(text: str) -> None:
    """Print a line of the command's summary; where ``SEGRL_SUMMARY`` names a file, append it there too."""
    print(text, flush=True)
    if file := os.environ.get(SUMMARY):
        with open(file, "a", encoding="utf-8") as summary:
            summary.write(f"{text}\n")


def counted(counts: Mapping[str, int]) -> str:
    """How often each name occurs, as ``2 exact, 1 numeric``."""
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def plain(node: DictConfig) -> dict[str, Any]:
    """The node as a dict of plain values."""
    values = OmegaConf.to_container(node, resolve=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def model_path(config: DictConfig) -> str:
    """The path of the model that answers: ``model_path``, else the bundled model."""
    from segrl import toy

    return config.model_path or str(toy.MODEL_PATH)


def attributor_path(config: DictConfig) -> str:
    """The model that explains: ``attributor_path``, else the one that answers."""
    return config.attributor_path or model_path(config)


def attributor(config: DictConfig) -> dict[str, Any]:
    """The model that explains, as ``load_model`` takes it."""
    return {"path": attributor_path(config), "dtype": loaded_dtype(config.dtype), "device": config.device}


def made_from(traces: Sequence[TokenisedTrace], config: DictConfig) -> dict[str, Any]:
    """What the attributor's rows follow from besides their options: the model and its weights, the traces and their
    prompt, and the calibration, if there is one."""
    from segrl.data.records import traces_hash
    from segrl.loading import weights_hash

    model, quadrature = attributor(config), Path(str(config.attribution.quadrature))
    made = {"attributor": model["path"], "weights": weights_hash(model["path"]), "dtype": model["dtype"]}
    made |= {"traces": traces_hash(traces), "template": config.template}
    return made | ({"calibration": file_hash(quadrature)} if quadrature.is_file() else {})


def lasting(attribution: Mapping[str, Any]) -> dict[str, Any]:
    """The options of attribution from which rows follow. Those of how they go through the model may change while a job
    is interrupted."""
    return {name: value for name, value in attribution.items() if name not in ("batch_tokens", "checkpointing")}


def file_hash(file: str | Path) -> str:
    """A hash of the file's content."""
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16]


def loaded_dtype(dtype: str) -> str:
    """The dtype of a model that transformers loads: float32 for ``auto``."""
    return "float32" if dtype == "auto" else dtype


def traces_of(config: DictConfig) -> list[Trace]:
    """The first ``limit`` traces of ``traces``, each of which has a response."""
    from segrl.data import load_traces

    (path,) = needed(config, "traces")
    return load_traces(path, limit=config.limit, require_response=True)


def tokenised(config: DictConfig) -> list[TokenisedTrace]:
    """The traces of ``traces``, their tokens counted by the attributor's tokenizer."""
    from segrl.loading import load_tokenizer
    from segrl.tokenization import spells, tokenize_all

    traces = traces_of(config)
    tokenizer = load_tokenizer(attributor_path(config))
    for trace in traces:
        if isinstance(trace, TokenisedTrace) and not spells(tokenizer, trace):
            raise ValueError(
                f"trace {trace.id!r} is saved in tokens that {attributor_path(config)} does not read as its response; "
                "give the model whose tokens they are as attributor_path=, or save the traces as text"
            )
    texts = [trace for trace in traces if not isinstance(trace, TokenisedTrace)]
    tokenised_texts = iter(tokenize_all(texts, tokenizer, config.template))
    return [trace if isinstance(trace, TokenisedTrace) else next(tokenised_texts) for trace in traces]


def trace_of(config: DictConfig) -> TokenisedTrace:
    """The trace of ``traces`` that ``id`` names; without an id the first."""
    traces = tokenised(config)
    trace = next((candidate for candidate in traces if config.id in (None, candidate.id)), None)
    if trace is None:
        raise ConfigError(f"no trace is called {config.id!r}; the first of {len(traces)} is {traces[0].id!r}")
    return trace


def segments_of(trace: TokenisedTrace, config: DictConfig) -> Segments:
    from segrl.segmentation import segment

    options = plain(config.segmentation)
    return segment(trace, config.segmenter, **options.pop("options"), **options)


def verdicts(traces: Sequence[Trace], thinking: str = "auto") -> Iterator[Verdict]:
    """A verdict on each trace, in order. Threads, since hard comparisons run in the grader's own processes."""
    from segrl.grading import grade

    def verdict(trace: Trace) -> Verdict:
        prompt = trace.prompt or ""
        return grade(given(trace.answer), trace.response, thinking=thinking, prompt=prompt, finish=trace.finish)

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        yield from threads.map(verdict, traces)


@contextmanager
def progress(what: str, total: int, completed: int = 0) -> Iterator[Callable[[int, int], None]]:
    """A bar with count, rates, time taken and time left; ``advance(traces, tokens)`` moves it."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rates]}"))
    times = (TimeElapsedColumn(), TextColumn("taken,"), TimeRemainingColumn(compact=True), TextColumn("left"))
    began, moved = time.perf_counter(), [0, 0]
    with Progress(*columns, *times) as bar:
        task = bar.add_task(what, total=total, completed=completed, rates="")

        def advance(traces: int, tokens: int) -> None:
            moved[0] += traces
            moved[1] += tokens
            seconds = time.perf_counter() - began
            rates = f"{moved[0] / seconds:.2f} traces/s, {moved[1] / seconds:,.0f} tokens/s"
            bar.update(task, advance=traces, rates=rates)

        yield advance

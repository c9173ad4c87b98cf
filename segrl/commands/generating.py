"""The commands `generate` and `harvest`: models -> traces."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from segrl.commands.common import loaded_dtype, model_path, plain, progress, say, verdicts
from segrl.commands.config import ConfigError, needed
from segrl.data.shards import Shards
from segrl.resolving import resolve
from segrl.types import Trace

HELD_OUT = 900_000  # a seed of toy problems; those that training has seen begin at a million
# How samples are drawn, not what they are: an interrupted job may go on with other values of these.
CIRCUMSTANCES = ("device", "engine", "server", "key_variable", "concurrency", "retries", "backoff", "timeout")


def generate(config: DictConfig) -> None:
    """Write sampled responses, shard by shard; ``problem#sample`` tells them apart."""
    (out,) = needed(config, "out")
    traces = generated(config, Path(out))
    cut = sum(trace.meta["finish"] == "length" for trace in traces)
    empty = sum(not trace.response.strip() for trace in traces)
    say(f"{len(traces)} responses, {cut} cut at max_tokens, {empty} empty -> {out}")


def generated(config: DictConfig, out: Path) -> list[Trace]:
    """Every sample of every problem, also those that an interrupted run has written."""
    from segrl.data import load_traces, save_traces
    from segrl.data.records import traces_hash
    from segrl.generation import BACKENDS, Sampling, samples, whole_groups
    from segrl.loading import check_model, weights_hash

    options = plain(config.generation)
    backend_options = {name: options.pop(name) for name in BACKENDS}.get(config.backend, {})
    n, seed, batch = (options.pop(name) for name in ("n", "seed", "batch"))
    if batch < 1:
        raise ConfigError(f"generation.batch={batch}, expected 1 or more samples in a shard")
    backend = resolve(config.backend, BACKENDS, "backend")
    if config.backend != "openai":
        check_model(model_path(config))
    if "dtype" in backend_options:
        backend_options["dtype"] = _dtype(backend_options["dtype"], config)
    sampling = Sampling(_answering(config), config.template, **options)
    prompts = samples(problems_of(config), n, seed)
    lasting = {name: value for name, value in backend_options.items() if name not in CIRCUMSTANCES}
    made: dict[str, str | None] = {"problems": traces_hash(prompts)}
    if config.backend != "openai":
        made["weights"] = weights_hash(model_path(config))
    settings = {"backend": config.backend, **asdict(sampling), "n": n, "seed": seed, **lasting, **made}
    shards = Shards(out, settings, prompts, batch)
    todo = dict(shards.todo())
    with progress("generate", len(prompts), shards.done) as advance:
        traces = _advancing(backend(todo.values(), sampling, **backend_options), advance) if todo else ()
        for i, group in whole_groups(todo, traces):
            save_traces(group, shards.part(i))
    responses = load_traces(str(out))
    _refuse_silence(responses, out)
    return responses


def harvest(config: DictConfig) -> None:
    """Write the shortest correct and incorrect response of each problem, and how many problems lack either."""
    from segrl.data import save_traces
    from segrl.data.files import write_json
    from segrl.generation import harvest as pick

    out = Path(*needed(config, "out"))
    kept, rows = pick(_judged(_candidates(config, out), config), config.keep, config.unanswered)
    without = {side: sum(not row[side] for row in rows) for side in ("correct", "incorrect")}
    without["either"] = sum(not row["correct"] and not row["incorrect"] for row in rows)
    summary = {"problems": len(rows), "without": without, "mean_tokens": _mean_lengths(rows), "kept": len(kept)}
    write_json(out / "harvest.json", {"settings": _settings(config), **summary, "by_problem": rows})
    say(_summary(summary))
    if not kept:
        raise ValueError(f"nothing to keep: no response to these {len(rows)} problems is {config.keep}; see {out}")
    save_traces(kept, out / "traces.parquet")
    print(f"-> {out / 'traces.parquet'}")


def _summary(counts: Mapping[str, Any]) -> str:
    without, tokens = counts["without"], counts["mean_tokens"]
    problems = f"{counts['problems']} problems: {without['correct']} without a correct response"
    lengths = ", ".join(f"{mean} of {side} ones" for side, mean in tokens.items() if mean is not None)
    return (
        f"{problems}, {without['incorrect']} without an incorrect one, {without['either']} with neither\n"
        f"tokens of the shortest, on average: {lengths or 'there is none'}\n{counts['kept']} responses kept"
    )


# --- problems --------------------------------------------------------------------------------------------------------


def problems_of(config: DictConfig) -> list[Trace]:
    """A benchmark, the file at ``data_path``, or held-out toy problems."""
    from segrl import toy
    from segrl.data import load_benchmark, load_traces

    if config.get("benchmark"):
        return load_benchmark(config.benchmark, config.data_path, limit=config.limit)
    if config.data_path:
        return load_traces(config.data_path, limit=config.limit)
    return toy.sample_problems(config.limit or 64, seed=HELD_OUT)


def _answering(config: DictConfig) -> str | None:
    """The model that answers; of a server the one that is given, never the bundled one."""
    return config.model_path if config.backend == "openai" else model_path(config)


def _dtype(dtype: str, config: DictConfig) -> str:
    """What ``dtype=auto`` stands for: the model's own with vLLM, float32 with transformers."""
    from segrl.loading import own_dtype

    own = dtype == "auto" and config.backend == "vllm"
    return own_dtype(model_path(config)) if own else loaded_dtype(dtype)


def _candidates(config: DictConfig, out: Path) -> list[Trace]:
    """The responses to ``limit`` problems, saved ones or new ones."""
    from segrl.data.outputs import load_outputs
    from segrl.generation.harvesting import by_problem

    if not config.traces:
        return generated(config, out / "candidates")
    _, traces = load_outputs(config.traces)
    return [trace for group in list(by_problem(traces).values())[: config.limit] for trace in group]


# --- responses -------------------------------------------------------------------------------------------------------


def _advancing(traces: Iterable[Trace], advance) -> Iterator[Trace]:
    """The traces, each counted by the progress bar as it comes."""
    for trace in traces:
        advance(1, trace.meta["tokens"])
        yield trace


def _refuse_silence(traces: Sequence[Trace], out: Path) -> None:
    if not any(trace.response.strip() for trace in traces):
        stopped = sum(trace.meta["finish"] == "stop" for trace in traces)
        raise ValueError(
            f"the model emitted nothing: all {len(traces)} responses are empty, {stopped} of them ended by the model "
            f"itself. Is the template right for it (template=plain for a base model), is stop=? They lie in {out}"
        )


def _judged(traces: Sequence[Trace], config: DictConfig) -> list[Trace]:
    """The traces with their verdict and length in ``meta``."""
    missing = next((trace.id for trace in traces if trace.answer is None), None)
    if missing:
        raise ValueError(f"trace {missing!r} has no gold answer to grade against; give traces with answers")
    judged, lengths = [], _lengths(traces, config)
    with progress("grade", len(traces)) as advance:
        for trace, tokens, verdict in zip(traces, lengths, verdicts(traces, config.thinking), strict=True):
            graded = {"tokens": tokens, "correct": verdict.correct, "status": verdict.status}
            judged.append(replace(trace, meta={**trace.meta, **graded}))
            advance(1, tokens)
    return judged


def _lengths(traces: Sequence[Trace], config: DictConfig) -> list[int]:
    """The tokens of each response: those sampled where they were counted, else by ``model_path``'s tokenizer."""
    if all("tokens" in trace.meta for trace in traces):
        return [trace.meta["tokens"] for trace in traces]
    from segrl.loading import load_tokenizer

    tokenizer = load_tokenizer(*needed(config, "model_path"))
    return [len(tokenizer(trace.response, add_special_tokens=False)["input_ids"]) for trace in traces]


def _mean_lengths(rows: Sequence[dict]) -> dict[str, float | None]:
    lengths = {side: [row[f"shortest_{side}"] for row in rows if row[side]] for side in ("correct", "incorrect")}
    return {side: round(sum(counts) / len(counts), 1) if counts else None for side, counts in lengths.items()}


def _settings(config: DictConfig) -> dict[str, Any]:
    """The settings that are noted in ``harvest.json``."""
    settings = {name: config[name] for name in ("traces", "data_path", "thinking", "keep", "unanswered")}
    return settings if config.traces else {**settings, "model_path": _answering(config), "n": config.generation.n}

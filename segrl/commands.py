"""The commands: each reads files, calls one stage, writes files. What a stage does is in the stage's own module."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from segrl import records
from segrl.config import ConfigError, needed
from segrl.shards import Shards
from segrl.types import Trace

GROUP = 32  # traces between two shards


# --- traces -> segments -> attributions -> selections ----------------------------------------------------------------


def segment(config: DictConfig) -> None:
    """Write each trace's boundaries."""
    from segrl.data import write_rows

    _, out = needed(config, "traces", "out")
    rows = [records.segments_row(trace, _segments(trace, config)) for trace in _tokenised(config)]
    write_rows(out, rows)
    counts = [len(row["boundaries"]) - 1 for row in rows]
    print(f"{len(rows)} traces, {sum(counts)} segments, {sum(counts) / len(counts):.1f} a trace -> {out}")


def attribute(config: DictConfig) -> None:
    """Write each trace's token scores, shard by shard; a trace that fails is written with its reason."""
    _, out = needed(config, "traces", "out")
    model, tokenizer = _attributor(config)
    traces = _tokenised(config, tokenizer)
    settings = {"attributor_path": config.attributor_path or "toy", **_plain(config.attribution)}
    shards = Shards(out, settings)
    todo = [trace for trace in traces if (trace.id,) not in shards.done]
    with _progress("attribute", len(traces), len(traces) - len(todo)) as advance:
        for group in _groups(todo, GROUP):
            shards.append(_attributed(model, tokenizer, group, _plain(config.attribution)))
            advance(len(group))
    failed = [row for row in shards.read() if row["error"]]
    print(f"{len(traces) - len(failed)} traces attributed, {len(failed)} failed -> {out}")
    for row in failed[:5]:
        print(f"  {row['id']}: {row['error']}")


def _attributed(model, tokenizer, group: Sequence[Trace], options: dict) -> list[dict]:
    from segrl.attribution import attribute as run

    try:
        found = run(model, group, tokenizer, **options)
        return [records.attribution_row(trace, one) for trace, one in zip(group, found, strict=True)]
    except ValueError as error:
        if len(group) > 1:  # find the one that fails; the others go on
            return [row for trace in group for row in _attributed(model, tokenizer, [trace], options)]
        return [records.failed_attribution_row(group[0], str(error))]


def select(config: DictConfig) -> None:
    """Write each trace's segments, scores and which of them to keep."""
    from segrl.data import write_rows

    _, out = needed(config, "traces", "out")
    rows = [_selected(evidence, config) for evidence in _evidence(config)]
    write_rows(out, rows)
    kept = [sum(n for n, keep in zip(_lengths(row), row["keep"], strict=True) if keep) for row in rows]
    total = sum(row["boundaries"][-1] for row in rows)
    print(f"{len(rows)} traces, {sum(kept)} of {total} tokens kept ({100 * sum(kept) / total:.0f}%) -> {out}")


def _selected(evidence, config: DictConfig) -> dict:
    from segrl.importance import score
    from segrl.selection import select as choose

    segments = _segments(evidence.trace, config)
    scores = score(evidence, segments, config.measure, **_plain(config.measure_options))
    return records.selection_row(evidence.trace, segments, scores, choose(scores, **_plain(config.selection)))


def _evidence(config: DictConfig) -> Iterator[Any]:
    """What the measure reads: from ``attributions`` where given, else computed by the attributor."""
    from segrl.evidence import gather
    from segrl.importance import measure_of
    from segrl.types import Evidence

    needs = measure_of(config.measure).needs
    if config.attributions and needs == ("ig",):
        found = {row["id"]: row for row in _rows(config.attributions) if not row["error"]}
        for trace in _tokenised(config):
            if trace.id in found:
                records.check_identity(trace, found[trace.id], "attribution")
                yield Evidence(trace, records.attribution_of(found[trace.id]))
        return
    if not needs:
        yield from (Evidence(trace) for trace in _tokenised(config))
        return
    model, tokenizer = _attributor(config)
    traces = _tokenised(config, tokenizer)
    options = _plain(config.attribution) if "ig" in needs else {}
    with _progress("gather", len(traces)) as advance:
        for group in _groups(traces, GROUP):
            yield from gather(model, group, tokenizer, needs, **options)
            advance(len(group))


# --- models -> traces -> verdicts ------------------------------------------------------------------------------------


def generate(config: DictConfig) -> None:
    """Write sampled responses, shard by shard; ``(id, sample)`` tells them apart."""
    (out,) = needed(config, "out")
    traces = _generated(config, _problems(config), Path(out))
    print(f"{len(traces)} responses -> {out}")


def grade(config: DictConfig) -> None:
    """Print and, with ``out``, write the verdicts on saved responses."""
    from segrl.data import load_traces, write_rows

    (path,) = needed(config, "traces")
    rows = _verdicts(load_traces(path, limit=config.limit), config.thinking)
    if config.out:
        write_rows(config.out, rows)
    statuses: dict[str, int] = defaultdict(int)
    for row in rows:
        statuses[row["status"]] += 1
    right = sum(row["correct"] for row in rows)
    print(f"{right} of {len(rows)} right ({100 * right / len(rows):.1f}%)  {dict(statuses)}")


def evaluate(config: DictConfig) -> None:
    """Generate, grade and average; ``out`` is a folder."""
    (out,) = needed(config, "out")
    traces = _generated(config, _problems(config), Path(out) / "responses")
    rows = _verdicts(traces, config.thinking)
    summary = _summary(rows, traces)
    path = Path(out) / f"results_{config.benchmark or 'problems'}.json"
    path.write_text(json.dumps(summary, indent=1) + "\n")
    print("\n".join(f"{name:<12}{value}" for name, value in summary.items()))
    print(f"-> {path}")


def _summary(rows: list[dict], traces: Sequence[Trace]) -> dict[str, Any]:
    from segrl.evaluation import accuracy

    correct: dict[str, list[bool]] = defaultdict(list)
    for row in rows:
        correct[row["problem_id"]].append(row["correct"])
    n = min(map(len, correct.values()))
    return {
        "problems": len(correct),
        "samples": n,
        **{f"pass@{k}": str(accuracy(correct, k)) for k in {1, n}},
        "mean_tokens": sum(trace.meta["tokens"] for trace in traces) / len(traces),
        "truncated": sum(trace.meta["finish"] == "length" for trace in traces) / len(traces),
    }


def _generated(config: DictConfig, problems: Sequence[Trace], out: Path) -> list[Trace]:
    from segrl.data import load_traces, save_traces
    from segrl.generation import sample

    if config.backend != "transformers":
        raise ConfigError(f"backend={config.backend!r}, expected transformers")
    model, tokenizer = _model(config.model_path, config)
    options = {name: config.generation[name] for name in ("temperature", "top_p", "max_tokens", "seed")}
    settings = {"model_path": config.model_path or "toy", "problems": len(problems), **_plain(config.generation)}
    shards = Shards(out, settings)
    asked = [_sample_of(problem, k) for problem in problems for k in range(config.generation.n)]
    todo = [trace for trace in asked if (trace.id,) not in shards.done]
    with _progress("generate", len(asked), len(asked) - len(todo)) as advance:
        for i, group in enumerate(_groups(todo, config.generation.batch)):
            # Seeded by its place among all samples, so that a resumed run draws what an uninterrupted one does.
            place = len(asked) - len(todo) + i * config.generation.batch
            options["seed"] = config.generation.seed * 1_000_003 + place
            answered = sample(model, tokenizer, group, **options, template=config.template)
            save_traces(answered, shards.next_part)
            advance(len(group))
    return load_traces(out)


def _sample_of(problem: Trace, k: int) -> Trace:
    return replace(problem, id=f"{problem.id}#{k}", meta={**problem.meta, "problem_id": problem.id, "sample": k})


def _verdicts(traces: Sequence[Trace], thinking: str) -> list[dict]:
    from segrl.grading import grade as judge

    rows = []
    for trace in traces:
        if trace.answer is None:
            raise ValueError(f"trace {trace.id!r} has no gold answer to grade against")
        verdict = judge(trace.answer, trace.response, thinking=thinking)
        about = {"id": trace.id, "problem_id": trace.meta.get("problem_id", trace.id), "gold": trace.answer}
        rows.append(
            {**about, "pred": verdict.pred, "correct": verdict.correct, "status": verdict.status, "ms": verdict.ms}
        )
    return rows


# --- to look at ------------------------------------------------------------------------------------------------------


def show(config: DictConfig) -> None:
    """Print one trace, with its selection where given."""
    from segrl.report import show as draw
    from segrl.report import terminal

    traces = _tokenised(config)
    trace = next((one for one in traces if one.id == config.id), None) if config.id else traces[0]
    if trace is None:
        raise ConfigError(f"no trace is called {config.id!r}; the first of {len(traces)} is {traces[0].id!r}")
    row = next((row for row in _rows(config.selections) if row["id"] == trace.id), None) if config.selections else None
    if row is None:
        from segrl.segmentation import segment as cut

        draw(terminal(trace, cut(trace)))
        return
    records.check_identity(trace, row, "selection")
    draw(terminal(trace, records.segments_of(row), records.scores_of(row), records.selection_of(row)))


def quickstart(config: DictConfig) -> None:
    """Toy problems -> sampled traces -> verdicts -> attributions -> selections -> one trace in colour."""
    from segrl.config import compose

    began = time.perf_counter()
    folder = Path(config.out)
    traces, attributions = f"traces={folder / 'traces'}", f"attributions={folder / 'attributions'}"
    selections = folder / "selections.parquet"
    steps = {
        "generate": [f"out={folder / 'traces'}", f"limit={config.problems}", f"generation.seed={config.seed}"],
        "grade": [traces, f"out={folder / 'verdicts.parquet'}"],
        "attribute": [traces, f"out={folder / 'attributions'}"],
        "select": [traces, attributions, f"out={selections}"],
        "show": [traces, f"selections={selections}"],
    }
    for name, overrides in steps.items():
        print(f"[{time.perf_counter() - began:5.1f} s] segrl {name} {' '.join(overrides)}")
        globals()[name](compose(name, overrides))


# --- reading what the keys name --------------------------------------------------------------------------------------


def _problems(config: DictConfig) -> list[Trace]:
    from segrl import toy
    from segrl.data import load_benchmark, load_traces

    if config.get("benchmark"):
        return load_benchmark(config.benchmark, config.data_path)[: config.limit]
    if config.data_path:
        return load_traces(config.data_path, limit=config.limit)
    return toy.sample_problems(config.limit or 64, seed=1_000_000)


def _tokenised(config: DictConfig, tokenizer=None) -> list[Trace]:
    from segrl.data import load_traces
    from segrl.tokenization import tokenize

    (path,) = needed(config, "traces")
    traces = load_traces(path, limit=config.limit)
    tokenizer = tokenizer or _tokenizer(config)
    for trace in traces:
        if not trace.response:
            raise ValueError(f"trace {trace.id!r} of {path} has an empty response: there is nothing to cut")
    return [trace if trace.tokenised else tokenize(trace, tokenizer, config.template) for trace in traces]


def _segments(trace: Trace, config: DictConfig):
    from segrl.segmentation import segment as cut

    options = _plain(config.segmentation)
    return cut(trace, config.segmenter, **options.pop("options"), **options)


def _attributor(config: DictConfig) -> tuple[Any, Any]:
    return _model(config.attributor_path or config.model_path, config)


def _tokenizer(config: DictConfig):
    """The tokenizer that all token positions are counted in: the attributor's, else the model's, else the toy's."""
    from transformers import AutoTokenizer

    from segrl import toy

    return AutoTokenizer.from_pretrained(config.attributor_path or config.model_path or toy.MODEL_PATH)


def _model(path: str | None, config: DictConfig) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from segrl import toy

    path = path or str(toy.MODEL_PATH)
    device = ("cuda" if torch.cuda.is_available() else "cpu") if config.device == "auto" else config.device
    model = AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, config.dtype))
    return model.to(device).eval(), AutoTokenizer.from_pretrained(path)


def _rows(path: str) -> list[dict]:
    from segrl.data import read_rows

    parts = sorted(Path(path).glob("part-*.parquet")) if Path(path).is_dir() else [Path(path)]
    return [row for part in parts for row in read_rows(part)]


def _plain(node: DictConfig) -> dict[str, Any]:
    plain = OmegaConf.to_container(node, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _lengths(row: dict) -> list[int]:
    return [b - a for a, b in zip(row["boundaries"], row["boundaries"][1:], strict=False)]


def _groups(items: Sequence, size: int) -> Iterator[Sequence]:
    return (items[i : i + size] for i in range(0, len(items), size))


@contextmanager
def _progress(what: str, total: int, done: int = 0) -> Iterator[Callable[[int], None]]:
    """A bar with count, elapsed and remaining time."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn()) as bar:
        task = bar.add_task(what, total=total, completed=done)
        yield lambda n: bar.advance(task, n)

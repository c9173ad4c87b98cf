"""The commands `grade`, `evaluate` and `compare`: traces -> verdicts, accuracies, differences."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from segrl.commands.common import counted, progress, say, verdicts
from segrl.commands.config import ConfigError, needed
from segrl.commands.generating import generated, problems_of
from segrl.commands.planning import announce
from segrl.evaluation.statistics import GREEDY
from segrl.types import Trace

if TYPE_CHECKING:
    from segrl.grading import Verdict

AVERAGES = ("average", f"average{GREEDY}")
Result = tuple[dict[str, Any], dict[str, list[float]]]  # a benchmark's summary, and its metrics problem by problem


def grade(config: DictConfig) -> None:
    """Grade what any tool saved; ``out`` is a file of verdicts, or a folder of results as ``evaluate`` leaves them."""
    from segrl.data import write_rows
    from segrl.data.files import ENDINGS
    from segrl.data.outputs import load_outputs

    (path,) = needed(config, "traces")
    name = re.sub(r"[^\w.-]+", "_", Path(path).stem).strip("_") or "outputs"  # of a glob too
    kind, traces = load_outputs(path, config.limit)
    failing = _audit(traces, name)
    _warn_if_silent(traces, name)
    samples = _graded(traces, config.thinking)
    if config.out and Path(config.out).suffix in ENDINGS:
        write_rows(config.out, samples)
    elif config.out:
        notes = {"gold_failing": failing, "settings": {"traces": path, "format": kind, "thinking": config.thinking}}
        _report(Path(config.out), {name: _written(Path(config.out), name, samples, config.k, notes)})
    right = sum(sample["correct"] for sample in samples)
    statuses = counted(Counter(sample["status"] for sample in samples))
    print(f"{kind}: {right} of {len(samples)} right ({100 * right / len(samples):.1f}%), by verdict {statuses}")


def evaluate(config: DictConfig) -> None:
    """Generate, grade and average, each benchmark sampled and perhaps greedy; ``out`` is a folder."""
    (out,) = needed(config, "out")
    folder, passes = Path(out), _passes(config)
    # Every problem is read and every gold tried before the first token is sampled.
    problems = {name: problems_of(pass_config) for name, pass_config in passes.items()}
    failing = {name: _audit(traces, name) for name, traces in problems.items()}
    announce("evaluate", config, samples=sum(len(problems[name]) * passes[name].generation.n for name in passes))
    results = {}
    for name, pass_config in passes.items():
        traces = generated(pass_config, folder / "responses" / name)
        _warn_if_silent(traces, name)
        settings = json.loads((folder / "responses" / name / "settings.json").read_text())
        notes = {"gold_failing": failing[name], "settings": {**settings, "thinking": config.thinking}}
        samples = _graded(traces, config.thinking)
        results[name] = _written(folder, name, samples, None if name.endswith(GREEDY) else config.k, notes)
    _report(folder, results)


def compare(config: DictConfig) -> None:
    """Print and, with ``out``, write how far two evaluations are apart on the problems that both were asked."""
    from segrl.data.files import write_json
    from segrl.evaluation.results import read_samples
    from segrl.evaluation.statistics import paired

    places = needed(config, "a", "b")
    a, b = map(read_samples, places)
    shared = sorted({*a} & {*b}) or ([*a] if len(a) == len(b) == 1 else [])
    if not shared:
        raise ValueError(f"{places[0]} has {', '.join(a)}, {places[1]} has {', '.join(b)}: no benchmark is in both")
    differences = {name: _differences(name, a[name], b.get(name) or next(iter(b.values()))) for name in shared}
    comparisons = {name: paired([values]) for name, values in differences.items()}
    for name in AVERAGES:
        group = [values for key, values in differences.items() if key.endswith(GREEDY) == name.endswith(GREEDY)]
        if len(group) > 1:
            comparisons[name] = paired(group)
    say("\n".join(f"{name:<22}a - b = {comparison}" for name, comparison in comparisons.items()))
    if config.out:
        write_json(Path(config.out), comparisons)


# --- passes ----------------------------------------------------------------------------------------------------------


def _passes(config: DictConfig) -> dict[str, DictConfig]:
    """Name -> the config of a benchmark, sampled, and with ``greedy`` once more at temperature 0."""
    benchmarks = config.benchmark
    names = [benchmarks] if benchmarks is None or isinstance(benchmarks, str) else list(benchmarks)
    passes = {}
    for name in names:
        n, label = config.samples.get(name or "") or config.generation.n, name or "problems"
        if config.k and max(config.k) > n:
            raise ConfigError(f"k={list(config.k)} asks for more than the {n} samples a problem of {label}; raise n")
        passes[label] = _with(config, name, {"n": n})
        if config.greedy:
            passes[label + GREEDY] = _with(config, name, {"n": 1, "temperature": 0.0, "top_p": 1.0})
    return passes


def _with(config: DictConfig, benchmark: str | None, generation: Mapping[str, Any]) -> DictConfig:
    merged = OmegaConf.merge(config, {"benchmark": benchmark, "generation": generation})
    assert isinstance(merged, DictConfig)
    return merged


# --- verdicts --------------------------------------------------------------------------------------------------------


def _audit(traces: Sequence[Trace], name: str) -> list[str]:
    """The ids of problems whose gold fails against itself, so that no answer is right; a warning names them."""
    from segrl.grading import grade as judge

    golds = list(dict.fromkeys((trace.problem_id, trace.answer) for trace in traces))
    lacking = [problem for problem, gold in golds if gold is None]
    if lacking:
        raise ValueError(
            f"{len(lacking)} of {len(golds)} problems of {name} have no gold answer to grade against, the first is "
            f"{lacking[0]!r}; fill in a column 'answer', or remove them"
        )
    failing = [id for id, gold in golds if not judge(gold or "", f"\\boxed{{{gold}}}", thinking="none").correct]
    if failing:
        shown = ", ".join(failing[:5]) + (", ..." if len(failing) > 5 else "")
        what = f"{len(failing)} of {len(golds)} golds of {name} fail against themselves"
        print(f"warning: {what}, so no answer can be right there: {shown}", file=sys.stderr)
    return failing


def _graded(traces: Sequence[Trace], thinking: str) -> list[dict[str, Any]]:
    samples = []
    with progress("grade", len(traces)) as advance:
        for trace, verdict in zip(traces, verdicts(traces, thinking), strict=True):
            samples.append(_sample(trace, verdict))
            advance(1, samples[-1]["tokens"] or 0)
    return samples


def _sample(trace: Trace, verdict: Verdict) -> dict[str, Any]:
    columns, level = asdict(verdict), trace.meta.get("level")
    return {
        "id": trace.id,
        "problem_id": trace.problem_id,
        "sample": trace.meta.get("sample", 0),
        **{name: columns[name] for name in ("correct", "status", "pred", "gold")},
        "tokens": trace.meta.get("tokens", trace.tokens if trace.tokenised else None),
        "finish": trace.finish,
        "level": None if level is None else str(level),
    }


def _canonical(pred: str) -> str:
    """The answer in one spelling, for counting votes: cheaper than grading answers against each other."""
    from segrl.grading import answer, latex

    return pred if answer.too_long(pred) else latex.key(latex.tidy(pred))


def _warn_if_silent(traces: Sequence[Trace], name: str) -> None:
    silent = sum(not trace.response.strip() for trace in traces)
    if silent:
        print(f"warning: {silent} of {len(traces)} responses on {name} are empty, and count as wrong", file=sys.stderr)


# --- results ---------------------------------------------------------------------------------------------------------


def _written(folder: Path, name: str, samples: list[dict], ks: Sequence[int] | None, notes: dict[str, Any]) -> Result:
    """The benchmark's result, written to ``folder``."""
    from segrl.evaluation.results import write_result
    from segrl.evaluation.statistics import by_problem, per_problem, summary

    fewest = min(map(len, by_problem(samples).values()))
    values = per_problem(samples, ks or (1, fewest), _canonical)
    numbers = {**summary(samples, values), **notes}
    write_result(folder, name, samples, numbers)
    return numbers, values


def _report(folder: Path, results: Mapping[str, Result]) -> None:
    """Write the averages, the tables and the figure, and print the first table."""
    from segrl.data.files import write_json, write_text
    from segrl.evaluation.results import draw, page, table
    from segrl.evaluation.statistics import average

    summaries = {name: numbers for name, (numbers, _) in results.items()}
    for name in AVERAGES:
        group = [result for key, result in results.items() if key.endswith(GREEDY) == name.endswith(GREEDY)]
        if len(group) > 1:
            summaries[name] = average([numbers for numbers, _ in group], [values for _, values in group])
            write_json(folder / f"results_{name}.json", summaries[name])
    write_text(folder / "results.md", page(summaries))
    try:
        draw(summaries, folder / "results")
    except ImportError as error:
        print(f"no figure: {error}; pip install matplotlib", file=sys.stderr)
    say(table(summaries))
    print(f"-> {folder}")


def _differences(name: str, a: Sequence[dict], b: Sequence[dict]) -> list[float]:
    """For each problem of both: the share of right samples in a, minus that in b."""
    from segrl.evaluation.statistics import by_problem, share_right

    in_a, in_b = by_problem(a), by_problem(b)
    shared = [problem for problem in in_a if problem in in_b]
    if not shared:
        raise ValueError(f"{name}: no problem is in both; a has {next(iter(in_a))!r}, b has {next(iter(in_b))!r}")
    if len(shared) < max(len(in_a), len(in_b)):
        print(f"{name}: a has {len(in_a)} problems, b has {len(in_b)}; compared on the {len(shared)} in both")
    for problem in shared:
        golds = in_a[problem][0]["gold"], in_b[problem][0]["gold"]
        if golds[0] != golds[1]:
            raise ValueError(
                f"{name}: {problem!r} has the gold {golds[0]!r} in a and {golds[1]!r} in b; these are not the same "
                "problems, or one of them was graded before its gold was corrected: grade it again"
            )
    return [share_right(in_a[problem]) - share_right(in_b[problem]) for problem in shared]

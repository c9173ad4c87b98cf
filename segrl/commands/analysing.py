"""The commands `analyze` and `truth`: what importance looks like on traces, and how well measures find it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from segrl.commands.common import attributor, plain, progress, segments_of, tokenised
from segrl.commands.config import ConfigError, needed
from segrl.data.shards import Shards, read_shards
from segrl.types import TokenisedTrace, Trace

GAINS = ("sampled", "probability", "nats")
TRUNCATIONS = ("auto", "planted", "judge", "none")


def analyze(config: DictConfig) -> None:
    """Section 3 and appendix A of the paper on ``traces``: ``out`` gets rows, numbers and figures."""
    from segrl.analysis import figures, summary
    from segrl.analysis.page import sentences
    from segrl.commands.judging import truncated
    from segrl.evaluation.results import write_json

    (out,) = needed(config, "out")
    section = _checked(config)
    rows = _gathered(config, Path(out) / "traces")
    right, wrong = summary.usable(rows)
    cut_short = truncated(config, [*right, *wrong], Path(out) / "judge")
    options = {name: section[name] for name in ("tau", "beta", "taus", "betas", "gain", "held")}
    numbers = summary.summarise(rows, cut_short, **options)
    write_json(Path(out) / "analysis.json", numbers)
    figures.draw_all(numbers, right, Path(out))
    print(sentences(numbers))
    print(f"-> {out}: analysis.json, figure_1 to figure_4 and figure_positions as .png and .svg")


def truth(config: DictConfig) -> None:
    """Every measure against the planted kinds and against exact Shapley values, on toy traces."""
    from segrl.analysis import search
    from segrl.analysis import truth as judging
    from segrl.analysis.figures import save
    from segrl.analysis.page import truth_page
    from segrl.analysis.truth_figure import draw_table
    from segrl.data.files import write_text
    from segrl.evaluation.results import write_json
    from segrl.importance import measure_of

    (out,) = needed(config, "out")
    search.check([config.tau], [config.beta])
    measures = list(config.measures or judging.default_measures())
    for name in measures:
        measure_of(name)
    traces = _planted(config)
    settings = {
        "measures": measures,
        "measure_options": plain(config.measure_options),
        "attribution": plain(config.attribution),
        "tau": config.tau,
        "beta": config.beta,
    }

    def judged(model, tokenizer, trace: TokenisedTrace) -> dict[str, Any]:
        row = judging.judged(model, tokenizer, trace, segments_of(trace, config), **settings)
        return {"id": trace.id, "found": json.dumps(row)}

    stored = _filled(config, Path(out) / "traces", "truth", {**settings, **_cut(config)}, traces, judged)
    rows = [json.loads(row["found"]) for row in stored]
    lines = judging.table(rows)
    write_json(Path(out) / "truth.json", {"settings": settings, "traces": len(rows), "table": lines})
    page = truth_page(lines, len(rows))
    write_text(Path(out) / "truth.md", page)
    save(draw_table, Path(out) / "truth", (8.6, 1.2 + 0.24 * len(lines)), lines)
    print(page)
    print(f"-> {out}: truth.json, truth.md, truth.png and .svg")


# --- settings and traces ---------------------------------------------------------------------------------------------


def _checked(config: DictConfig) -> dict[str, Any]:
    """The section ``analysis`` of the configuration, checked before anything is loaded."""
    from segrl.analysis import search
    from segrl.importance import measure_of

    section = plain(config.analysis)
    if measure_of(config.measure).level == "token":
        raise ConfigError(f"measure={config.measure!r} scores tokens; this compares segments, so give one of segments")
    search.check([section["tau"], *section["taus"]], [section["beta"], *section["betas"]])
    for name, known in (("gain", GAINS), ("truncation", TRUNCATIONS)):
        if section[name] not in known:
            raise ConfigError(f"analysis.{name}={section[name]!r}, expected one of {', '.join(known)}")
    if section["truncation"] == "judge" and not config.judge_path and config.backend == "transformers":
        raise ConfigError("analysis.truncation=judge needs a model to ask: judge_path=..., or a backend with server=")
    return section


def _cut(config: DictConfig) -> dict[str, Any]:
    return {"segmenter": config.segmenter, "segmentation": plain(config.segmentation), **attributor(config)}


def _tokenised(config: DictConfig, sampled: Callable[[int], list[Trace]]) -> list[TokenisedTrace]:
    """The traces of the configuration, else those that ``sampled`` returns, with their tokens."""
    from segrl.data.traces import with_problem_ids
    from segrl.loading import load_tokenizer
    from segrl.tokenization import tokenize_all

    if config.traces:
        return with_problem_ids(tokenised(config))
    tokenizer = load_tokenizer(attributor(config)["path"])
    return tokenize_all(sampled(config.limit), tokenizer, config.template)


def _toy_traces(n: int, seed: int) -> list[Trace]:
    """Right solutions of n problems, and the wrong ones of a mistaken solver for the problems it fails."""
    from segrl import toy

    right, mistaken = toy.sample_traces(n, seed), toy.sample_traces(n, seed, arithmetic=_mistaken)
    wrong = [
        replace(other, id=f"{other.id}#wrong", answer=trace.answer, meta={**other.meta, "problem_id": trace.id})
        for trace, other in zip(right, mistaken, strict=True)
        if trace.problem == other.problem and trace.answer != other.answer
    ]
    return [replace(trace, meta={**trace.meta, "problem_id": trace.id}) for trace in right] + wrong


def _mistaken(op: str, left: int, right: int) -> int:
    """The result of a solver who multiplies by three instead of by seven."""
    from segrl.toy.problems import modulo_ten

    return modulo_ten(op, left, 3 if (op, right) == ("*", 7) else right)


def _planted(config: DictConfig) -> list[TokenisedTrace]:
    """Traces whose truth is known; sampled ones have few enough thoughts for exact Shapley values."""
    from segrl import toy
    from segrl.analysis.shapley import MOST
    from segrl.analysis.truth import check_planted

    def sampled(n: int) -> list[Trace]:
        candidates = toy.sample_traces(4 * n + 16, config.seed)
        return [trace for trace in candidates if len(trace.meta["kinds"]) <= MOST + 1][:n]

    traces = _tokenised(config, sampled)
    for trace in traces:
        check_planted(trace, segments_of(trace, config))
    return traces


# --- rows, shard by shard --------------------------------------------------------------------------------------------


def _gathered(config: DictConfig, folder: Path) -> list[dict[str, Any]]:
    from segrl.analysis.gathering import gathered

    section = config.analysis
    sampling = {name: section[name] for name in ("samples", "temperature", "answer_tokens")}
    settings = {
        "measure": config.measure,
        "measure_options": plain(config.measure_options),
        "gather_options": {**plain(config.attribution), **sampling},
        "sampled": section.gain == "sampled",
        "bleu_tokenize": section.bleu_tokenize,
        "thinking": config.thinking,
    }

    def row_of(model, tokenizer, trace: TokenisedTrace) -> dict[str, Any]:
        row = gathered(model, tokenizer, trace, segments_of(trace, config), **settings)
        return {"id": trace.id, "found": json.dumps(row)}

    traces = _tokenised(config, lambda n: _toy_traces(n, config.seed))
    stored = _filled(config, folder, "analyze", {**settings, **_cut(config)}, traces, row_of)
    return [json.loads(row["found"]) for row in stored]


def _filled(
    config: DictConfig,
    folder: Path,
    what: str,
    settings: Mapping[str, Any],
    traces: Sequence[TokenisedTrace],
    row_of: Callable[[Any, Any, TokenisedTrace], dict[str, Any]],
) -> list[dict[str, Any]]:
    """A row for each trace; the model is loaded only where rows are missing."""
    from segrl.data import write_rows
    from segrl.loading import check_model, load_model

    check_model(**attributor(config))
    shards = Shards(folder, settings, traces, config.shard)
    loaded = None
    with progress(what, shards.items, shards.done) as advance:
        for i, group in shards.todo():
            loaded = loaded or load_model(**attributor(config))
            rows = []
            for trace in group:
                rows.append(row_of(*loaded, trace))
                advance(1, trace.tokens)
            write_rows(shards.part(i), rows)
    return read_shards(folder)

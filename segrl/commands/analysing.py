"""The commands `analyze` and `truth`: what importance looks like on traces, and how well measures find it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from segrl.commands.common import attributor, lasting, made_from, plain, progress, segments_of, tokenised
from segrl.commands.config import ConfigError, needed
from segrl.data.shards import Shards, read_shards
from segrl.types import Segments, TokenisedTrace, Trace

GAINS = ("sampled", "probability", "nats")
TRUNCATIONS = ("auto", "planted", "judge", "none")


def analyze(config: DictConfig) -> None:
    """Section 3 and appendix A of the paper on ``traces``: ``out`` gets rows, numbers and figures."""
    from segrl.analysis import figures, summary
    from segrl.analysis.page import sentences
    from segrl.commands.judging import truncated
    from segrl.data.files import write_json

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
    """Arms against what is known of the thoughts of a world's traces: one table, one picture."""
    from segrl.analysis import agreement
    from segrl.analysis.truth_page import draw_table, truth_page
    from segrl.data.files import write_json, write_text
    from segrl.evaluation.pictures import save

    (out,) = needed(config, "out")
    arms, truths = _arms(config), _truths(config)
    traces = _of_world(config)
    segments = _known_segments(config, traces, truths)
    rows = _judged(config, Path(out), traces, segments, arms, truths)
    reference = agreement.REFERENCE if agreement.REFERENCE in arms else next(iter(arms))
    lines = agreement.table(rows, reference)
    write_json(Path(out) / "truth.json", {"arms": list(arms), "traces": len(rows), "table": lines})
    page = truth_page(_title(config), lines, len(rows), reference)
    write_text(Path(out) / "truth.md", page)
    save(draw_table, Path(out) / "truth", (10.5, 4.6), lines, reference)
    print(page)
    print(f"-> {out}: truth.json, truth.md, truth.png and .svg")


# --- settings and traces ---------------------------------------------------------------------------------------------


def _checked(config: DictConfig) -> dict[str, Any]:
    """The section ``analysis`` of the configuration, checked before anything is loaded."""
    from segrl.analysis import search
    from segrl.importance import check_measure_options, measure_of

    section = plain(config.analysis)
    if measure_of(config.measure).level == "token":
        raise ConfigError(f"measure={config.measure!r} scores tokens; this compares segments, so give one of segments")
    check_measure_options(config.measure, plain(config.measure_options))
    search.check([section["tau"], *section["taus"]], [section["beta"], *section["betas"]])
    for name, known in (("gain", GAINS), ("truncation", TRUNCATIONS)):
        if section[name] not in known:
            raise ConfigError(f"analysis.{name}={section[name]!r}, expected one of {', '.join(known)}")
    if section["truncation"] == "judge" and not config.judge_path and config.backend == "transformers":
        raise ConfigError("analysis.truncation=judge needs a model to ask: judge_path=..., or a backend with server=")
    return section


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
    from segrl.toy.problems import mistaken

    right, others = toy.sample_traces(n, seed), toy.sample_traces(n, seed, arithmetic=mistaken)
    wrong = [
        replace(other, id=f"{other.id}#wrong", answer=trace.answer, meta={**other.meta, "problem_id": trace.id})
        for trace, other in zip(right, others, strict=True)
        if trace.problem == other.problem and trace.answer != other.answer
    ]
    return [replace(trace, meta={**trace.meta, "problem_id": trace.id}) for trace in right] + wrong


# --- a world, its arms and its truths ---------------------------------------------------------------------------------


def _arms(config: DictConfig) -> dict[str, Any]:
    """The arms of the table, by name."""
    from segrl.analysis.arms import CARRIES, MISLED, arm_named

    table = MISLED if _wrong(config) else CARRIES
    options, names = plain(config.measure_options), list(config.measures or table)
    if unread := [name for name in options if name in table or name not in names]:
        raise ConfigError(
            f"measure_options of {', '.join(unread)} would not be read; expected those of measures= that are no arm of "
            "the table, such as {shapley: {...}}: an arm has its own options"
        )
    return {name: arm_named(name, table, options) for name in names}


def _wrong(config: DictConfig) -> bool:
    return bool(config.world_options.get("wrong", False))


def _truths(config: DictConfig) -> list[str]:
    """What of the traces is known: the first wrong step of wrong ones, and of right ones all else."""
    from segrl.worlds import world_named

    known = world_named(config.world).truths
    return ["mistake"] if _wrong(config) else [name for name in known if name != "mistake"]


def _title(config: DictConfig) -> str:
    options = ", ".join(f"{name}={value}" for name, value in config.world_options.items())
    return f"{config.traces or config.world}{options and f' ({options})'}, {config.half} half"


def _of_world(config: DictConfig) -> list[TokenisedTrace]:
    from segrl.worlds import world_traces

    options = plain(config.world_options)
    return _tokenised(config, lambda n: world_traces(config.world, config.half, n, config.seed, **options))


def _known_segments(config: DictConfig, traces: Sequence[TokenisedTrace], truths: Sequence[str]) -> dict[str, Segments]:
    """The segments of each trace by its id; a trace of which one of ``truths`` is not known is refused."""
    from segrl.analysis.truth import check_known
    from segrl.worlds import world_named

    world = world_named(config.world)
    segments = {trace.id: world.cut(trace) for trace in traces}
    for trace in traces:
        check_known(trace, segments[trace.id], truths)
    return segments


def _judged(
    config: DictConfig,
    out: Path,
    traces: Sequence[TokenisedTrace],
    segments: Mapping[str, Segments],
    arms: Mapping[str, Any],
    truths: Sequence[str],
) -> list[dict[str, Any]]:
    """A row for each trace. Truth and scores lie in folders of their own, so that other arms need no new truth."""
    from segrl.analysis.truth import judged, truth_of

    options, about = plain(config.attribution), _about_answers(config)
    settings = {"world": config.world, "options": plain(config.world_options), **made_from(traces, config)}

    def truth_row(model, tokenizer, trace: TokenisedTrace) -> dict[str, Any]:
        reading = {**about, "forwards": config.forwards}
        known = truth_of(model, tokenizer, trace, segments[trace.id], truths, reading)
        return {"id": trace.id, "found": json.dumps(known)}

    def scores_row(model, tokenizer, trace: TokenisedTrace) -> dict[str, Any]:
        row = judged(model, tokenizer, trace, segments[trace.id], arms, options)
        return {"id": trace.id, "found": json.dumps(row)}

    of_truth = {**settings, "attribution": lasting(about), "truths": list(truths), "forwards": config.forwards}
    known = _filled(config, out / "known", "truth", of_truth, traces, truth_row)
    of_arms = {
        **settings,
        "arms": list(arms),
        "attribution": lasting(options),
        "measures": plain(config.measure_options),
    }
    scored = _filled(config, out / "scores", "arms", of_arms, traces, scores_row)
    rows = zip(known, scored, strict=True)
    return [{**json.loads(score["found"]), "truth": json.loads(truth["found"])} for truth, score in rows]


def _about_answers(config: DictConfig) -> dict[str, Any]:
    """Which answer is explained, as short forwards take it."""
    return {name: config.attribution[name] for name in ("target", "template", "batch_tokens")}


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
    cut = {"segmenter": config.segmenter, "segmentation": plain(config.segmentation)}
    lasts = {**settings, "gather_options": lasting(settings["gather_options"]), **cut, **made_from(traces, config)}
    stored = _filled(config, folder, "analyze", lasts, traces, row_of)
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

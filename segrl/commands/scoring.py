"""What `segrl select` selects by: the scores of each trace's segments, by a measure that needs no model, from saved
attributions, or computed with a model, in shards beside ``out``, which know no threshold."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig

from segrl.commands.attributing import run
from segrl.commands.common import attributor, file_hash, lasting, made_from, plain, segments_of, tokenised
from segrl.commands.planning import announce
from segrl.data import records
from segrl.data.records import Row
from segrl.data.shards import Shards, by_id
from segrl.importance import check_measure_options, measure_of, score
from segrl.importance.gathering import NEEDS, ON_PATHS, ONLY_WHILE_TRAINING, gather
from segrl.loading import check_model
from segrl.resolving import resolve
from segrl.types import Evidence, Segments, SegmentScores, TokenisedTrace


class ScoredTrace(NamedTuple):
    trace: TokenisedTrace
    segments: Segments
    scores: SegmentScores | None  # None where there is an error
    error: str | None


def scored_traces(config: DictConfig) -> Iterator[ScoredTrace]:
    """Each trace with its segments and their scores, or the reason why there are none."""
    needs = measure_of(config.measure).needs
    check_measure_options(config.measure, plain(config.measure_options))
    if config.attributions and needs != ("ig",):
        raise ValueError(
            f"attributions={config.attributions} hold integrated gradients, but measure={config.measure!r} reads "
            f"{' and '.join(needs) or 'the text alone'}; leave attributions out, or take measure=contribution"
        )
    if not needs:
        return (_by_measure(Evidence(trace), config) for trace in tokenised(config))
    return _saved(config) if config.attributions else _computed(config)


def check_measure(measure: str, path: str) -> None:
    """Refuse the paper's measure on a path that is not the paper's, and one that exists only while training."""
    if not measure_of(measure).offline:
        raise ValueError(ONLY_WHILE_TRAINING)
    if measure == "ig" and path != "embeddings":
        raise ValueError(
            f"measure=ig is the paper's Eq. 3 and 4 on its path over embeddings, not on path={path}: attribute with "
            "attribution=paper, or take measure=strength, which is Eq. 3 on either path"
        )


def _by_measure(evidence: Evidence, config: DictConfig) -> ScoredTrace:
    segments = segments_of(evidence.trace, config)
    return ScoredTrace(evidence.trace, segments, _scores(evidence, segments, config), None)


def _scores(evidence: Evidence, segments: Segments, config: DictConfig) -> SegmentScores:
    return score(evidence, segments, config.measure, **plain(config.measure_options))


def _of_row(trace: TokenisedTrace, segments: Segments, row: Row) -> ScoredTrace:
    return ScoredTrace(trace, segments, None if row["error"] else records.scores_of(row), row["error"])


def _saved(config: DictConfig) -> Iterator[ScoredTrace]:
    """Each trace, scored by the attributions that `segrl attribute` wrote."""
    rows = by_id(config.attributions, records.ATTRIBUTIONS)
    for trace in tokenised(config):
        row = rows.get(trace.id)
        if row is None:
            raise ValueError(f"{config.attributions} has no attribution of trace {trace.id!r}; attribute these traces")
        records.check_identity(trace, row, "attribution")
        if row["error"]:
            yield ScoredTrace(trace, segments_of(trace, config), None, row["error"])
        else:
            check_measure(config.measure, row["path"])
            yield _by_measure(Evidence(trace, records.attribution_of(row)), config)


# --- computed, shard by shard ----------------------------------------------------------------------------------------


def _computed(config: DictConfig) -> Iterator[ScoredTrace]:
    """Each trace, scored by what the measure reads of the model at ``attributor_path``."""
    check_measure(config.measure, config.attribution.path)
    check_model(**attributor(config))
    traces = tokenised(config)
    segments = [segments_of(trace, config) for trace in traces]
    folder = scores_beside(config.out)
    if not any(folder.glob("part-*")):  # what has begun has said its plan; nothing is claimed before it is known to fit
        lengths = [len(trace.prompt_ids) + trace.tokens for trace in traces]
        announce("select", config, lengths=lengths, thoughts=[int(cut.thought_S.sum()) for cut in segments])
    shards = Shards(folder, _settings(traces, config), traces, config.shard)
    rows = run(scored_rows, shards, attributor(config), config, config.executor, config.workers, "scored")
    for trace, trace_segments, row in zip(traces, segments, rows, strict=True):
        records.check_identity(trace, row, "score")
        yield _of_row(trace, trace_segments, row)


def scores_beside(out: str) -> Path:
    """The folder of the shards from which the selections ``out`` are made."""
    return Path(out).with_suffix(".scores")


def _settings(traces: Sequence[TokenisedTrace], config: DictConfig) -> dict[str, Any]:
    """What the scores follow from."""
    sections = ("measure_options", "segmentation", "attribution", "evidence")
    options = {f"{name}.{key}": value for name in sections for key, value in lasting(plain(config[name])).items()}
    functions = {"measure": config.measure, "segmenter": config.segmenter}
    files = {f"{key} {name}": _source_hash(name) for key, name in functions.items() if ":" in name}
    return {**made_from(traces, config), **functions, **options, **files}


def _source_hash(function: str) -> str:
    """A hash of the file that defines ``package.module:function``, which may be edited between two starts."""
    resolved = inspect.unwrap(resolve(function))
    try:
        return file_hash(inspect.getfile(resolved))
    except TypeError:  # an object that is called, whose file is its class's
        return file_hash(inspect.getfile(type(resolved)))


def gather_options(config: DictConfig, needs: Sequence[str]) -> dict[str, Any]:
    """The options of ``gather`` in the sections attribution and evidence; the output is that of what is needed."""
    on_path = any(NEEDS[need] in ON_PATHS for need in needs)
    output = (config.attribution if on_path else config.evidence).output
    return {**plain(config.attribution), **plain(config.evidence), "output": output}


def scored_rows(model, tokenizer, group: Sequence[TokenisedTrace], config: DictConfig) -> list[Row]:
    """One row a trace, each read by itself; a trace that cannot be scored gives its reason."""
    needs = measure_of(config.measure).needs
    options = gather_options(config, needs)
    rows = []
    for trace in group:
        segments = segments_of(trace, config)
        try:
            [evidence] = gather(model, [trace], tokenizer, needs, segments=[segments], **options)
            rows.append(records.scores_row(trace, segments, _scores(evidence, segments, config)))
        except ValueError as error:
            rows.append(records.failed_scores_row(trace, segments, str(error)))
    return rows

"""The commands `segment`, `attribute`, `calibrate` and `select`: traces -> segments, attributions, selections."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from omegaconf import DictConfig

from segrl.commands.common import attributor, plain, progress, say, segments_of, tokenised
from segrl.commands.config import needed
from segrl.commands.planning import announce
from segrl.data import records
from segrl.data.shards import Shards, by_id, read_shards
from segrl.types import Evidence, Segments, SegmentScores, Selection, TokenisedTrace


def segment(config: DictConfig) -> None:
    """Write each trace's boundaries."""
    from segrl.data import write_rows

    _, out = needed(config, "traces", "out")
    rows = [records.segments_row(trace, segments_of(trace, config)) for trace in tokenised(config)]
    write_rows(out, rows)
    segments = sum(len(row["kinds"]) for row in rows)
    print(f"{len(rows)} traces, {segments} segments, {segments / len(rows):.1f} a trace -> {out}")


def attribute(config: DictConfig) -> None:
    """Write each trace's token scores, shard by shard; a trace that fails is written with its reason."""
    from segrl.commands.attributing import run
    from segrl.loading import check_model

    path, out = needed(config, "traces", "out")
    model, options = attributor(config), plain(config.attribution)
    check_model(**model)
    settings = {"traces": path, "path": model["path"], "dtype": model["dtype"], **options}
    traces = tokenised(config)
    announce("attribute", config, lengths=[len(trace.prompt_ids) + trace.tokens for trace in traces])
    shards = Shards(out, settings, traces, config.shard)
    with progress("attribute", shards.items, shards.done) as advance:
        run(shards, model, options, config.executor, config.workers, advance)
    rows = read_shards(out)
    failed = [row for row in rows if row["error"]]
    if len(failed) == len(rows):
        shards.clear()
        raise ValueError(f"not one of {len(rows)} traces could be attributed; the first: {failed[0]['error']}")
    flags = Counter(flag for row in rows for flag in row["flags"])
    evaluations = sum(row["evaluations"] or 0 for row in rows)
    say(f"{len(rows)} traces, {evaluations} evaluations, {len(failed)} failed, flags {dict(flags)} -> {out}")
    for row in failed[:5]:
        print(f"  {row['id']}: {row['error']}")


def calibrate(config: DictConfig) -> None:
    """Fit few nodes to where this model's answers change; ``attribution.quadrature=<out>`` then uses them."""
    from segrl.attribution.calibration import calibrate as fit
    from segrl.attribution.engine import EXPLAINED
    from segrl.data.files import write_json
    from segrl.loading import load_model

    _, out = needed(config, "traces", "out")
    traces = tokenised(config)
    model, tokenizer = load_model(**attributor(config))
    options = {name: config.attribution[name] for name in (*EXPLAINED, "batch_tokens")}
    calibration = fit(model, traces, tokenizer, grid=config.grid, **options)
    write_json(out, calibration)
    print(f"calibrated on {len(traces)} traces with {config.grid} nodes -> {out}")
    for count, rule in calibration["rules"].items():
        print(f"  {count} nodes at {', '.join(f'{alpha:.3f}' for alpha in rule['alphas'])}")


def select(config: DictConfig) -> None:
    """Write each trace's segments, scores and which of them to keep; for a token measure each token's."""
    from segrl.data import save_traces, write_rows
    from segrl.data.files import write_text
    from segrl.sft.pruning import prune

    _, out = needed(config, "traces", "out")
    selected = [_selected(evidence, segments, config) for evidence, segments in _evidence(config)]
    if not any(float(scores.share_S.sum()) for _, _, scores, _ in selected):
        raise ValueError(
            f"the measure {config.measure!r} finds no segment above zero in any of {len(selected)} traces: nothing to "
            "select by. With confidence_gain that is a model that never gets the answer right"
        )
    pruned = [prune(trace, segments, keep) for trace, segments, _, keep in selected] if config.pruned else []
    failed = list(_failed(config))
    rows = [records.selection_row(*columns) for columns in selected]
    write_rows(out, rows + [records.failed_selection_row(*columns) for columns in failed])
    write_text(records.made_by(out), how_selected(config))
    if config.pruned:
        save_traces(pruned, config.pruned)
    say(f"{_summary(selected, len(failed))} -> {out}")


def _summary(selected: Sequence[Selected], failed: int) -> str:
    """How many traces there are, how many of their tokens are kept, and how many traces have nothing to keep."""
    from segrl.selection import kept_tokens

    kept = sum(int(kept_tokens(selection, segments).sum()) for _, segments, _, selection in selected)
    total = sum(trace.tokens for trace, _, _, _ in selected)
    flat = sum(float(scores.share_S.sum()) == 0 for _, _, scores, _ in selected)
    nothing = f", {flat} traces without a segment above zero" if flat else ""
    nothing += f", nothing of {failed} traces whose attribution failed" if failed else ""
    return f"{len(selected)} traces, {kept} of {total} tokens kept ({100 * kept / total:.0f}%){nothing}"


def how_selected(config: DictConfig) -> str:
    """The note beside the selections, as JSON: the measure, the thresholds, the segmenter, the attributor and a hash of
    the traces.
    """
    from segrl.data import load_traces

    how = {"measure": config.measure, **plain(config.measure_options), **plain(config.selection)}
    how |= {"segmenter": config.segmenter, "segmentation": plain(config.segmentation)}
    traces = load_traces(config.traces, limit=config.limit, require_response=True)
    model, digest = attributor(config)["path"], records.traces_hash(traces)
    source = {"attributor": model, "template": config.template, "traces": digest}
    return json.dumps({**how, **source}, indent=1) + "\n"


class Selected(NamedTuple):
    trace: TokenisedTrace
    segments: Segments
    scores: SegmentScores
    selection: Selection


def _selected(evidence: Evidence, segments: Segments, config: DictConfig) -> Selected:
    from segrl.importance import score
    from segrl.selection import select as choose

    scores = score(evidence, segments, config.measure, **plain(config.measure_options))
    return Selected(evidence.trace, segments, scores, choose(scores, **plain(config.selection)))


def _evidence(config: DictConfig) -> Iterator[tuple[Evidence, Segments]]:
    """Each trace with what the measure reads of it, from ``attributions`` or computed here, and with its segments."""
    from segrl.importance import measure_of

    needs = measure_of(config.measure).needs
    gathered: Iterator[Evidence]
    if not needs:
        gathered = (Evidence(trace) for trace in tokenised(config))
    elif _reads_saved(config):
        gathered = _saved_evidence(config)
    else:
        gathered = _computed_evidence(config, needs)
    return ((evidence, evidence.segments or segments_of(evidence.trace, config)) for evidence in gathered)


def _reads_saved(config: DictConfig) -> bool:
    from segrl.importance import measure_of

    return bool(config.attributions) and measure_of(config.measure).needs == ("ig",)


def check_measure(measure: str, path: str) -> None:
    """Refuse the paper's measure on a path that is not the paper's, and one that exists only while training."""
    from segrl.importance import measure_of
    from segrl.importance.gathering import ONLY_WHILE_TRAINING

    if not measure_of(measure).offline:
        raise ValueError(ONLY_WHILE_TRAINING)
    if measure == "ig" and path != "embeddings":
        raise ValueError(
            f"measure=ig is the paper's Eq. 3 and 4 on its path over embeddings, not on path={path}: attribute with "
            "attribution=paper, or take measure=strength, which is Eq. 3 on either path"
        )


def _failed(config: DictConfig) -> Iterator[tuple[TokenisedTrace, Segments, str]]:
    """The traces whose attribution failed, with their segments and the reason."""
    rows = by_id(config.attributions, ("id", "error")) if _reads_saved(config) else {}
    for trace in tokenised(config) if any(row["error"] for row in rows.values()) else ():
        if rows[trace.id]["error"]:
            yield trace, segments_of(trace, config), rows[trace.id]["error"]


def _saved_evidence(config: DictConfig) -> Iterator[Evidence]:
    rows = by_id(config.attributions, records.ATTRIBUTIONS)
    for trace in tokenised(config):
        row = rows.get(trace.id)
        if row is None:
            raise ValueError(f"{config.attributions} has no attribution of trace {trace.id!r}; attribute these traces")
        if not row["error"]:  # `segrl attribute` has named it
            records.check_identity(trace, row, "attribution")
            check_measure(config.measure, row["path"])
            yield Evidence(trace, records.attribution_of(row))


def _computed_evidence(config: DictConfig, needs: tuple[str, ...]) -> Iterator[Evidence]:
    from segrl.importance.gathering import NEEDS, ON_PATHS, gather
    from segrl.loading import load_model

    check_measure(config.measure, config.attribution.path)
    traces = tokenised(config)
    model, tokenizer = load_model(**attributor(config))
    on_path = any(NEEDS[need] in ON_PATHS for need in needs)
    output = (config.attribution if on_path else config.evidence).output
    options = {**plain(config.attribution), **plain(config.evidence), "output": output}
    with progress("gather", len(traces)) as advance:
        for trace in traces:
            yield from gather(model, [trace], tokenizer, needs, segments=[segments_of(trace, config)], **options)
            advance(1, trace.tokens)

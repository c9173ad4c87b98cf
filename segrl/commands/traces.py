"""The commands `segment`, `attribute`, `calibrate` and `select`: traces -> segments, attributions, selections."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from omegaconf import DictConfig

from segrl.commands.common import attributor, counted, lasting, made_from, plain, say, segments_of, tokenised
from segrl.commands.config import needed
from segrl.commands.planning import announce
from segrl.data import records
from segrl.data.shards import Shards, by_id
from segrl.importance import measure_of
from segrl.types import Segments, SegmentScores, Selection, TokenisedTrace, Trace


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
    from segrl.commands.attributing import attributed_rows, run
    from segrl.loading import check_model

    _, out = needed(config, "traces", "out")
    model, options = attributor(config), plain(config.attribution)
    check_model(**model)
    traces = tokenised(config)
    settings = {**made_from(traces, config), **lasting(options)}
    announce("attribute", config, lengths=[len(trace.prompt_ids) + trace.tokens for trace in traces])
    shards = Shards(out, settings, traces, config.shard)
    rows = run(attributed_rows, shards, model, options, config.executor, config.workers, "attributed")
    failed = [row for row in rows if row["error"]]
    flags = Counter(flag for row in rows for flag in row["flags"])
    evaluations = sum(row["evaluations"] or 0 for row in rows)
    flagged = f", flagged {counted(flags)}" if flags else ""
    say(f"{len(rows)} traces, {evaluations} evaluations, {len(failed)} failed{flagged} -> {out}")
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
        print(f"  {count} node{'' if count == '1' else 's'} at {', '.join(f'{alpha:.3f}' for alpha in rule['alphas'])}")


def select(config: DictConfig) -> None:
    """Write each trace's segments, scores and which of them to keep; for a token measure each token's."""
    from segrl.commands.scoring import scored_traces
    from segrl.data import save_traces, write_rows
    from segrl.data.files import ending, write_text
    from segrl.selection import check_shares
    from segrl.selection import select as choose
    from segrl.sft.pruning import prune

    _, out = needed(config, "traces", "out")
    ending(out)
    check_shares(config.selection, "selection.")
    selected, failed, traces = [], [], []
    for trace, segments, scores, error in scored_traces(config):
        traces.append(trace)
        if scores is not None:
            selected.append(Selected(trace, segments, scores, choose(scores, **plain(config.selection))))
        else:
            failed.append((trace, segments, str(error)))
    if failed and not selected:
        raise ValueError(f"not one of {len(failed)} traces has scores to select by; the first: {failed[0][2]}")
    if not any(float(scores.share_S.sum()) for _, _, scores, _ in selected):
        raise ValueError(
            f"the measure {config.measure!r} finds no segment above zero in any of {len(selected)} traces: nothing to "
            "select by. With confidence_gain that is a model that never gets the answer right"
        )
    pruned = [prune(trace, segments, keep) for trace, segments, _, keep in selected] if config.pruned else []
    rows = [records.selection_row(*columns) for columns in selected]
    write_rows(out, rows + [records.failed_selection_row(*columns) for columns in failed])
    write_text(records.made_by(out), how_selected(config, traces))
    if config.pruned:
        save_traces(pruned, config.pruned)
    say(f"{_summary(selected, len(failed))} -> {out}")
    for trace, _, error in failed[:5]:
        print(f"  {trace.id}: {error}")


class Selected(NamedTuple):
    trace: TokenisedTrace
    segments: Segments
    scores: SegmentScores
    selection: Selection


def _summary(selected: Sequence[Selected], failed: int) -> str:
    """How many traces there are, how many of their tokens are kept, and how many traces have nothing to keep."""
    from segrl.selection import kept_tokens

    kept = sum(int(kept_tokens(selection, segments).sum()) for _, segments, _, selection in selected)
    total = sum(trace.tokens for trace, _, _, _ in selected)
    flat = sum(float(scores.share_S.sum()) == 0 for _, _, scores, _ in selected)
    nothing = f", {flat} traces without a segment above zero" if flat else ""
    nothing += f", {failed} traces left out that could not be scored" if failed else ""
    return f"{len(selected)} traces, {kept} of {total} tokens kept ({100 * kept / total:.0f}%){nothing}"


def how_selected(config: DictConfig, traces: Sequence[Trace]) -> str:
    """The note beside the selections, as JSON: the measure, the thresholds, the segmenter, the attributor, the answer
    that is explained where that is not the gold one, and a hash of the traces.
    """
    how = {"measure": config.measure, **plain(config.measure_options), **plain(config.selection)}
    how |= {"segmenter": config.segmenter, "segmentation": plain(config.segmentation)}
    model, digest = attributor(config)["path"], records.traces_hash(traces)
    source = {"attributor": model, "template": config.template, "traces": digest}
    target = _target(config)
    source |= {} if target == "gold" else {"target": target}
    return json.dumps({**how, **source}, indent=1) + "\n"


def _target(config: DictConfig) -> str:
    """The answer that the scores explain."""
    needs = measure_of(config.measure).needs
    if needs and config.attributions:
        rows = by_id(config.attributions, records.ATTRIBUTIONS).values()
        return next((row["target"] for row in rows if row["target"]), "gold")
    return "contrast" if needs == ("contrast",) else config.attribution.target if needs else "gold"

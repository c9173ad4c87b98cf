"""The results of an analysis in words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from segrl.evaluation.statistics import Estimate

NONE = "–"


def sentences(summary: Mapping[str, Any]) -> str:
    """The paper's findings with the numbers of this analysis."""
    settings, search, kept = summary["settings"], summary["search"], summary["kept"]
    unit, length = settings["gain"], summary["consistency_and_length"]
    lines = [
        *_about_traces(summary),
        f"gain of the right answer ({unit}): "
        + _by_class(summary["gain"][unit], ("{:+.2f}" if unit == "nats" else "{:+.3f}").format),
        "log-perplexity: " + _by_class(summary["language"]["log_perplexity"], "{:.2f}".format),
        "entropy: " + _by_class(summary["language"]["entropy"], "{:.2f}".format),
        "BLEU over 0.8: " + _by_class(summary["repetitive"], "{:.1%}".format),
    ]
    if summary["truncated"]:
        lines.append("truncated: " + _by_class(summary["truncated"], "{:.1%}".format) + " (paper: 26% and 49%)")
    for name, position in summary["position"].items():
        share = NONE if position["share"] is None else f"{position['share'].mean:.0%}"
        lines.append(f"{name} {position['side']} the decision: {share} (paper: {position['paper']:.0%})")
    shares = f"{kept['segments']:.0%} of segments, {kept['tokens_kept']:.0%} of tokens"
    lines += [
        f"important: {shares} (paper, tau=0.7: 33% and 45%)",
        f"best tau at beta={search['beta']:g}: {search['best_tau']} (paper: 0.7)",
        f"consistency against length in tokens: Spearman {NONE if length is None else format(length, '+.2f')}",
    ]
    return "\n".join(lines)


def _about_traces(summary: Mapping[str, Any]) -> list[str]:
    traces, settings = summary["traces"], summary["settings"]
    thresholds = f"tau={settings['tau']:g}, beta={settings['beta']:g}"
    lines = [f"{traces['right']} right and {traces['wrong']} wrong traces, {thresholds}"]
    if traces["unread"]:
        lines.append(f"{traces['unread']} traces could not be read: {traces['first_unread']}")
    if traces["without_decision"]:
        lines.append(f"{traces['without_decision']} right traces never make the right answer likely")
    for side, redundancy in summary["redundancy"].items():
        held = f"{100 * redundancy['held']:.0f}% of the attribution"
        lines.append(f"{side} traces: {redundancy['segments']} of segments hold {held} (paper: 30 to 40%)")
    if not traces["wrong"]:
        lines.append("no trace is wrong, so nothing is compared with wrong ones; `segrl harvest` keeps one of each")
    return lines


def _by_class(estimates: Mapping[str, Estimate | None], form: Callable[[float], str]) -> str:
    return ", ".join(
        f"{name} {NONE if estimate is None else form(estimate.mean)}" for name, estimate in estimates.items()
    )

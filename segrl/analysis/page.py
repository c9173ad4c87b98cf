"""The results of an analysis in words, and the truth table in markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from segrl.evaluation.results import markdown
from segrl.evaluation.statistics import Estimate

NONE = "–"
COLUMNS = {
    "planted_auroc": "AUROC, planted",
    "planted_ap": "AP, planted",
    "shapley_auroc": "AUROC, Shapley",
    "shapley_spearman": "Spearman, Shapley",
}
ABOVE = {"planted_auroc": "above ig, planted", "shapley_auroc": "above ig, Shapley"}


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


def truth_page(table: Mapping[str, Any], traces: int) -> str:
    """The truth table, and which kinds each measure ranks high, as markdown."""
    rows = {
        name: {
            **{title: _interval(line[what]) for what, title in COLUMNS.items()},
            **{title: None if name == "ig" else _interval(line["above_ig"][what]) for what, title in ABOVE.items()},
            "evaluations": f"{line['evaluations']:.1f}",
        }
        for name, line in table.items()
    }
    kinds = sorted({kind for line in table.values() for kind in line["by_kind"]})
    ranks = {
        name: {kind: f"{share.mean:.2f}" for kind, share in line["by_kind"].items()} for name, line in table.items()
    }
    return f"""## Measures against two truths

{traces} toy traces; means over traces with 95% intervals. Planted: needed against redundant thoughts. Shapley: the
thoughts above their trace's median by the model's own dependence. Restated answers are left out. Above ig: how much
better its AUROC is on the same traces. An evaluation is a forward over the trace, with its backward where there is one.

{markdown("measure", [*COLUMNS.values(), *ABOVE.values(), "evaluations"], rows)}

## Which kinds they rank high

The share of its trace's other thoughts that a thought outranks; 0.5 is chance.

{markdown("measure", kinds, ranks)}
"""


def _interval(estimate: Estimate | None) -> str | None:
    return None if estimate is None else f"{estimate.mean:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"

"""What an analysis says in words and tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from segrl.evaluation.results import markdown

NONE = "–"
COLUMNS = {
    "planted_auroc": "AUROC, planted",
    "planted_ap": "AP, planted",
    "shapley_auroc": "AUROC, Shapley",
    "shapley_spearman": "Spearman, Shapley",
}
ABOVE = {"planted_auroc": "above ig, planted", "shapley_auroc": "above ig, Shapley"}


def sentences(found: Mapping[str, Any]) -> str:
    """The paper's findings with the numbers of this analysis."""
    settings, search, kept = found["settings"], found["search"], found["kept"]
    unit, length = settings["gain"], found["consistency_and_length"]
    lines = [
        *_about_traces(found),
        f"gain of the right answer ({unit}): "
        + _by_class(found["gain"][unit], ("{:+.2f}" if unit == "nats" else "{:+.3f}").format),
        "log-perplexity: " + _by_class(found["language"]["log_perplexity"], "{:.2f}".format),
        "entropy: " + _by_class(found["language"]["entropy"], "{:.2f}".format),
        "BLEU over 0.8: " + _by_class(found["repetitive"], "{:.1%}".format),
    ]
    if found["truncated"]:
        lines.append("truncated: " + _by_class(found["truncated"], "{:.1%}".format) + " (paper: 26% and 49%)")
    for name, one in found["position"].items():
        share = NONE if one["share"] is None else f"{one['share'].mean:.0%}"
        lines.append(f"{name} {one['side']} the decision: {share} (paper: {one['paper']:.0%})")
    shares = f"{kept['segments']:.0%} of segments, {kept['tokens_kept']:.0%} of tokens"
    lines += [
        f"important: {shares} (paper, tau=0.7: 33% and 45%)",
        f"best tau at beta={search['beta']:g}: {search['best_tau']} (paper: 0.7)",
        f"consistency against length in tokens: Spearman {NONE if length is None else format(length, '+.2f')}",
    ]
    return "\n".join(lines)


def _about_traces(found: Mapping[str, Any]) -> list[str]:
    traces, settings = found["traces"], found["settings"]
    thresholds = f"tau={settings['tau']:g}, beta={settings['beta']:g}"
    lines = [f"{traces['right']} right and {traces['wrong']} wrong traces, {thresholds}"]
    if traces["unread"]:
        lines.append(f"{traces['unread']} traces could not be read: {traces['first_unread']}")
    if traces["without_decision"]:
        lines.append(f"{traces['without_decision']} right traces never make the right answer likely")
    for side, one in found["redundancy"].items():
        held = f"{100 * one['held']:.0f}% of the attribution"
        lines.append(f"{side} traces: {one['segments']} of segments hold {held} (paper: 30 to 40%)")
    if not traces["wrong"]:
        lines.append("no trace is wrong, so nothing is compared with wrong ones; `segrl harvest` keeps one of each")
    return lines


def _by_class(found: Mapping[str, Any], form: Callable[[float], str]) -> str:
    return ", ".join(f"{name} {NONE if one is None else form(one.mean)}" for name, one in found.items())


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
    ranks = {name: {k: f"{one.mean:.2f}" for k, one in line["by_kind"].items()} for name, line in table.items()}
    return f"""## Measures against two truths

{traces} toy traces; means over traces with 95% intervals. Planted: needed against redundant thoughts. Shapley: the
thoughts above their trace's median by the model's own dependence. Restated answers are left out. Above ig: how much
better its AUROC is on the same traces. An evaluation is a forward over the trace, with its backward where there is one.

{markdown("measure", [*COLUMNS.values(), *ABOVE.values(), "evaluations"], rows)}

## Which kinds they rank high

The share of its trace's other thoughts that a thought outranks; 0.5 is chance.

{markdown("measure", kinds, ranks)}
"""


def _interval(one) -> str | None:
    return None if one is None else f"{one.mean:.2f} [{one.low:.2f}, {one.high:.2f}]"

"""Every table and picture of docs/truth.md, from one command that goes on where it was stopped.

    python scripts/truth_tables.py OUT --model runs/smollm2                 all of them, on test halves
    python scripts/truth_tables.py OUT --only toy toy_last --half dev       two of them, on the halves to choose on
    python scripts/truth_tables.py OUT --only lines --model runs/smollm2 --limit 2

A table is `segrl analyze truth` into OUT/<name>-<half>; one runs after the other, and OUT/minutes.jsonl gets a line for
each with the minutes it took. The toy tables are of the bundled model; --model is the folder of a pretrained one, as
scripts/fetch_smollm2.py writes it. Beside segrl's arms stand those of peers.py.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from peers import peers

from segrl import toy
from segrl.analysis.arms import CARRIES, GATES, MISLED, PAPER, Arm, Measured
from segrl.attribution import attribute
from segrl.attribution.target import explain
from segrl.commands.cli import main as segrl
from segrl.data.traces import load_traces, save_traces
from segrl.evaluation.results import markdown
from segrl.loading import load_tokenizer
from segrl.tokenization import tokenize_all
from segrl.toy.kinds import kinds_of
from segrl.toy.world import CLASSES
from segrl.types import Trace
from segrl.worlds import world_named, world_traces
from segrl.worlds.halves import world_file
from segrl.worlds.real import PATH

# Arms for a pretrained model: with a fixed number of nodes, so that a row says what it costs.
FIXED: dict[str, Arm] = {
    f"{name}, {nodes} nodes": Measured(measure, gathered={**PAPER, "nodes": nodes, "tolerance": None})
    for nodes in (12, 256)
    for name, measure in (("ig", "ig"), ("embeddings, signed", "contribution"))
}
ATTRIBUTIONS = (
    *("ig, 12 nodes", "embeddings, signed, 12 nodes", "values, 1 at half", "values, 1 at input"),
    *("values, 1 at input, logp", "values, 4 from half"),
)
SHORT = (
    *(*ATTRIBUTIONS, "position", "length", "random", "surprise", "alone", "pmi", "leave_one_out", "first_and_last"),
    *("shapley, 16 forwards", "attention", "grad_input", "grail", "FlashTrace", "FlashTrace, through the thinking"),
)
HUNDREDS = ("ig, 256 nodes", "embeddings, signed, 256 nodes")
EXPENSIVE = (
    *HUNDREDS,
    *("permuted", "ig, response", "ig, hidden answer", "embeddings, signed, 32 log-odds", "values, 32", "perplexity"),
    *("captum, 50", "captum, 50, signed", "shapley, 64 forwards"),
)
MARKING = ("contrast, three readings", "contrast, three readings, dealt")
EXPENSIVE_ON_MISTAKES = (
    *("ig", "contrast, embeddings, 12"),
    *("the paper's loop, 50, its own answer", "the paper's loop, 50, signed, its own answer"),
)

# A model that is not trained on the world's problems reaches a right answer from no prefix, after minutes of sampling.
ON_TEXT = (*EXPENSIVE_ON_MISTAKES, "continuations")


@dataclass(frozen=True)
class Table:
    """A world, how many of its traces, and the arms."""

    world: str
    limit: int
    options: Mapping[str, Any] = field(default_factory=dict)  # of the world
    pretrained: bool = False  # on --model, not on the bundled one
    arms: Sequence[str] | None = None  # None: every one
    without: Sequence[str] = ()  # of all arms, these are left out
    attribution: Mapping[str, Any] = field(default_factory=dict)  # for arms that do not set it themselves

    def names(self) -> list[str]:
        """The arms that there are, FlashTrace's where it is installed."""
        known = MISLED if self.options.get("wrong") else CARRIES
        return [name for name in self.arms or known if name in known and name not in self.without]


TABLES = {
    "toy": Table("toy", 200, {"most": 10}, without=HUNDREDS),
    "toy_last": Table("toy", 100, {"ask": "last", "most": 10}, without=EXPENSIVE),
    "toy_mistakes": Table("toy", 60, {"ask": "all", "wrong": True}),
    "toy_last_mistakes": Table("toy", 60, {"ask": "last", "wrong": True}),
    "toy_marked": Table("toy", 200, {"ask": "all", "wrong": True}, arms=MARKING),
    "toy_last_marked": Table("toy", 200, {"ask": "last", "wrong": True}, arms=MARKING),
    "worded_marked": Table("worded", 40, {"wrong": True}, pretrained=True, arms=MARKING),
    "lines": Table("lines", 60, pretrained=True, arms=SHORT),
    "lines_hidden": Table("lines", 60, pretrained=True, arms=ATTRIBUTIONS, attribution={"hide_answer": True}),
    "lines_256": Table("lines", 12, pretrained=True, arms=(*HUNDREDS, "pmi")),
    "worded": Table("worded", 60, pretrained=True, arms=SHORT),
    "worded_mistakes": Table("worded", 60, {"wrong": True}, pretrained=True, without=ON_TEXT),
}
FREE = ("position", "length", "random", "surprise", "entropy")
OF_THE_ANSWER = ("values, 1 at half", "alone", "pmi", "leave_one_out", "first_and_last", "grail", "oar", "attention")
# Responses of the bundled model itself: the wrong ones to problems that it also solves, as they are in a group of GRPO,
# or one right response to each.
ROLLOUTS = {
    "toy_rollouts": ({"ask": "all"}, Table("toy", 200, {"wrong": True}, without=EXPENSIVE_ON_MISTAKES)),
    "toy_last_rollouts": ({"ask": "last"}, Table("toy", 200, {"wrong": True}, without=EXPENSIVE_ON_MISTAKES)),
    "toy_last_right": (
        {"ask": "last"},
        Table("toy", 200, arms=("support", "support, 4 forwards", "perplexity", *OF_THE_ANSWER, *FREE)),
    ),
}
PROBLEMS, PROBLEM_SEEDS = 400, {"dev": 300_000, "test": 300_001}
DRAWN = {"n": 8, "temperature": 1.0, "top_p": 1.0, "max_tokens": 256}
# The real traces have no table of their own: the chosen measure scores those that fit the model, and a few of them are
# compared with sampled Shapley values.
REAL = "real"
CHOSEN = ("contribution", {**GATES, "nodes": 1})
HELD = Table("real", 3, pretrained=True, arms=SHORT)
FORWARDS = 256


class Step(NamedTuple):
    """A command of segrl, and the name that its minutes stand under."""

    name: str
    arguments: list[str]


# How nearly complete attributions of toy traces are, along both paths.
GAPS = "gaps"
GAP_TRACES, GAP_TOLERANCE = 30, 0.05
NAMES = (*TABLES, *ROLLOUTS, GAPS, REAL)


# --- what is to run --------------------------------------------------------------------------------------------------


def truth(name: str, table: Table, out: Path, model: str | None, **keys: Any) -> Step:
    """`segrl analyze truth` for a table; ``keys`` replace the table's."""
    keys = {
        "world": table.world,
        "world_options": table.options,
        "limit": table.limit,
        "measures": table.names(),
        **({"attributor_path": model} if table.pretrained else {}),
        **{f"attribution.{key}": value for key, value in table.attribution.items()},
        **keys,
        "out": str(out / name),
    }
    return Step(name, ["analyze", "truth", *typed(keys)])


def rollouts(name: str, out: Path, half: str, limit: int | None) -> Iterator[Step]:
    """The steps that sample responses to problems, and the table of those whose truth is seen."""
    options, table = ROLLOUTS[name]
    folder, wanted = out / f"{name}-{half}", limit or table.limit
    problems, sampled = folder / "problems.jsonl", folder / "sampled"
    save_traces(toy.sample_problems(min(PROBLEMS, 4 * wanted), PROBLEM_SEEDS[half], **options), problems)
    given = {"data_path": str(problems), **{f"generation.{key}": value for key, value in DRAWN.items()}}
    yield Step(f"{name}: sampled", ["harvest", *typed({**given, "out": str(sampled)})])
    planted = _planted(load_traces(sampled / "traces.parquet"), table.options.get("wrong", False))[:wanted]
    save_traces(planted, folder / "planted.jsonl")
    print(f"{len(planted)} responses whose thoughts show what the table asks for")
    keys = {"traces": str(folder / "planted.jsonl"), "half": half, "limit": len(planted)}
    yield truth(f"{name}-{half}/truth", table, out, None, **keys)


def _planted(traces: Sequence[Trace], wrong: bool) -> list[Trace]:
    """Each thought with the kind that its text shows: of one right response to each problem, with needed and redundant
    thoughts; or of the wrong ones, with a wrong step, to problems that have a right one."""
    tokenizer, world = load_tokenizer(str(toy.MODEL_PATH)), world_named("toy")
    right = {trace.problem_id: trace for trace in traces if trace.meta["correct"]}
    looked_at = [trace for trace in traces if not trace.meta["correct"] and trace.problem_id in right]
    looked_at = looked_at if wrong else list(right.values())
    planted = []
    for trace, tokenised in zip(looked_at, tokenize_all(looked_at, tokenizer), strict=True):
        kinds = kinds_of(trace.problem, tokenised, world.cut(tokenised))
        both = {"needed", "redundant"} <= {CLASSES[kind] for kind in kinds}
        if ("wrong" in kinds and len(kinds) > 3) if wrong else both:
            planted.append(replace(trace, meta={**trace.meta, "kinds": list(kinds)}))
    return planted


def gaps(out: Path, half: str, limit: int | None) -> None:
    """Write the median and the 90th percentile of the completeness gap: of 12 nodes, and refined."""
    model, tokenizer = toy.load_model()
    traces = tokenize_all(world_traces("toy", half, limit or GAP_TRACES, 0), tokenizer)
    lines = {}
    for path in ("embeddings", "values"):
        for output in ("logp", "log_odds"):
            for name, tolerance in (("12 nodes", None), (f"refined to {GAP_TOLERANCE}", GAP_TOLERANCE)):
                options = {"path": path, "output": output, "nodes": 12, "tolerance": tolerance}
                attributions = [a for trace in traces for a in attribute(model, [trace], tokenizer, **options)]
                values = [attribution.gap for attribution in attributions if "flat" not in attribution.flags]
                lines[f"{path}, {output}, {name}"] = {
                    "median gap": f"{np.median(values):.3f}",
                    "p90": f"{np.quantile(values, 0.9):.3f}",
                    "evaluations": f"{np.mean([attribution.evaluations for attribution in attributions]):.1f}",
                    "traces": len(values),
                }
    page = markdown("path", list(next(iter(lines.values()))), lines)
    (out / f"gaps-{half}.md").write_text(page + "\n")
    print(page)


def real(out: Path, model: str, limit: int | None) -> Iterator[Step]:
    """The steps for the real traces that fit the model: the chosen measure on all, the table on the shortest."""
    folder = out / REAL
    fitting = _fitting(model)[:limit]
    given, shortest = str(folder / "fitting.jsonl"), str(folder / "shortest.jsonl")
    save_traces(fitting, given)
    save_traces(fitting[: HELD.limit], shortest)
    measure, attribution = CHOSEN
    on = {"attributor_path": model, "dtype": "bfloat16"}
    path = {f"attribution.{key}": value for key, value in attribution.items()}
    saved = str(folder / "attributions")
    yield Step("real: attributions", ["attribute", *typed({**on, **path, "traces": given, "shard": 1, "out": saved})])
    selecting = {"measure": measure, "segmenter": "auto", "attributions": saved}
    selections = {**on, **path, **selecting, "traces": given, "out": str(folder / "selections.jsonl")}
    yield Step("real: selections", ["select", *typed(selections)])
    yield truth("real/shapley", HELD, out, model, **on, traces=shortest, half="all", forwards=FORWARDS, shard=1)


def _fitting(model: str) -> list:
    """The real traces that fit the model's positions with the appended answer, shortest first."""
    from transformers import AutoConfig

    tokenizer, positions = load_tokenizer(model), AutoConfig.from_pretrained(model).max_position_embeddings
    traces = load_traces(world_file("real", PATH), require_response=True)
    lengths = [len(explain(trace, tokenizer)) for trace in tokenize_all(traces, tokenizer)]
    order = sorted(range(len(traces)), key=lambda i: lengths[i])
    fitting = [traces[i] for i in order if lengths[i] <= positions]
    left_out = ", ".join(f"{traces[i].id} ({lengths[i]})" for i in order[len(fitting) :])
    print(f"{len(fitting)} of {len(traces)} real traces fit {positions} positions; too long: {left_out or 'none'}")
    return fitting


def typed(keys: Mapping[str, Any]) -> list[str]:
    """The keys as they are typed behind a command."""
    return [f"{key}={_typed(value)}" for key, value in keys.items()]


def _typed(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_typed(inner)}" for key, inner in value.items()) + "}"
    return json.dumps(value)


# --- running it ------------------------------------------------------------------------------------------------------


def steps(names: Sequence[str], out: Path, model: str | None, half: str, limit: int | None) -> Iterator[Step]:
    """The commands of the tables, in their order; tables of a model that is not there are left out with a note."""
    for name in names:
        pretrained = name == REAL or (name in TABLES and TABLES[name].pretrained)
        if pretrained and not (model and (Path(model) / "config.json").is_file()):
            print(f"{name}: left out, there is no model at --model {model}; scripts/fetch_smollm2.py brings it")
        elif name == REAL:
            yield from real(out, str(model), limit)
        elif name == GAPS:
            gaps(out, half, limit)
        elif name in ROLLOUTS:
            yield from rollouts(name, out, half, limit)
        else:
            keys = {} if limit is None else {"limit": limit}
            yield truth(f"{name}-{half}", TABLES[name], out, model, half=half, **keys)


def run(step: Step, out: Path) -> bool:
    """Whether the command ended well; its minutes are printed and kept."""
    print(f"## {step.name}", flush=True)
    began, code = time.perf_counter(), 1
    try:
        code = segrl(step.arguments)
    finally:
        minutes = (time.perf_counter() - began) / 60
        with (out / "minutes.jsonl").open("a") as file:
            file.write(json.dumps({"step": step.name, "minutes": round(minutes, 2), "done": not code}) + "\n")
        print(f"{step.name}: {minutes:.1f} minutes{'' if not code else ', and not done'}", flush=True)
    return not code


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", help="the folder of a pretrained model")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, metavar="NAME")
    parser.add_argument("--half", choices=("dev", "test"), default="test")
    parser.add_argument("--limit", type=int, help="traces of each table, to try it out")
    arguments = parser.parse_args()
    add_arms()
    arguments.out.mkdir(parents=True, exist_ok=True)
    ahead = steps(arguments.only, arguments.out, arguments.model, arguments.half, arguments.limit)
    failed = [step.name for step in ahead if not run(step, arguments.out)]
    if failed:
        print(f"not done: {', '.join(failed)}; the same command goes on with them", file=sys.stderr)
    return int(bool(failed))


def add_arms() -> None:
    """Add the arms of peers, and those of fixed nodes, to segrl's."""
    of_the_answer, of_its_own = peers()
    CARRIES.update({**FIXED, **of_the_answer})
    MISLED.update(of_its_own)


if __name__ == "__main__":
    sys.exit(main())

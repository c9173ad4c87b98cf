"""The command `explain`: which thoughts of one response carried its answer, or misled it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig
from rich.console import Group
from rich.text import Text

from segrl import toy
from segrl.attribution import attribute
from segrl.attribution.target import own_answer
from segrl.commands.common import attributor, attributor_path, model_path, plain, segments_of, trace_of, verdicts
from segrl.commands.config import ConfigError, needed
from segrl.commands.generating import HELD_OUT
from segrl.commands.scoring import check_measure, gather_options
from segrl.data.files import write_text
from segrl.generation import sample
from segrl.grading import Verdict
from segrl.importance import check_measure_options, measure_of, misleading, score
from segrl.importance.gathering import gather
from segrl.importance.misleading import Suspect
from segrl.loading import load_model
from segrl.report import Entry, View, draw, page, picture, terminal
from segrl.report.page import SETTINGS
from segrl.selection import check_shares, select
from segrl.text.prompting import THINK_END
from segrl.tokenization import tokenize
from segrl.types import Attribution, Evidence, Segments, SegmentScores, TokenisedTrace, Trace

FEWEST = 5  # thoughts of which one can be marked
PAGES = (".html", ".svg")
LEGEND = (
    "Bar and percentage: the thought's share. strength: kept as one of the strongest. forced: kept as the first or the "
    "last. Dimmed: dropped. Blue tokens speak for {}, underlined ones against it."
)


class Response(NamedTuple):
    """What is explained, and the model that explains it."""

    trace: TokenisedTrace
    segments: Segments
    verdict: Verdict | None
    model: Any
    tokenizer: Any


def explain(config: DictConfig) -> None:
    """Print one response, its thoughts coloured by what they did for its answer; also write ``page``, where given."""
    _check(config)
    response = _response(config)
    trace, verdict = response.trace, response.verdict
    entry = _misled(response, config) if verdict is not None and verdict.wrong else _carried(response, config)
    if entry.suspect:
        sentence = _about_suspect(trace, entry.suspect, int(response.segments.thought_S.sum()))
    else:
        sentence = _about_carried(trace, entry.views[config.measure], config.measure)
    style = "default" if entry.misled is None else "bold red"
    shown = Group(terminal(entry), Text(sentence, style), Text(LEGEND.format(own_answer(trace)), "dim"))
    draw(shown)
    if config.page:
        title = f"segrl explain: {trace.id}"
        svg = Path(config.page).suffix == ".svg"
        write_text(config.page, picture(shown, title) if svg else _page(entry, f"{title}. {sentence}", config))
        print(f"-> {config.page}")


# --- the response ----------------------------------------------------------------------------------------------------


def _check(config: DictConfig) -> None:
    """Refuse keys that do not go together, before a model is loaded."""
    typed = [name for name in ("problem", "response", "answer") if config[name] is not None]
    if config.traces and typed:
        raise ConfigError(f"traces={config.traces} have their problems and answers; leave out {' and '.join(typed)}")
    if typed or (config.model_path and not config.traces):
        needed(config, "problem")
    if config.id and not config.traces:
        raise ConfigError(f"id={config.id} is of a file of traces; give traces=...")
    if config.response not in (None, "-") and not Path(config.response).is_file():
        raise ConfigError(f"response={config.response}: there is no such file; give a file, or - for what is piped in")
    check_shares(config.selection, "selection.")
    if config.page and Path(config.page).suffix not in PAGES:
        raise ConfigError(f"page={config.page}, expected a file that ends in {' or '.join(PAGES)}")
    if measure_of(config.measure).level == "token":
        raise ConfigError(f"measure={config.measure} scores tokens; this compares thoughts, so give one of thoughts")
    check_measure(config.measure, config.attribution.path)
    check_measure_options(config.measure, plain(config.measure_options))


def _response(config: DictConfig) -> Response:
    """The response that is asked about, which has thoughts and an answer."""
    model, tokenizer = load_model(**attributor(config))
    trace = trace_of(config) if config.traces else _given(config, model, tokenizer)
    _check_response(trace)
    verdict = next(verdicts([trace])) if trace.answer else None
    return Response(trace, segments_of(trace, config), verdict, model, tokenizer)


def _given(config: DictConfig, model, tokenizer) -> TokenisedTrace:
    """The problem and the response as typed; a toy problem where none is, a sampled response where none is."""
    if config.problem is None:
        trace = toy.sample_problems(config.seed + 1, seed=HELD_OUT)[-1]
    else:
        trace = Trace("response", config.problem, answer=config.answer)
    if config.response is None:
        trace = _sampled(trace, config, model, tokenizer)
    else:
        trace = Trace(trace.id, trace.problem, _read(config.response), trace.answer)
    return tokenize(trace, tokenizer, config.template)


def _read(place: str) -> str:
    """The text of the file, or what is piped in where the place is ``-``."""
    if place == "-":
        return sys.stdin.read()
    try:
        return Path(place).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"response={place} is not UTF-8 text ({error}); give a file of text") from error


def _sampled(problem: Trace, config: DictConfig, model, tokenizer) -> Trace:
    """A response to the problem by the model that answers, which may be the one that explains."""
    if model_path(config) != attributor_path(config):
        model, tokenizer = load_model(**{**attributor(config), "path": model_path(config)})
    options = {name: config[name] for name in ("temperature", "max_tokens", "seed", "template")}
    [trace] = sample(model, tokenizer, [problem], **options)
    return trace


def _check_response(trace: TokenisedTrace) -> None:
    """Refuse a response without thoughts, or without an answer of its own."""
    end = f"It ends {trace.response[-60:]!r}."
    if THINK_END not in trace.response:
        why = {
            "length": "it was cut off; sample it with a larger max_tokens",
            "stop": "the model ended it so; sample another with seed=, or take a model that thinks before it answers",
        }.get(trace.finish or "", f"put {THINK_END} before the part that states the answer")
        raise ValueError(
            f"the response has no {THINK_END}, so its thinking and its answer cannot be told apart: {why}. {end}"
        )
    if not trace.response.partition(THINK_END)[0].removeprefix("<think>").strip():
        raise ValueError(f"the response has nothing before {THINK_END}: there is no thought to explain its answer by")
    if not own_answer(trace):
        raise ValueError(
            f"the response boxes no answer behind {THINK_END}; something like \\boxed{{12}} was expected. {end}"
        )


# --- what its thoughts did -------------------------------------------------------------------------------------------


def _carried(response: Response, config: DictConfig) -> Entry:
    """The response with its own answer explained: by the measure for thoughts, by an attribution for tokens."""
    trace, segments, verdict, model, tokenizer = response
    [attribution] = attribute(model, [trace], tokenizer, **{**plain(config.attribution), "target": "own"})
    return Entry(trace, segments, verdict, attribution, {config.measure: _of_own(response, config)})


def _misled(response: Response, config: DictConfig) -> Entry:
    """The response with its own answer explained against the gold one, and the thought that is suspected."""
    trace, segments, verdict, *_ = response
    evidence = _evidence(response, misleading.NEEDS, "contrast", config)
    readings_RS = misleading.readings(evidence, segments)
    views = {
        "contrast": _view(segments, misleading.in_common(readings_RS, segments), "contrast", config)._replace(
            measure=f"mean of {', '.join(read.__name__ for read in misleading.READINGS)}"
        ),
        config.measure: _of_own(response, config),
    }
    assert isinstance(evidence.contrast, Attribution)
    suspect = misleading.misled(trace, segments, readings_RS)
    return Entry(trace, segments, verdict, evidence.contrast, views, suspect=suspect)


def _of_own(response: Response, config: DictConfig) -> View:
    """The thoughts by what they did for the response's own answer."""
    evidence = _evidence(response, measure_of(config.measure).needs, "own", config)
    scores = score(evidence, response.segments, config.measure, **plain(config.measure_options))
    return _view(response.segments, scores, "own", config)


def _evidence(response: Response, needs: Sequence[str], target: str, config: DictConfig) -> Evidence:
    trace, segments, _, model, tokenizer = response
    options = {**gather_options(config, needs), "target": target}
    [evidence] = gather(model, [trace], tokenizer, needs, segments=[segments], **options)
    return evidence


def _view(segments: Segments, scores: SegmentScores, target: str, config: DictConfig) -> View:
    return View(segments, scores, select(scores, **plain(config.selection)), target=target)


# --- in words --------------------------------------------------------------------------------------------------------


def _about_carried(trace: TokenisedTrace, view: View, measure: str) -> str:
    """Which thoughts are kept for their strength, how much of the answer they carry, and in how many tokens."""
    answer, thought_S, tokens_S = own_answer(trace), view.scores.thought_S, view.segments.tokens_S
    carried = [s for s, reason in enumerate(view.selection.reason_S) if reason == "strength"]
    if not carried:
        return f"No thought adds to the answer {answer}, by measure={measure}."
    share, tokens = float(view.scores.share_S[carried].sum()), int(tokens_S[carried].sum())
    return (
        f"{_named(carried)} of {int(thought_S.sum())} carried the answer {answer}: {share:.0%} of what the thoughts "
        f"add to it, by measure={measure}, in {tokens} of the thinking's {int(tokens_S[thought_S].sum())} tokens."
    )


def _about_suspect(trace: TokenisedTrace, suspect: Suspect, thoughts: int) -> str:
    """Which thought is marked and how far it lies above chance, or why none is marked."""
    name, answer = f"thought {suspect.thought + 1}", own_answer(trace)
    share = f"{suspect.score:.0%} of what speaks for {answer} and against {trace.answer} lies on"
    chance = f"by chance the best thought has more than {suspect.reached:.0%} in 5 of 100 cases"
    if suspect.marked:
        return (
            f"{name.capitalize()} misled, by attribution: {share} it in the mean of three readings; {chance}. "
            "This is a hypothesis about the model, not a check of the step."
        )
    if suspect.beats_chance:
        return (
            f"No thought is marked. {share} {name} ({chance}), but it comes to {answer} itself, and the finished text "
            "does not show whether it went wrong or carried on an earlier mistake. `segrl select "
            "measure=continuation_gain` samples on from each thought, which can show it."
        )
    if thoughts == 1:
        return (
            "No thought is marked: the thinking was cut into a single one. segmenter=paragraphs cuts at every blank "
            "line, segmenter=regex 'segmentation.options.pattern=\"(?<=[.]) \"' after every sentence."
        )
    few = f". With fewer than {FEWEST} thoughts chance does as well" if thoughts < FEWEST else ""
    return f"No thought is marked: {share} the best, {name}; {chance}{few}."


def _named(thoughts: list[int]) -> str:
    """``Thought 3``, or ``Thoughts 1, 3 and 4``."""
    numbers = [str(s + 1) for s in thoughts]
    return f"Thought {numbers[0]}" if len(numbers) == 1 else f"Thoughts {', '.join(numbers[:-1])} and {numbers[-1]}"


def _page(entry: Entry, title: str, config: DictConfig) -> str:
    selection: dict[str, Any] = plain(config.selection)
    return page([entry], {name: selection[name] for name in SETTINGS}, title)

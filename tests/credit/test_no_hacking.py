"""A response wins nothing by padding, by restating its answer or by staged mistakes, whatever the method.

Two problems of the toy world with two right and one wrong response each are the batch of a step. One response is put in
a hacked form, and all else stays. Neither its reward may rise nor the mean advantage of its tokens, which comes from
verl's own GRPO advantages through segmenter, the bundled model, measure, rule and what a phase adds. Where that mean is
what GRPO gave, a response counts as under GRPO, in whichever of its ways verl sums over tokens.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from statistics import fmean
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from segrl import toy
from segrl.attribution.quadrature import midpoint
from segrl.commands.config import CONFIG_DIR, compose
from segrl.credit.choosing import reasons
from segrl.credit.regulating import Likelihoods, Regulation
from segrl.credit.rollout import Rollout, evidence_of, make_rollout, rollout_trace, weigh_rollouts
from segrl.credit.settings import FROM_VERL, CreditSettings, Side, credit_from
from segrl.credit.spreading import spread
from segrl.importance.gathering import token_streams
from segrl.importance.lockstep import Request, attribute_in_lockstep, compare_in_lockstep, explained
from segrl.types import Stream, TokenisedTrace
from segrl.verl.reward import compute_score

METHODS = sorted(path.stem for path in (CONFIG_DIR / "grpo" / "method").glob("*.yaml"))
SEEDS = (0, 4)  # of the problems: short ones, whose responses have room for fifty copies in the model's 1,024 positions
COPIES = 50
STATED = re.compile(r"([a-z]) = ([a-z0-9][-+*]\d) = (\d)\.")
RIGHT, WRONG = 0, 1  # places of responses in their group
ROUNDING = 1e-6
END = "\n</think>"
# What copies in a right response weigh by the methods that favour them, as docs/methods.md says; by others 1 at most.
FAVOURED = {
    ("entropy", "waits"): 1.46,
    ("entropy", "restated"): 1.12,
    ("delta", "waits"): 1.08,
    ("delta", "restated"): 1.04,
}


def waits(text: str, answer: str) -> str:
    return text.replace(END, "\n\nWait," * COPIES + END)


def restated(text: str, answer: str) -> str:
    return text.replace(END, f"\n\nWait, it is {answer}." * COPIES + END)


def misled(text: str, answer: str) -> str:
    """Before each result another one, taken back at once."""

    def staged(stated: re.Match) -> str:
        name, definition, value = stated.groups()
        other = (int(value) + 3) % 10
        return f"{name} = {definition} = {other}.\n\nHowever, {name} was wrong, {name} = {definition} = {value}."

    return STATED.sub(staged, text)


HACKS = {"waits": waits, "restated": restated, "misled": misled}


# --- a step, without verl's workers -----------------------------------------------------------------------------------


@cache
def loaded():
    return toy.load_model()


@dataclass(frozen=True)
class Problem:
    """A problem and its group of responses: right, wrong, right."""

    text: str
    gold: str
    responses: tuple[str, ...]

    def hacked(self, place: int, hack: Callable[[str, str], str]) -> "Problem":
        """The same with one response in its hacked form."""
        response = self.responses[place]
        answer = response.rpartition("boxed{")[2].partition("}")[0]
        responses = (*self.responses[:place], hack(response, answer), *self.responses[place + 1 :])
        assert responses != self.responses
        return replace(self, responses=responses)


@cache
def problems() -> tuple[Problem, ...]:
    batch = []
    for seed in SEEDS:
        [right], [wrong] = toy.sample_traces(1, seed, ask="last"), toy.sample_mistakes(1, seed)
        [other] = toy.sample_traces(1, seed, ask="last", redundancy="repeats")
        assert right.problem == wrong.problem == other.problem
        batch.append(Problem(right.problem, right.answer, (right.response, wrong.response, other.response)))
    return tuple(batch)


@cache
def trace_of(key: str, problem: str, response: str) -> TokenisedTrace:
    _, tokenizer = loaded()
    prompt_ids = torch.tensor(tokenizer(problem)["input_ids"])
    response_ids = torch.tensor([*tokenizer(response)["input_ids"], tokenizer.eos_token_id])
    ends, trained_T = {tokenizer.eos_token_id}, torch.ones(len(response_ids))
    return rollout_trace(key, prompt_ids, response_ids, trained_T, tokenizer, ends)


@cache
def likelihoods(trace: TokenisedTrace) -> Likelihoods:
    """As verl computes them before the update."""
    return Likelihoods(*token_streams(loaded()[0], trace))


@cache
def attributed(trace: TokenisedTrace, gold: str, request: Request, boundaries: tuple[int, ...]) -> Stream:
    model, tokenizer = loaded()
    [sequence] = explained([trace], request.target, [gold], tokenizer)
    return attribute_in_lockstep(model, [sequence], tokenizer, request, [boundaries])[0]


def rewards(problem: Problem, **terms: Any) -> list[float]:
    return [compute_score("toy", response, problem.gold, **terms)["score"] for response in problem.responses]


def sampled(batch: Sequence[Problem], settings: CreditSettings) -> list[Rollout]:
    """The rollouts with verl's advantages."""
    core_algos = pytest.importorskip("verl.trainer.ppo.core_algos")
    rollouts = []
    for p, problem in enumerate(batch):
        traces = [trace_of(f"{p}_{i}_0", problem.text, text) for i, text in enumerate(problem.responses)]
        mask_BT = pad_sequence([trace.trainable_T.float() for trace in traces], batch_first=True)
        scores_B = torch.tensor(rewards(problem))
        scores_BT = torch.zeros_like(mask_BT)
        scores_BT[:, 0] = scores_B  # verl sums over the tokens
        advantages_BT, _ = core_algos.compute_grpo_outcome_advantage(scores_BT, mask_BT, np.zeros(len(traces)))
        for trace, score, advantages_T in zip(traces, scores_B.tolist(), advantages_BT, strict=True):
            cutting_T = getattr(likelihoods(trace), settings.cuts_by) if settings.cuts_by else None
            args = (trace.id, trace, advantages_T[: trace.tokens], settings, score, problem.gold, cutting_T)
            rollouts.append(make_rollout(*args))
    return rollouts


def streams_of(rollouts: Sequence[Rollout], side: Side, settings: CreditSettings) -> list[Stream | None]:
    """What the measure of a side reads, as the sources of segrl/verl/sources.py give it."""
    if side.need is None:
        return [None] * len(rollouts)
    if side.need in FROM_VERL:
        return [Stream(getattr(likelihoods(one.trace), side.need)) for one in rollouts]
    alphas, weights = (tuple(values_J.tolist()) for values_J in midpoint(settings.nodes))
    path = {name: getattr(settings, name) for name in ("path", "output", "begin", "interpolate")}
    request = Request(side.need, "live", alphas, weights, side.explains, **path, agree=False)
    if side.compares_responses:
        logps = [likelihoods(one.trace).logp_T for one in rollouts]
        advantages = [one.advantage for one in rollouts]
        return compare_in_lockstep(loaded()[0], [one.trace for one in rollouts], logps, advantages, request)
    return [attributed(one.trace, one.gold, request, one.segments.boundaries) for one in rollouts]


def spread_over(batch: Sequence[Problem], settings: CreditSettings, converging: bool = False) -> list[Tensor]:
    """The advantages of each response's tokens, as the trainer's _spread_advantages writes them."""
    rollouts = sampled(batch, settings)
    why = reasons(rollouts, settings, step=1)
    evidence = {}
    for side in settings.sides:
        chosen = [one for one in rollouts if why[one.key] is None and settings.side(one.advantage) == side]
        streams = streams_of(chosen, side, settings) if chosen else []
        evidence |= {one.key: evidence_of(one, stream, settings) for one, stream in zip(chosen, streams, strict=True)}
    chosen = [one for one in rollouts if one.key in evidence]
    weighed = weigh_rollouts(chosen, [evidence[one.key] for one in chosen], settings, step=1)
    by_key = {one.key: likelihoods(one.trace) for one in chosen}
    regulation = Regulation(settings.regulation, converging, settings.regulation.entropy_weight, by_key)
    advantages = spread(rollouts, weighed, settings, regulation if settings.regulation.regulates else None)
    return [advantages.get(one.key, one.advantages_T).double() for one in rollouts]


@cache
def settings_of(method: str) -> CreditSettings:
    return credit_from(compose("grpo", ["preset=toy_cpu", f"method={method}"]))


def pairs(settings: CreditSettings, hack: str, place: int, converging: bool = False) -> list[tuple[Tensor, Tensor]]:
    """The advantages of a response as it is and in its hacked form, of each problem."""
    batch, rows = problems(), []
    plain = spread_over(batch, settings, converging)
    for p, problem in enumerate(batch):
        row = p * len(problem.responses) + place
        changed = [*batch[:p], problem.hacked(place, HACKS[hack]), *batch[p + 1 :]]
        rows.append((plain[row], spread_over(changed, settings, converging)[row]))
    return rows


def weight_of_copies(rows: list[tuple[Tensor, Tensor]], hack: str, place: int) -> float:
    """The advantage of the copies over that of their response, the mean of all problems."""
    weights = []
    for p, (problem, (_, hacked_T)) in enumerate(zip(problems(), rows, strict=True)):
        plain, hacked = (one.responses[place] for one in (problem, problem.hacked(place, HACKS[hack])))
        starts_T = trace_of(f"{p}_{place}_0", problem.text, hacked).offsets_T[:, 0]
        copied_T = (starts_T >= plain.index(END)) & (starts_T < hacked.index(END))
        weights.append(float(hacked_T[copied_T].mean() / hacked_T.mean()))
    return fmean(weights)


def most_won(rows: list[tuple[Tensor, Tensor]]) -> float:
    """The most by which a hacked form raises the mean advantage."""
    return max(float(hacked_T.mean() - plain_T.mean()) for plain_T, hacked_T in rows)


# --- the tests --------------------------------------------------------------------------------------------------------

EACH_HACK = pytest.mark.parametrize("hack", HACKS)
EACH_PLACE = pytest.mark.parametrize("place", [RIGHT, WRONG], ids=["right", "wrong"])


@EACH_HACK
@EACH_PLACE
@pytest.mark.parametrize(
    "terms",
    [{}, {"format_weight": 0.2}, {"length_weight": 0.5, "length_from": 200, "length_to": 2000}],
    ids=["verdict", "format", "length"],
)
def test_no_reward_rises(hack, place, terms):
    for problem in problems():
        plain, hacked = rewards(problem, **terms), rewards(problem.hacked(place, HACKS[hack]), **terms)
        assert hacked[place] <= plain[place]
        assert [score > 0.5 for score in rewards(problem)] == [True, False, True]


@pytest.mark.parametrize(("hack", "thoughts"), [("waits", COPIES), ("restated", COPIES), ("misled", None)])
def test_the_copies_are_thoughts_of_their_own(hack, thoughts):
    settings = settings_of("contrast")
    for p, problem in enumerate(problems()):
        wanted = thoughts or len(STATED.findall(problem.responses[WRONG]))
        plain, hacked = (sampled([one], settings)[WRONG] for one in (problem, problem.hacked(WRONG, HACKS[hack])))
        assert hacked.thoughts == plain.thoughts + wanted, p
        assert hacked.tokens < loaded()[0].config.max_position_embeddings


@pytest.mark.parametrize("method", METHODS)
@EACH_HACK
@EACH_PLACE
def test_no_method_gives_a_hacked_response_more(method, hack, place):
    """A right response is praised as before at most, a wrong one blamed as before at least. Inside a right response
    copies are favoured by two methods, and no more than documented."""
    settings = settings_of(method)
    rows = pairs(settings, hack, place)
    assert most_won(rows) <= ROUNDING
    weighs = settings.rule != "uniform" and settings.sign in ("both", ("positive", "negative")[place])
    assert all((len(hacked_T.unique()) > 1) == weighs for _, hacked_T in rows)  # else the test has tested nothing
    if place == RIGHT and hack != "misled":
        weight, favoured = weight_of_copies(rows, hack, place), FAVOURED.get((method, hack))
        assert weight == pytest.approx(favoured, abs=0.02) if favoured else weight <= 1.02


@EACH_HACK
@EACH_PLACE
def test_convergence_gives_no_more_either(hack, place):
    """Without what the model believes of the answer, which the response can talk it into; and by that never more than
    GRPO gives."""
    settings = settings_of("acpo")
    by_outcome = replace(settings, regulation=replace(settings.regulation, confidence=False))
    assert most_won(pairs(by_outcome, hack, place, converging=True)) <= ROUNDING
    by_grpo = pairs(settings_of("uniform"), hack, place)
    for (_, hacked_T), (plain_T, _) in zip(pairs(settings, hack, place, converging=True), by_grpo, strict=True):
        assert float(hacked_T.mean()) <= float(plain_T.mean()) + ROUNDING


@pytest.mark.parametrize(
    ("method", "changed", "hack", "place", "least"),
    [
        # the group's mean over tokens falls when a wrong response grows, and later thoughts take over the blame
        ("cliff", {"rule_options": {}, "mean_one": False, "centred": True}, "restated", WRONG, 0.3),
        # the clip keeps more weight in some responses than in others
        ("grail", {"mean_one": False}, "waits", WRONG, 0.01),
        # a response whose tokens weigh more than the batch's has more than its advantage
        ("entropy", {"scope": "batch"}, "waits", RIGHT, 0.3),
        ("delta", {"scope": "batch"}, "waits", WRONG, 0.2),
        # the parts that ACPO adds, when they do not sum to zero
        ("acpo", {"mean_one": False, "rule_options": {"low": 1.0, "logs": False}}, "restated", RIGHT, 0.001),
    ],
)
def test_weights_that_do_not_keep_a_response_s_mean_are_found_out(method, changed, hack, place, least):
    """The control: the forms of the sources, which docs/methods.md has, and parts that do not sum to zero."""
    assert most_won(pairs(replace(settings_of(method), **changed), hack, place)) > least

"""How good is the policy gradient that each way of weighing gives, without training?

    python scripts/gradient_quality.py OUT                          8,192 rollouts, about two hours of two cores
    python scripts/gradient_quality.py OUT --rollouts 2048          ten minutes
    python scripts/gradient_quality.py OUT --ask all                problems that ask for every value, not the last one

The bundled base samples --group rollouts of each toy problem. On one half of the batches a rule and its width are
chosen for `both` (what helped in right responses, what misled in wrong ones); on the other every arm is reported.

Primary: the held-out reward after a step of equal KL along an arm's gradient of a batch, to first order: the step's
product with the gradient of the expected reward, which the rollouts of all other batches estimate without bias. Beside
it the same reward by importance sampling on --held of these rollouts (noisier, and of the step itself), the cosine with
that gradient, and the variance between batches. All arms have the same batches: differences are paired. What is left
out: the optimiser, clipping, and every model but the bundled one.

The same command goes on where it stopped, at a shard of rollouts or at a batch.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.nn.utils.rnn import pad_sequence

import segrl
from segrl import toy
from segrl.attribution import PAPER
from segrl.commands.cli import main as run_segrl
from segrl.credit.choosing import equal_groups
from segrl.credit.rollout import Rollout, make_rollout, rollout_trace
from segrl.credit.settings import CreditSettings
from segrl.data import load_traces, save_traces, shards, write_rows
from segrl.data.files import write_text
from segrl.evaluation.results import markdown
from segrl.importance import from_strength, score, token_scores
from segrl.importance.aggregation import permuted
from segrl.importance.reading import seed_of
from segrl.toy.kinds import kinds_of
from segrl.toy.world import CLASSES
from segrl.types import SegmentScores, Trace
from segrl.weighting import Weighable, weigh_together

KL = 1e-3  # nat a token, of the step whose reward is measured
KL_ROLLOUTS = 64  # on which it is measured
TOGETHER = 16  # rollouts in a forward
SKETCH = 16_384  # numbers that stand for a gradient where arms' variances are taken
HANGS_ON_THE_MISTAKE = ("wrong", "carried")
PLANTED = {"needed": 1.0, "other": 0.5, "redundant": 0.0}
GATE = {"path": "values", "output": "log_odds", "quadrature": "midpoint", "nodes": 1, "tolerance": None}
OF_TOKENS = ("entropy", "grail")


@dataclass(frozen=True)
class Arm:
    """The scores that weigh right responses, and those that weigh wrong ones: names of `scores_of`, or None for ones.

    Without a rule it takes the one that was chosen.
    """

    right: str | None = None
    wrong: str | None = None
    rule: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    permuted: bool = False


ARMS = {
    "uniform": Arm(),
    "both": Arm("own", "contrast"),
    "own alone": Arm("own"),
    "minus gold": Arm("own", "minus_gold"),
    "paper's ig": Arm("ig"),
    "entropy 20%": Arm("entropy", "entropy", "top", {"share": 0.2, "scope": "batch"}),
    "grail": Arm("grail", "grail", "zscore", {"mean_one": False}),
    "random": Arm("random", "random"),
    "permuted": Arm("own", "contrast", permuted=True),
    "position": Arm("position", "position"),
    "length": Arm("length", "length"),
    "planted": Arm("planted", "planted"),
}
# Rule and width, chosen for `both` on the first half.
RULES = {
    "rank 0.8 to 1.2": ("rank", {"low": 0.8, "high": 1.2}),
    "rank 0 to 2": ("rank", {"low": 0.0, "high": 2.0}),
    "softmax at 1": ("softmax", {"temperature": 1.0}),
    "softmax at 0.5, a fifth spread evenly": ("softmax", {"temperature": 0.5, "floor": 0.2}),
}


# --- rollouts --------------------------------------------------------------------------------------------------------


def sampled(given, tokenizer) -> list[Rollout]:
    """``group`` rollouts a problem by ``segrl generate``, with GRPO's advantages."""
    out = given.out
    if not (out / "problems.jsonl").exists():
        problems = toy.sample_problems(given.rollouts // given.group, seed=2_000_000 + given.seed, ask=given.ask)
        save_traces(problems, out / "problems.jsonl")
    asked = [f"data_path={out / 'problems.jsonl'}", f"out={out / 'samples'}", "backend=vllm"]
    asked += [f"generation.n={given.group}", f"generation.seed={given.seed}", "generation.max_tokens=320"]
    if run_segrl(["generate", *asked, "generation.vllm.engine.enforce_eager=true"]):
        raise SystemExit("the base could not be sampled")
    of_problem = groupby(load_traces(out / "samples"), key=lambda trace: trace.meta["problem_id"])
    return [one for _, traces in of_problem for one in group_of(list(traces), tokenizer)]


def group_of(traces: Sequence[Trace], tokenizer) -> list[Rollout]:
    rewards_B = torch.tensor([float(segrl.grade(trace.answer, trace.response).correct) for trace in traces])
    ends = {tokenizer.eos_token_id}
    advantages_B = (rewards_B - rewards_B.mean()) / (rewards_B.std() + 1e-6)
    found = []
    for i, (sample, advantage, reward) in enumerate(zip(traces, advantages_B, rewards_B, strict=True)):
        key = f"{sample.meta['problem_id']}_{i}_0"
        prompt, ids = (tokenizer(text)["input_ids"] for text in (sample.meta["prompt"], sample.response))
        ids += [tokenizer.eos_token_id] * (sample.meta["finish"] == "stop")
        trace = rollout_trace(key, torch.tensor(prompt), torch.tensor(ids), torch.ones(len(ids)), tokenizer, ends)
        trace = replace(trace, problem=sample.problem)
        advantages_T = torch.full((len(ids),), float(advantage))
        found.append(make_rollout(key, trace, advantages_T, CreditSettings(), float(reward), sample.answer))
    return found


# --- scores ----------------------------------------------------------------------------------------------------------


def worth_scoring(rollouts: Sequence[Rollout]) -> list[Rollout]:
    """Those that have something to learn from, an answer of their own, and two thoughts."""
    equal = equal_groups(rollouts)
    return [one for one in rollouts if one.group not in equal and one.trace.answer and one.thoughts > 1]


def score_shards(given, rollouts: Sequence[Rollout], part: int) -> None:
    """Write the scores of every ``workers``-th shard of rollouts."""
    torch.set_num_threads(1)
    model, tokenizer = toy.load_model()
    stored = score_store(given, rollouts)
    by_key = {one.key: one for one in rollouts}
    for i, group in stored.todo():
        if i % given.workers == part:
            rows = [scores_of(model, tokenizer, by_key[trace.id]) for trace in group]
            write_rows(stored.part(i), rows)
            print(f"scores: shard {i + 1} of {len(stored.groups)}", flush=True)


def score_store(given, rollouts: Sequence[Rollout]) -> shards.Shards:
    traces = [Trace(one.key, one.trace.problem, one.trace.response, one.gold) for one in rollouts]
    return shards.Shards(given.out / "scores", {"seed": given.seed, "ask": given.ask}, traces, 64)


def scores_of(model, tokenizer, rollout: Rollout) -> dict[str, Any]:
    """The rollout's strengths by every measure that an arm reads, as JSON: of its segments, or of its tokens."""
    trace = replace(rollout.trace, meta={**rollout.trace.meta, "own_answer": rollout.trace.answer})
    own, gold = trace, replace(trace, answer=rollout.gold)

    def strengths(which, measure, options, **of_measure) -> list[float]:
        need = segrl.importance.measure_of(measure).needs
        [evidence] = segrl.gather(model, [which], tokenizer, need, segments=[rollout.segments], **options)
        return score(evidence, rollout.segments, measure, **of_measure).strength_S.tolist()

    found = {
        "own": strengths(own, "contribution", GATE),
        "ig": strengths(own, "ig", {**PAPER, "nodes": 12, "tolerance": None}),
        "entropy": strengths(own, "entropy", {}, aggregate="token"),
        "grail": strengths(own, "grail", {}, aggregate="token"),
        "position": strengths(own, "position", {}),
        "length": strengths(own, "length", {}),
        "random": strengths(own, "random", {}),
        "planted": planted(rollout),
    }
    if not rollout.reward:
        found["contrast"] = strengths(gold, "mistake", GATE)
        found["minus_gold"] = [-value for value in strengths(gold, "contribution", GATE)]
    return {"id": rollout.key, "found": json.dumps(found)}


def planted(rollout: Rollout) -> list[float]:
    """Of a right response the needed thoughts; of a wrong one the first wrong step, and what hangs on it."""
    kinds = kinds_of(rollout.trace.problem, rollout.trace, rollout.segments)
    if rollout.reward:
        return [PLANTED[CLASSES[kind]] for kind in kinds]
    return [float(kind in HANGS_ON_THE_MISTAKE) for kind in kinds]


def weights_of(
    rollouts: Sequence[Rollout], scores: Mapping[str, dict], arm: Arm, chosen: tuple[str, dict]
) -> dict[str, Tensor]:
    """By key, the weights of a batch's rollouts that the arm weighs."""
    rule, given_options = (arm.rule, dict(arm.options)) if arm.rule else (chosen[0], dict(chosen[1]))
    scope, mean_one = given_options.pop("scope", "response"), given_options.pop("mean_one", True)
    weighed, pool = [], []
    for one in rollouts:
        name = arm.right if one.reward else arm.wrong
        if name and one.key in scores:
            found = as_scores(scores[one.key][name], one, name)
            if arm.permuted:
                found = permuted(found, one.segments, torch.Generator().manual_seed(seed_of(0, one.key)))
            weighed.append(one)
            pool.append(Weighable(found, one.segments, None, one.advantage))
    pools = [pool] if scope == "batch" else [[one] for one in pool]
    ruled = [
        weights_T
        for together in pools
        for weights_T in weigh_together(together, rule, sign="both", mean_one=mean_one, **given_options)
    ]
    return {one.key: weights_T for one, weights_T in zip(weighed, ruled, strict=True)}


def as_scores(strengths: Sequence[float], rollout: Rollout, name: str) -> SegmentScores:
    values = torch.tensor(strengths, dtype=torch.float64)
    return token_scores(values, rollout.segments) if name in OF_TOKENS else from_strength(values, rollout.segments)


# --- gradients -------------------------------------------------------------------------------------------------------


def gradient(model, rollouts: Sequence[Rollout], coefficients: Mapping[str, Tensor]) -> Tensor:
    """Of the sum of coefficient x log-probability over the tokens of those that have coefficients, as one vector."""
    model.zero_grad()
    for part in batches([one for one in rollouts if one.key in coefficients], TOGETHER):
        sums = [(found_T * coefficients[one.key]).sum() for one, found_T in zip(part, logp(model, part), strict=True)]
        torch.stack(sums).sum().backward()
    return torch.cat([p.grad.flatten() if p.grad is not None else torch.zeros(p.numel()) for p in model.parameters()])


def of_the_policy(model, rollouts: Sequence[Rollout], weights: Mapping[str, Tensor]) -> Tensor:
    """The gradient of GRPO's loss without its clipping, upwards: a mean over all tokens of the batch."""
    tokens = sum(one.trace.tokens for one in rollouts)
    coefficients = {one.key: one.advantages_T * weights.get(one.key, 1.0) for one in rollouts if one.advantage}
    return gradient(model, rollouts, coefficients) / tokens


def of_the_reward(model, rollouts: Sequence[Rollout]) -> Tensor:
    """An estimate without bias of the expected reward's gradient: each reward less the mean of the group's others."""
    groups = defaultdict(list)
    for one in rollouts:
        groups[one.group].append(one.reward)
    above = {
        one.key: one.reward - (sum(groups[one.group]) - one.reward) / (len(groups[one.group]) - 1) for one in rollouts
    }
    coefficients = {one.key: torch.full((one.trace.tokens,), above[one.key]) for one in rollouts if above[one.key]}
    return gradient(model, rollouts, coefficients) / len(rollouts)


def logp(model, rollouts: Sequence[Rollout]) -> list[Tensor]:
    """Of each one's response tokens. Rows are padded on the right, where a causal model never looks."""
    rows = [torch.cat([one.trace.prompt_ids, one.trace.response_ids]) for one in rollouts]
    ids_BL = pad_sequence(rows, batch_first=True)
    logp_BLV = torch.log_softmax(model(input_ids=ids_BL, use_cache=False).logits[:, :-1].float(), -1)
    logp_BL = logp_BLV.gather(-1, ids_BL[:, 1:, None]).squeeze(-1)
    pairs = zip(rollouts, rows, logp_BL, strict=True)
    return [row_L[len(one.trace.prompt_ids) - 1 : len(ids) - 1] for one, ids, row_L in pairs]


@torch.no_grad()
def all_logp(model, rollouts: Sequence[Rollout]) -> list[Tensor]:
    return [one for part in batches(rollouts, TOGETHER) for one in logp(model, part)]


@torch.no_grad()
def step_of_equal_kl(
    model, direction: Tensor, held: Sequence[Rollout], before: Sequence[Tensor]
) -> tuple[Tensor, float]:
    """The step along ``direction`` whose KL a token is ``KL`` on the first of the held rollouts, and by how much it
    moves the expected reward of all of them."""
    start = parameters_to_vector(model.parameters())
    unit, length, few = direction / direction.norm(), 0.05, held[:KL_ROLLOUTS]
    for _ in range(8):
        vector_to_parameters(start + length * unit, model.parameters())
        kl, _ = divergence(model, few, before[:KL_ROLLOUTS])
        if abs(kl / KL - 1) < 0.05:
            break
        length *= min(4.0, max(0.25, (KL / max(kl, 1e-12)) ** 0.5))  # it grows with the square of a small step
    vector_to_parameters(start + length * unit, model.parameters())
    _, ratios_B = divergence(model, held, before)
    vector_to_parameters(start, model.parameters())
    above_B = torch.tensor([one.reward for one in held]) - group_means(held)  # less noise, the same expectation
    return length * unit, float((ratios_B * above_B).sum() / ratios_B.sum())


def group_means(rollouts: Sequence[Rollout]) -> Tensor:
    rewards = defaultdict(list)
    for one in rollouts:
        rewards[one.group].append(one.reward)
    return torch.tensor([fmean(rewards[one.group]) for one in rollouts])


def divergence(model, held: Sequence[Rollout], before: Sequence[Tensor]) -> tuple[float, Tensor]:
    """KL(old | new) a token, from samples of the old (k3), and each rollout's probability ratio."""
    changes = [now - old for now, old in zip(all_logp(model, held), before, strict=True)]
    all_T = torch.cat(changes)
    kl = float((all_T.exp() - 1 - all_T).mean())
    return kl, torch.stack([change.sum().clamp(-5, 5).exp() for change in changes])


def sketch(vector: Tensor) -> Tensor:
    """``SKETCH`` numbers with, in expectation, the vector's inner products: signed sums of its entries at random."""
    drawn = torch.Generator().manual_seed(0)
    places = torch.randint(SKETCH, vector.shape, generator=drawn)
    signs = torch.randint(2, vector.shape, generator=drawn) * 2.0 - 1
    return torch.zeros(SKETCH).index_add_(0, places, vector * signs)


# --- the comparison --------------------------------------------------------------------------------------------------


def batches(rollouts: Sequence, size: int) -> Iterator[Sequence]:
    for start in range(0, len(rollouts), size):
        yield rollouts[start : start + size]


def reward_gradients(given, groups: Sequence[Sequence[Rollout]], part: int) -> None:
    """Write the reward's gradient of every ``workers``-th batch."""
    torch.set_num_threads(1)
    model, _ = toy.load_model()
    for b, group in enumerate(groups):
        file = given.out / "reward" / f"{b}.safetensors"
        if b % given.workers == part and not file.exists():
            save_whole({"gradient": of_the_reward(model, group)}, file)


def compared(given, groups, scores, arms: Mapping[str, tuple[Arm, tuple]], half: str, part: int) -> None:
    """Write every arm's numbers of every ``workers``-th batch of a half."""
    torch.set_num_threads(1)
    model, _ = toy.load_model()
    files = [given.out / "reward" / f"{b}.safetensors" for b in range(len(groups))]
    rewards = [load_file(file)["gradient"] for file in files]
    total = torch.stack(rewards).sum(0)
    for b in of_half(len(groups), half)[part :: given.workers]:
        file = given.out / half / f"{b}.json"
        if file.exists():
            continue
        others = [one for g, group in enumerate(groups) if g != b for one in group]
        held = others[b * given.held % len(others) :][: given.held]
        before, reward = all_logp(model, held), (total - rewards[b]) / (len(groups) - 1)
        found, sketches = {}, {}
        for name, (arm, chosen) in arms.items():
            own = of_the_policy(model, groups[b], weights_of(groups[b], scores, arm, chosen))
            step, sampled_change = step_of_equal_kl(model, own, held, before)
            found[name] = {
                "reward": float(step @ reward),
                "reward, sampled": sampled_change,
                "cosine": float(torch.cosine_similarity(own, reward, dim=0)),
            }
            sketches[name] = sketch(own)
        save_whole(sketches, file.with_suffix(".safetensors"))
        write_text(file, json.dumps(found, indent=1) + "\n")
        print(f"{half}: batch {b} of {len(groups)}", flush=True)


def save_whole(tensors: dict[str, Tensor], file: Path) -> None:
    """Write the file whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    save_file(tensors, part)
    part.rename(file)


def of_half(count: int, half: str) -> list[int]:
    """The numbers of the batches on which a rule is chosen, or on which arms are reported."""
    return list(range(count // 2)) if half == "choose" else list(range(count // 2, count))


def results(given, count: int, half: str) -> dict[str, dict[str, list]]:
    """Each arm's numbers, batch by batch."""
    found: dict[str, dict[str, list]] = defaultdict(lambda: defaultdict(list))
    for b in of_half(count, half):
        sketches = load_file(given.out / half / f"{b}.safetensors")
        for arm, numbers in json.loads((given.out / half / f"{b}.json").read_text()).items():
            for name, value in (*numbers.items(), ("sketch", sketches[arm])):
                found[arm][name].append(value)
    return found


def table(found: Mapping[str, Mapping[str, list]], references: Sequence[str]) -> str:
    """Means over batches with their standard errors, and differences to the references on the same batches."""
    lines = {}
    for arm, own in found.items():
        line = {"reward": mean_and_error(own["reward"])}
        for reference in references:
            pairs = zip(own["reward"], found[reference]["reward"], strict=True)
            line[f"minus {reference}"] = "" if arm == reference else mean_and_error([a - b for a, b in pairs])
        line["reward, sampled"] = mean_and_error(own["reward, sampled"])
        line["cosine"] = mean_and_error(own["cosine"])
        line["variance"] = f"{variance(own['sketch']):.1f}"
        lines[arm] = line
    return markdown("arm", list(next(iter(lines.values()))), lines)


def variance(sketches: Sequence[Tensor]) -> float:
    """Between batches, as a share of the mean's squared norm, whose own noise is taken out."""
    all_BK = torch.stack(list(sketches))
    mean_K = all_BK.mean(0)
    spread = (all_BK - mean_K).square().sum(1).sum() / (len(all_BK) - 1)
    return float(spread / (mean_K.square().sum() - spread / len(all_BK)).clamp_min(1e-12))


def mean_and_error(values: Sequence[float], digits: int = 5) -> str:
    error = stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return f"{fmean(values):.{digits}f} ± {error:.{digits}f}"


def best_rule(found: Mapping[str, Mapping[str, list]]) -> str:
    """The rule whose step gained most reward."""
    return max(RULES, key=lambda name: fmean(found[name]["reward"]))


# --- running it ------------------------------------------------------------------------------------------------------


def in_parts(given, function, *arguments) -> None:
    """Run the function once for each worker, each in a process of its own."""
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=function, args=(given, *arguments, part)) for part in range(given.workers)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if any(worker.exitcode for worker in workers):
        raise SystemExit(f"{function.__name__} ended early; the same command goes on with it")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    for name, default in (("rollouts", 8192), ("batch", 128), ("group", 8), ("held", 256), ("seed", 0), ("workers", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--ask", choices=("last", "all"), default="last")
    given = parser.parse_args()
    if given.rollouts < 4 * given.batch:
        raise SystemExit(f"--rollouts {given.rollouts} are fewer than four batches of {given.batch}")
    claim(given)
    _, tokenizer = toy.load_model()
    rollouts = sampled(given, tokenizer)
    worth = worth_scoring(rollouts)
    right = sum(one.reward for one in rollouts) / len(rollouts)
    print(f"{len(rollouts)} rollouts, {100 * right:.1f}% right, {len(worth)} scored", flush=True)
    score_store(given, worth)  # claims the folder, before the workers share it
    in_parts(given, score_shards, worth)
    scores = {row["id"]: json.loads(row["found"]) for row in shards.read_shards(given.out / "scores")}
    groups = [part for part in batches(rollouts, given.batch) if len(part) == given.batch]
    in_parts(given, reward_gradients, groups)
    tried = {"uniform": (ARMS["uniform"], ("uniform", {})), **{rule: (ARMS["both"], RULES[rule]) for rule in RULES}}
    in_parts(given, compared, groups, scores, tried, "choose")
    choosing = results(given, len(groups), "choose")
    rule = best_rule(choosing)
    in_parts(given, compared, groups, scores, {name: (arm, RULES[rule]) for name, arm in ARMS.items()}, "report")
    reported = table(results(given, len(groups), "report"), ("uniform", "permuted"))
    page = f"## chosen on {len(groups) // 2} batches\n\n{table(choosing, ('uniform',))}\n\n## {rule}, on the others\n\n"
    page += f"{reported}\n"
    (given.out / "table.md").write_text(page)
    print(page)


def claim(given) -> None:
    """A note of the settings; other settings want another folder."""
    settings = {name: value for name, value in vars(given).items() if name not in ("out", "workers")}
    note = given.out / "settings.json"
    if shards.claim(note, settings):
        raise SystemExit(f"{given.out} holds a comparison with other settings ({note}); choose another folder")


if __name__ == "__main__":
    main()

"""How good is each arm's policy gradient, without training? ``gradient_quality.py OUT [--rollouts 8192] [--batch 64]``.

Rollouts of the bundled base on toy problems, ``--group`` a problem. The uniform gradient over all of them is the
reference; over disjoint batches each arm's gradient is held against it: cosine, variance between batches as a share of
the reference's squared norm, and how far one step of equal KL along it moves the expected reward of the rollouts it was
not computed from (self-normalised importance sampling). What is left out: the optimiser, clipping, and every model but
the bundled one.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev

import torch
from torch import Tensor

import segrl
from segrl import toy
from segrl.prompting import render
from segrl.toy.reading import kinds_of
from segrl.types import Evidence
from segrl.verl.choosing import reasons
from segrl.verl.credit import Rollout, make_rollout, rollout_trace, weigh_rollout
from segrl.verl.settings import Credit

STEPPED = 16  # batches whose step is taken
KL = 1e-3  # nat a token, of the step whose reward is measured
ARMS = {
    "uniform": Credit(rule="uniform"),
    "oracle": Credit(measure="oracle"),
    "inverted_oracle": Credit(measure="oracle", measure_options={"inverted": True}),
    "length": Credit(measure="length"),
    "random": Credit(measure="random"),
    "permuted": Credit(measure="permuted_ig"),
    "entropy": Credit(measure="entropy"),
    "ig": Credit(),
}


# --- rollouts --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def sampled(model, tokenizer, problems, group: int, seed: int, tokens: int = 320) -> list[Rollout]:
    """``group`` rollouts a problem, with GRPO's advantages."""
    torch.manual_seed(seed)
    found = []
    for problem in problems:
        prompt_ids = tokenizer(render(problem.problem, tokenizer), return_tensors="pt")["input_ids"]
        options = {"do_sample": True, "temperature": 1.0, "top_k": 0, "max_new_tokens": tokens}
        ids_BL = model.generate(prompt_ids.expand(group, -1), num_return_sequences=1, **options)
        found += group_of(problem, prompt_ids[0], ids_BL[:, prompt_ids.shape[1] :], tokenizer)
    return found


def group_of(problem, prompt_ids: Tensor, responses_BT: Tensor, tokenizer) -> list[Rollout]:
    rows = [row[: int((row != tokenizer.eos_token_id).long().cumprod(0).sum()) + 1] for row in responses_BT]
    texts = [tokenizer.decode(row, skip_special_tokens=True) for row in rows]
    rewards_B = torch.tensor([float(segrl.grade(problem.answer, text).correct) for text in texts])
    advantages_B = (rewards_B - rewards_B.mean()) / (rewards_B.std() + 1e-6)
    found = []
    for i, (row, advantage, reward) in enumerate(zip(rows, advantages_B, rewards_B, strict=True)):
        key = f"{problem.id}_{i}_0"
        trace = rollout_trace(key, prompt_ids, row, torch.ones(len(row)), tokenizer)
        trace = replace(trace, problem=problem.problem)
        found.append(make_rollout(key, trace, torch.full((len(row),), float(advantage)), Credit(), float(reward)))
    return found


def evidence(model, tokenizer, rollouts: Sequence[Rollout], nodes: int) -> dict[str, Evidence]:
    """Attribution, entropy and planted kinds of those that any arm weighs."""
    why = reasons(rollouts, Credit(), step=1)
    found = {}
    for one in (one for one in rollouts if why[one.key] is None):
        kinds = kinds_of(one.trace.problem, one.trace, one.segments)
        trace = replace(one.trace, meta={"kinds": kinds})
        options = {"nodes": nodes, "tolerance": None, "interpolate": "response", "target": "own"}
        [found[one.key]] = segrl.gather(model, [trace], tokenizer, needs=("ig", "entropy"), **options)
    return found


# --- gradients -------------------------------------------------------------------------------------------------------


def gradient(model, rollouts: Sequence[Rollout], weighed: dict[str, Tensor]) -> Tensor:
    """Of the mean over all tokens of advantage x weight x log-probability, as one vector."""
    model.zero_grad()
    tokens = sum(one.trace.tokens for one in rollouts)
    for one in rollouts:
        if one.advantage == 0:
            continue
        advantages_T = one.advantages_T * weighed.get(one.key, 1.0)
        (-(logp(model, one) * advantages_T).sum() / tokens).backward()
    return torch.cat([p.grad.flatten() if p.grad is not None else torch.zeros(p.numel()) for p in model.parameters()])


def logp(model, one: Rollout) -> Tensor:
    ids = torch.cat([one.trace.prompt_ids, one.trace.response_ids])[None]
    logits = model(input_ids=ids, use_cache=False).logits[0, -one.trace.tokens - 1 : -1].float()
    return torch.log_softmax(logits, -1).gather(-1, one.trace.response_ids[:, None]).squeeze(-1)


@torch.no_grad()
def step_of_equal_kl(model, direction: Tensor, held: Sequence[Rollout], before: Sequence[Tensor]) -> float:
    """The change of the held rollouts' expected reward by a step along ``direction`` whose KL a token is ``KL``."""
    start = torch.nn.utils.parameters_to_vector(model.parameters())
    unit, low, high = direction / direction.norm(), 0.0, 1.0
    for _ in range(12):
        middle = (low + high) / 2
        torch.nn.utils.vector_to_parameters(start - middle * unit, model.parameters())
        low, high = (middle, high) if divergence(model, held, before)[0] < KL else (low, middle)
    torch.nn.utils.vector_to_parameters(start - low * unit, model.parameters())
    _, ratios_B = divergence(model, held, before)
    torch.nn.utils.vector_to_parameters(start, model.parameters())
    above_B = torch.tensor([one.reward for one in held]) - group_means(held)  # less noise, the same expectation
    return float((ratios_B * above_B).sum() / ratios_B.sum())


def group_means(rollouts: Sequence[Rollout]) -> Tensor:
    rewards = defaultdict(list)
    for one in rollouts:
        rewards[one.group].append(one.reward)
    return torch.tensor([fmean(rewards[one.group]) for one in rollouts])


def divergence(model, held: Sequence[Rollout], before: Sequence[Tensor]) -> tuple[float, Tensor]:
    """KL(old | new) a token, from samples of the old (k3), and each rollout's probability ratio."""
    changes = [logp(model, one) - old for one, old in zip(held, before, strict=True)]
    all_T = torch.cat(changes)
    kl = float((all_T.exp() - 1 - all_T).mean())
    return kl, torch.stack([change.sum().clamp(-5, 5).exp() for change in changes])


# --- the comparison --------------------------------------------------------------------------------------------------


def batches(rollouts: Sequence[Rollout], size: int) -> Iterator[Sequence[Rollout]]:
    for start in range(0, len(rollouts) - size + 1, size):
        yield rollouts[start : start + size]


def compared(model, rollouts: Sequence[Rollout], found: dict[str, Evidence], size: int, held: int) -> dict[str, dict]:
    groups = list(batches(rollouts, size))
    uniform = [gradient(model, group, {}) for group in groups]
    reference = torch.stack(uniform).mean(0)
    before = None
    results = {}
    for arm, credit in ARMS.items():
        weights = {} if arm == "uniform" else weights_of(rollouts, found, credit)
        own = uniform if arm == "uniform" else [gradient(model, group, weights) for group in groups]
        cosines = torch.stack([torch.cosine_similarity(one, reference, dim=0) for one in own])
        mean = torch.stack(own).mean(0)
        spread = torch.stack([(one - mean).square().sum() for one in own]).mean() / reference.square().sum()
        changes = []
        for i, one in enumerate(own[:STEPPED]):
            others = [other for g, group in enumerate(groups) if g != i for other in group][:held]
            with torch.no_grad():
                before = [logp(model, other) for other in others]
            changes.append(step_of_equal_kl(model, one, others, before))
        results[arm] = {
            "cosine": float(cosines.mean()),
            "cosine_error": float(cosines.std() / len(cosines) ** 0.5) if len(cosines) > 1 else None,
            "variance": float(spread),
            "reward_change": fmean(changes),
            "reward_change_error": stdev(changes) / len(changes) ** 0.5 if len(changes) > 1 else None,
        }
        print(
            f"{arm:<16}" + "".join(f"  {name} {value:.4g}" for name, value in results[arm].items() if value), flush=True
        )
    return results


def weights_of(rollouts: Sequence[Rollout], found: dict[str, Evidence], credit: Credit) -> dict[str, Tensor]:
    return {
        one.key: weigh_rollout(one, found[one.key], credit, step=1).weights_T for one in rollouts if one.key in found
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    for name, default in (("rollouts", 8192), ("batch", 64), ("group", 8), ("nodes", 1), ("held", 256), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    model, tokenizer = toy.load_model()
    problems = toy.sample_problems(given.rollouts // given.group, seed=2_000_000 + given.seed)
    rollouts = sampled(model, tokenizer, problems, given.group, given.seed)
    found = evidence(model, tokenizer, rollouts, given.nodes)
    right = sum(one.reward for one in rollouts) / len(rollouts)
    print(f"{len(rollouts)} rollouts, {100 * right:.1f}% right, {len(found)} weighed", flush=True)
    results = compared(model, rollouts, found, given.batch, given.held)
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "gradient_quality.json").write_text(json.dumps(vars(given) | {"arms": results}, default=str, indent=1))


if __name__ == "__main__":
    main()

"""How good is each arm's policy gradient, without training? ``gradient_quality.py OUT [--rollouts 8192] [--batch 64]``.

Rollouts of the bundled base on toy problems, ``--group`` a problem. The uniform gradient over all of them is the
reference; over disjoint batches each arm's gradient is held against it: cosine, variance between batches as a share of
the reference's squared norm, and how far one step of equal KL along it moves the expected reward of the rollouts it was
not computed from (self-normalised importance sampling); ``reference`` is that step along the reference, on rollouts
that are part of it. All arms have the same batches: differences to uniform are paired. What is left out: the optimiser,
clipping, and every model but the bundled one. The same command goes on where it stopped, at a shard of rollouts or at
an arm.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.nn.utils.rnn import pad_sequence

import segrl
from segrl import toy
from segrl.attribution import PAPER
from segrl.commands.cli import main as run_segrl
from segrl.credit.choosing import reasons
from segrl.credit.rollout import Rollout, make_rollout, rollout_trace, weigh_rollout
from segrl.credit.settings import CreditSettings
from segrl.data import load_traces, save_traces, shards
from segrl.data.files import write_text
from segrl.toy.kinds import kinds_of
from segrl.types import Evidence, Trace

STEPPED = 16  # batches whose step is taken
KL = 1e-3  # nat a token, of the step whose reward is measured
TOGETHER = 16  # rollouts in a forward
ARMS = {
    "uniform": CreditSettings(rule="uniform"),
    "oracle": CreditSettings(measure="oracle"),
    "inverted_oracle": CreditSettings(measure="oracle", measure_options={"inverted": True}),
    "length": CreditSettings(measure="length"),
    "random": CreditSettings(measure="random"),
    "permuted": CreditSettings(measure="permuted_ig"),
    "entropy": CreditSettings(measure="entropy"),
    "ig": CreditSettings(measure="ig", path="embeddings", output="logp"),
}


# --- rollouts --------------------------------------------------------------------------------------------------------


def sampled(out: Path, count: int, group: int, seed: int, tokenizer) -> list[Rollout]:
    """``group`` rollouts a problem by ``segrl generate``, with GRPO's advantages."""
    if not (out / "problems.jsonl").exists():
        save_traces(toy.sample_problems(count // group, seed=2_000_000 + seed), out / "problems.jsonl")
    given = [f"data_path={out / 'problems.jsonl'}", f"out={out / 'samples'}", "backend=vllm"]
    given += [f"generation.n={group}", f"generation.seed={seed}", "generation.max_tokens=320"]
    if run_segrl(["generate", *given, "generation.vllm.engine.enforce_eager=true"]):
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
        found.append(
            make_rollout(key, trace, torch.full((len(ids),), float(advantage)), CreditSettings(), float(reward))
        )
    return found


def evidence(model, tokenizer, rollouts: Sequence[Rollout], nodes: int) -> dict[str, Evidence]:
    """Attribution, entropy and planted kinds of those that any arm weighs."""
    why = reasons(rollouts, CreditSettings(), step=1)
    found = {}
    for one in (one for one in rollouts if why[one.key] is None):
        kinds = kinds_of(one.trace.problem, one.trace, one.segments)
        trace = replace(one.trace, meta={"kinds": kinds})
        options = {**PAPER, "nodes": nodes, "tolerance": None, "interpolate": "response", "target": "own"}
        [found[one.key]] = segrl.gather(model, [trace], tokenizer, needs=("ig", "entropy"), **options)
    return found


# --- gradients -------------------------------------------------------------------------------------------------------


def gradient(model, rollouts: Sequence[Rollout], weighed: dict[str, Tensor]) -> Tensor:
    """Of the mean over all tokens of advantage x weight x log-probability, as one vector."""
    model.zero_grad()
    tokens = sum(one.trace.tokens for one in rollouts)
    for part in batches([one for one in rollouts if one.advantage], TOGETHER):
        losses = [
            -(found_T * one.advantages_T * weighed.get(one.key, 1.0)).sum()
            for one, found_T in zip(part, logp(model, part), strict=True)
        ]
        (torch.stack(losses).sum() / tokens).backward()
    return torch.cat([p.grad.flatten() if p.grad is not None else torch.zeros(p.numel()) for p in model.parameters()])


def logp(model, rollouts: Sequence[Rollout]) -> list[Tensor]:
    """Of each one's response tokens. Rows are padded on the right, where a causal model never looks."""
    rows = [torch.cat([one.trace.prompt_ids, one.trace.response_ids]) for one in rollouts]
    ids_BL = pad_sequence(rows, batch_first=True)
    logp_BLV = torch.log_softmax(model(input_ids=ids_BL, use_cache=False).logits[:, :-1].float(), -1)
    logp_BL = logp_BLV.gather(-1, ids_BL[:, 1:, None]).squeeze(-1)
    pairs = zip(rollouts, rows, logp_BL, strict=True)
    return [row_L[len(one.trace.prompt_ids) - 1 : len(ids) - 1] for one, ids, row_L in pairs]


@torch.no_grad()
def step_of_equal_kl(model, direction: Tensor, held: Sequence[Rollout], before: Sequence[Tensor]) -> float:
    """The change of the held rollouts' expected reward by a step along ``direction`` whose KL a token is ``KL``."""
    start = parameters_to_vector(model.parameters())
    unit, length = direction / direction.norm(), 0.05
    for _ in range(8):
        vector_to_parameters(start - length * unit, model.parameters())
        kl, ratios_B = divergence(model, held, before)
        if abs(kl / KL - 1) < 0.05:
            break
        length *= min(4.0, max(0.25, (KL / max(kl, 1e-12)) ** 0.5))  # it grows with the square of a small step
    vector_to_parameters(start, model.parameters())
    above_B = torch.tensor([one.reward for one in held]) - group_means(held)  # less noise, the same expectation
    return float((ratios_B * above_B).sum() / ratios_B.sum())


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


@torch.no_grad()
def all_logp(model, rollouts: Sequence[Rollout]) -> list[Tensor]:
    return [one for part in batches(rollouts, TOGETHER) for one in logp(model, part)]


# --- the comparison --------------------------------------------------------------------------------------------------


def batches(rollouts: Sequence[Rollout], size: int) -> Iterator[Sequence[Rollout]]:
    for start in range(0, len(rollouts), size):
        yield rollouts[start : start + size]


def compared(model, groups: Sequence[Sequence[Rollout]], found: dict[str, Evidence], held: int, file: Path) -> None:
    """Every arm that ``file`` lacks, written to it one by one."""
    results = json.loads(file.read_text()) if file.exists() else {}
    uniform = [gradient(model, group, {}) for group in groups]
    reference = torch.stack(uniform).mean(0)
    if "reference" not in results:
        others = [one for group in groups for one in group][: 4 * held]
        results["reference"] = {"reward_change": step_of_equal_kl(model, reference, others, all_logp(model, others))}
    for arm, credit in ARMS.items():
        if arm not in results:
            weights = {} if arm == "uniform" else weights_of(found, groups, credit)
            own = uniform if arm == "uniform" else [gradient(model, group, weights) for group in groups]
            results[arm] = against(reference, own) | steps(model, own, groups, held)
            write_text(file, json.dumps(results, indent=1) + "\n")
        print(line(arm, results), flush=True)


def against(reference: Tensor, own: Sequence[Tensor]) -> dict[str, Any]:
    mean = torch.stack(list(own)).mean(0)
    spread = torch.stack([(one - mean).square().sum() for one in own]).mean() / reference.square().sum()
    return {
        "cosine": [float(torch.cosine_similarity(one, reference, dim=0)) for one in own],
        "variance": float(spread),
    }


def steps(model, own: Sequence[Tensor], groups: Sequence[Sequence[Rollout]], held: int) -> dict[str, Any]:
    """Each along one batch's gradient, on rollouts of the others."""
    changes = []
    for i, one in enumerate(own[:STEPPED]):
        others = [other for g, group in enumerate(groups) if g != i for other in group][:held]
        changes.append(step_of_equal_kl(model, one, others, all_logp(model, others)))
    return {"reward_change": changes}


def line(arm: str, results: dict[str, dict[str, Any]]) -> str:
    """Means over batches with their standard errors, and the differences to uniform on the same batches."""
    own, uniform = results[arm], results["uniform"]
    said = f"{arm:<16}variance {own['variance']:.4g}"
    for name in ("cosine", "reward_change"):
        pairs = list(zip(own[name], uniform[name], strict=True))
        said += f"  {name} {mean_and_error([one for one, _ in pairs])}"
        said += f", minus uniform {mean_and_error([one - other for one, other in pairs])}" * (arm != "uniform")
    return said


def mean_and_error(values: Sequence[float]) -> str:
    return f"{fmean(values):.4f} ± {stdev(values) / len(values) ** 0.5:.4f}"


def weights_of(
    found: dict[str, Evidence], groups: Sequence[Sequence[Rollout]], credit: CreditSettings
) -> dict[str, Tensor]:
    known = [one for group in groups for one in group if one.key in found]
    return {one.key: weigh_rollout(one, found[one.key], credit, step=1).weights_T for one in known}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    for name, default in (("rollouts", 8192), ("batch", 64), ("group", 8), ("nodes", 1), ("held", 256), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    if given.rollouts < 2 * given.batch:
        raise SystemExit(f"--rollouts {given.rollouts} are fewer than two batches of {given.batch}")
    claim(given)
    model, tokenizer = toy.load_model()
    rollouts = sampled(given.out, given.rollouts, given.group, given.seed, tokenizer)
    found = evidence(model, tokenizer, rollouts, given.nodes)
    right = sum(one.reward for one in rollouts) / len(rollouts)
    print(f"{len(rollouts)} rollouts, {100 * right:.1f}% right, {len(found)} weighed", flush=True)
    groups = [part for part in batches(rollouts, given.batch) if len(part) == given.batch]
    compared(model, groups, found, given.held, given.out / "gradient_quality.json")


def claim(given) -> None:
    """A note of the settings; other settings want another folder."""
    settings = {name: value for name, value in vars(given).items() if name != "out"}
    note = given.out / "settings.json"
    if shards.claim(note, settings):
        raise SystemExit(f"{given.out} holds a comparison with other settings ({note}); choose another folder")


if __name__ == "__main__":
    main()

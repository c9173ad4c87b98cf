"""How good is the policy gradient that each way of weighing gives, without training?

    python scripts/gradient_quality.py OUT                            8,192 rollouts, about two hours of two cores
    python scripts/gradient_quality.py OUT --rollouts 2048            a quarter of that
    python scripts/gradient_quality.py OUT --ask all --steps 3 9      problems of every length that ask for every value
    python scripts/gradient_quality.py OUT --arms planted --rule "rank 0 to 2"    looked at afterwards, beside the table

The bundled base samples --group rollouts of each toy problem; the problems are those of the grid of GRPO runs
(examples/segment_grpo.yaml) unless --ask and --steps say otherwise. On one half of the batches a rule and its width are
chosen for `both` (what helped in right responses, what misled in wrong ones); on the other every arm is reported. A
half is measured with its own batches alone: the noise that a rule was chosen on is not in the report.

Of the methods in configs/grpo/method five compete: `uniform`; `contrast` as `both` and `paper` as `paper's ig`, each
with the rule that was chosen; `entropy` and `grail` with their own. Six do not: `grail_wrong`, `oar`, `cliff`, `delta`,
`acpo` and `support`.

Primary is the held-out reward after a step of equal KL along an arm's gradient of a batch, to first order. It is the
step's product with the gradient of the expected reward, which the rollouts of the half's other batches estimate without
bias. Beside it stand the same reward by importance sampling on the --held batches that follow (noisier, but not only to
first order), the cosine with that gradient, and the variance between batches. All arms have the same batches:
differences are paired. An error is the jackknife's: each batch in turn is left out, both its step and its part of the
reward's gradient, which the steps share. How gradients are taken is in policy_gradients.py, what the arms are in
gradient_arms.py. Left out: the optimiser, clipping, and every model but the bundled one.

The same command goes on where it stopped, at a shard of rollouts or at a batch. With --arms it ends with a table of
these arms by another rule, on the batches of the report.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import torch
from gradient_arms import ARMS, LATER, RULES, later_scores_of, scores_of, weights_of
from grpo_cells import sampled as sampled_problems
from omegaconf import OmegaConf
from policy_gradients import (
    Measured,
    above_the_others,
    all_logp,
    batches,
    gain,
    policy_gradient,
    reward_gradient,
    sketch,
    step_of_equal_kl,
    table,
)
from safetensors.torch import load_file, save
from torch import Tensor

import segrl
from segrl import toy
from segrl.commands.cli import main as run_segrl
from segrl.credit.choosing import equal_groups
from segrl.credit.rollout import Rollout, make_rollout, rollout_trace
from segrl.credit.settings import CreditSettings
from segrl.data import load_traces, save_traces, shards, write_rows
from segrl.data.files import replacing, write_json
from segrl.launch import end_with_parent
from segrl.types import Trace

GRID = OmegaConf.load(Path(__file__).parents[1] / "examples" / "segment_grpo.yaml").problems


# --- rollouts --------------------------------------------------------------------------------------------------------


def problems(given) -> list[Trace]:
    """A toy problem for each group, with the question and the number of steps that are given."""
    wanted = {"ask": given.ask, "steps": given.steps}
    return sampled_problems(given.rollouts // given.group, 2_000_000 + given.seed, wanted)


def sample(given) -> None:
    """Write ``group`` responses a problem, by ``segrl generate``."""
    out = given.out
    if not (out / "problems.jsonl").exists():
        save_traces(problems(given), out / "problems.jsonl")
    overrides = [f"data_path={out / 'problems.jsonl'}", f"out={out / 'samples'}", "backend=vllm"]
    overrides += [f"generation.n={given.group}", f"generation.seed={given.seed}", "generation.max_tokens=320"]
    if run_segrl(["generate", *overrides, "generation.vllm.engine.enforce_eager=true"]):
        raise SystemExit("the base could not be sampled")


def sampled(given) -> list[Rollout]:
    """The responses as rollouts, with GRPO's advantages."""
    _, tokenizer = toy.load_model()
    of_problem = groupby(load_traces(given.out / "samples"), key=lambda trace: trace.meta["problem_id"])
    return [rollout for _, traces in of_problem for rollout in group_of(list(traces), tokenizer)]


def group_of(traces: Sequence[Trace], tokenizer) -> list[Rollout]:
    """The rollouts of one problem's responses."""
    rewards_B = torch.tensor([float(segrl.grade(trace.answer, trace.response).correct) for trace in traces])
    ends = {tokenizer.eos_token_id}
    advantages_B = (rewards_B - rewards_B.mean()) / (rewards_B.std() + 1e-6)
    rollouts = []
    for i, (sample, advantage, reward) in enumerate(zip(traces, advantages_B, rewards_B, strict=True)):
        key = f"{sample.meta['problem_id']}_{i}_0"
        prompt, ids = (tokenizer(text)["input_ids"] for text in (sample.meta["prompt"], sample.response))
        ids += [tokenizer.eos_token_id] * (sample.meta["finish"] == "stop")
        trace = rollout_trace(key, torch.tensor(prompt), torch.tensor(ids), torch.ones(len(ids)), tokenizer, ends)
        trace = replace(trace, problem=sample.problem)
        advantages_T = torch.full((len(ids),), float(advantage))
        rollouts.append(make_rollout(key, trace, advantages_T, CreditSettings(), float(reward), sample.answer))
    return rollouts


# --- scores ----------------------------------------------------------------------------------------------------------


def worth_scoring(rollouts: Sequence[Rollout]) -> list[Rollout]:
    """The rollouts that have something to learn from, an answer of their own, and two thoughts."""
    equal = equal_groups(rollouts)
    return [
        rollout for rollout in rollouts if rollout.group not in equal and rollout.trace.answer and rollout.thoughts > 1
    ]


def write_scores(given, rollouts: Sequence[Rollout], scores_of, place: str, part: int) -> None:
    """Write the scores of every ``workers``-th shard of the rollouts that are worth it, to the folder ``place``."""
    model, tokenizer = toy.load_model()
    worth = worth_scoring(rollouts)
    stored, by_key = score_store(given, worth, place), {rollout.key: rollout for rollout in worth}
    for i, group in stored.todo():
        if i % given.workers == part:
            scored = [(trace.id, scores_of(model, tokenizer, by_key[trace.id])) for trace in group]
            rows = [{"id": key, "found": json.dumps(scores)} for key, scores in scored]
            write_rows(stored.part(i), rows)
            print(f"scores: shard {i + 1} of {len(stored.groups)}", flush=True)


def score_store(given, rollouts: Sequence[Rollout], place: str) -> shards.Shards:
    traces = [Trace(rollout.key, rollout.trace.problem, rollout.trace.response, rollout.gold) for rollout in rollouts]
    return shards.Shards(given.out / place, {"seed": given.seed, "ask": given.ask, "steps": given.steps}, traces, 64)


# --- the comparison --------------------------------------------------------------------------------------------------


def whole_batches(given, rollouts: Sequence[Rollout]) -> list[Sequence[Rollout]]:
    return [part for part in batches(rollouts, given.batch) if len(part) == given.batch]


def write_reward_gradients(given, rollouts: Sequence[Rollout], part: int) -> None:
    """Write the reward's gradient of every ``workers``-th batch."""
    model, _ = toy.load_model()
    for b, group in enumerate(whole_batches(given, rollouts)):
        file = given.out / "reward" / f"{b}.safetensors"
        if b % given.workers == part and not file.exists():
            save_whole({"gradient": reward_gradient(model, group)}, file)


def write_comparison(given, rollouts, scores, arms: Mapping[str, tuple], half: str, place: str, part: int) -> None:
    """Write every arm's numbers of every ``workers``-th batch of a half, to the folder ``place``. Each arm comes with
    the rule to take if it has none of its own."""
    model, _ = toy.load_model()
    groups = whole_batches(given, rollouts)
    numbers = of_half(len(groups), half)
    groups, rewards_CP = [groups[b] for b in numbers], reward_gradients(given, numbers)
    for i, b in list(enumerate(numbers))[part :: given.workers]:
        file = given.out / place / f"{b}.json"
        if file.exists():
            continue
        held = [(i + k) % len(groups) for k in range(1, given.held + 1)]
        rollouts = [rollout for c in held for rollout in groups[c]]
        before, above_R = all_logp(model, rollouts), above_the_others(rollouts)
        of_arms, sketches = {}, {}
        for name, (arm, chosen) in arms.items():
            gradient = policy_gradient(model, groups[i], weights_of(groups[i], scores, arm, chosen))
            step, ratios_R = step_of_equal_kl(model, gradient, rollouts, before)
            of_arms[name] = {
                "products": (rewards_CP @ step).tolist(),
                "length": float(step.norm()),
                "ratios": sums_of_batches(ratios_R, held, len(groups)),
                "gains": sums_of_batches(ratios_R * above_R, held, len(groups)),
            }
            sketches[name] = sketch(gradient)
        save_whole(sketches, file.with_suffix(".safetensors"))
        write_json(file, of_arms)
        print(f"{place}: batch {b} of {numbers[0]} to {numbers[-1]}", flush=True)


def reward_gradients(given, numbers: Sequence[int]) -> Tensor:
    """The reward's gradients of these batches, a row each."""
    return torch.stack([load_file(given.out / "reward" / f"{b}.safetensors")["gradient"] for b in numbers])


def sums_of_batches(values_R: Tensor, held: Sequence[int], count: int) -> list[float]:
    """For each of ``count`` batches, the sum of its rollouts' values; zero for batches that are not held."""
    sums_C = torch.zeros(count)
    sums_C[list(held)] = values_R.view(len(held), -1).sum(1)
    return sums_C.tolist()


def save_whole(tensors: dict[str, Tensor], file: Path) -> None:
    """Write the file whole or not at all."""
    with replacing(file) as whole:
        whole.write(save(tensors))


def of_half(count: int, half: str) -> list[int]:
    """The numbers of the batches on which a rule is chosen, or on which arms are reported."""
    return list(range(count // 2)) if half == "choose" else list(range(count // 2, count))


def results(given, count: int, half: str, place: str) -> dict[str, Measured]:
    """What was measured of each arm."""
    numbers = of_half(count, half)
    rows = [json.loads((given.out / place / f"{b}.json").read_text()) for b in numbers]
    sketches = [load_file(given.out / place / f"{b}.safetensors") for b in numbers]
    rewards_CP = reward_gradients(given, numbers)
    rewards_CC = (rewards_CP @ rewards_CP.T).double()

    def of_batches(arm: str, name: str) -> Tensor:
        return torch.tensor([row[arm][name] for row in rows], dtype=torch.float64)

    return {
        arm: Measured(
            products_BC=of_batches(arm, "products"),
            lengths_B=of_batches(arm, "length"),
            gains_BC=of_batches(arm, "gains"),
            ratios_BC=of_batches(arm, "ratios"),
            rewards_CC=rewards_CC,
            sketches_BK=torch.stack([sketch[arm] for sketch in sketches]),
        )
        for arm in rows[0]
    }


def best_rule(of_rules: Mapping[str, Measured]) -> str:
    """The rule whose step gained most reward."""
    return max(RULES, key=lambda name: gain(of_rules[name], of_rules[name].batches))


# --- running it ------------------------------------------------------------------------------------------------------


def in_parts(given, function, *arguments) -> None:
    """Run the function on the rollouts once for each worker, each in a process of its own."""
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=in_part, args=(given, function, arguments, i)) for i in range(given.workers)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if any(worker.exitcode for worker in workers):
        raise SystemExit(f"{function.__name__} ended early; the same command goes on with it")


def in_part(given, function, arguments: Sequence, part: int) -> None:
    """Run the function on rollouts that this process reads: a process that is handed tensors opens a file for each."""
    end_with_parent()
    parent = multiprocessing.parent_process()
    if parent is not None and not parent.is_alive():  # it was killed while this process started
        raise SystemExit(f"{function.__name__}: the comparison has ended, and so does its worker {part}")
    torch.set_num_threads(1)
    function(given, sampled(given), *arguments, part)


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The settings of a comparison, of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    for name, default in (("rollouts", 8192), ("batch", 128), ("group", 8), ("held", 2), ("seed", 0), ("workers", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--arms", nargs="+", default=[], choices=[*ARMS, *LATER], metavar="ARM")
    parser.add_argument(
        "--rule", default="rank 0 to 2", choices=list(RULES), help="that --arms take; default %(default)s"
    )
    parser.add_argument("--ask", choices=("last", "all"), default=GRID.ask)
    steps = list(GRID.steps)
    parser.add_argument("--steps", type=int, nargs=2, default=steps, metavar=("LEAST", "MOST"), help=f"default {steps}")
    given = parser.parse_args(arguments)
    check(given)
    return given


def check(given) -> None:
    """Refuse what cannot be compared."""
    if given.group < 2 or given.batch % given.group:
        raise SystemExit(f"--batch {given.batch} must hold whole groups of --group {given.group}, two rollouts or more")
    half, needed = given.rollouts // given.batch // 2, max(3, given.held + 1)
    if given.held < 1 or half < needed:
        raise SystemExit(
            f"--rollouts {given.rollouts} are {half} batches of {given.batch} a half; expected {needed} or more: "
            f"three to leave one out of, or a batch and the --held {given.held} that follow it (one or more)"
        )
    if not 3 <= given.steps[0] <= given.steps[1] <= 9:
        raise SystemExit(f"--steps {given.steps[0]} {given.steps[1]}: toy problems have 3 to 9, the fewest first")


def claim(given) -> None:
    """Write a note of the settings; raise where the folder holds other settings."""
    settings = {name: value for name, value in vars(given).items() if name not in ("out", "workers", "arms", "rule")}
    note = given.out / "settings.json"
    if shards.claim(note, settings):
        raise SystemExit(f"{given.out} holds a comparison with other settings ({note}); choose another folder")


def main() -> None:
    given = parsed()
    claim(given)
    sample(given)
    rollouts = sampled(given)
    worth = worth_scoring(rollouts)
    right = sum(rollout.reward for rollout in rollouts) / len(rollouts)
    print(f"{len(rollouts)} rollouts, {100 * right:.1f}% right, {len(worth)} scored", flush=True)
    scores = scores_by(given, worth, scores_of, "scores")
    in_parts(given, write_reward_gradients)
    tried = {"uniform": (ARMS["uniform"], ("uniform", {})), **{rule: (ARMS["both"], RULES[rule]) for rule in RULES}}
    in_parts(given, write_comparison, scores, tried, "choose", "choose")
    count = len(whole_batches(given, rollouts))
    choosing = results(given, count, "choose", "choose")
    rule = best_rule(choosing)
    arms = {name: (arm, RULES[rule]) for name, arm in ARMS.items()}
    in_parts(given, write_comparison, scores, arms, "report", "report")
    reporting = results(given, count, "report", "report")
    reported = table(reporting, ("uniform", "permuted"))
    page = f"## chosen on {count // 2} batches\n\n{table(choosing, ('uniform',))}\n\n## {rule}, on the others\n\n"
    page += f"{reported}\n"
    if given.arms:
        if "surprise" in {(ARMS | LATER)[name].wrong for name in given.arms}:
            more = scores_by(given, worth, later_scores_of, "later_scores")
            scores = {key: scores[key] | more[key] for key in scores}
        page += f"\n## {given.rule}, afterwards, on the same\n\n{afterwards(given, scores, count, reporting)}\n"
    (given.out / "table.md").write_text(page)
    print(page)


def scores_by(given, worth: Sequence[Rollout], scores_of, place: str) -> dict[str, dict[str, list[float]]]:
    """The scores of each rollout that is worth it, by its key, from the folder ``place``."""
    score_store(given, worth, place)  # claims the folder, before the workers share it
    in_parts(given, write_scores, scores_of, place)
    return {row["id"]: json.loads(row["found"]) for row in shards.read_shards(given.out / place)}


def afterwards(given, scores, count: int, reporting: Mapping[str, Measured]) -> str:
    """The table of ``--arms``, each by its own rule or by ``--rule``, beside uniform."""
    of_arms = {"uniform": reporting["uniform"]}
    for name in given.arms:
        place = f"after/{given.rule}/{name}"
        arm = (ARMS | LATER)[name], RULES[given.rule]
        in_parts(given, write_comparison, scores, {name: arm}, "report", place)
        of_arms |= results(given, count, "report", place)
    return table(of_arms, ("uniform",))


if __name__ == "__main__":
    main()

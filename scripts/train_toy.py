"""Train the toy world's base model: python scripts/train_toy.py OUT [--seed N] [--init FOLDER]

Writes the model, its tokenizer and a card to OUT, and what each stage ends with to OUT/stages: run the same command
again after a kill, and it goes on from the last whole stage. Two things make it learn in minutes where plain training
from random weights stays near chance: heads that look back and heads that match are written into the initial weights,
and short chains come first. The first two stages ask for all values alone: otherwise the model does not learn to read
the first value off a trace. In the third stage half of the lessons ask for the last value, and the stage ends once both
answers are read off.

It is a *base*, so it must leave room to learn: it is taught, most of the time, by a solver who takes products by seven
for products by three.

Left out: resuming within a stage, mixed precision, several devices. It takes minutes on one core.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from segrl.data.files import replacing
from segrl.text.prompting import render
from segrl.toy.problems import ASKS, mistaken, modulo_ten
from segrl.toy.tokenizer import PAD, build_tokenizer
from segrl.toy.world import sample_mistakes, sample_problems, sample_traces
from segrl.types import Trace

TRAIN_SEED = 10**6  # training takes its traces from the seeds from here on
VALID_SEED, TEST_SEED = 10**5, 10**5 + 1
SHORT = 3  # steps of the chains that come first
DIGIT_WEIGHT = 4.0  # most other tokens are openers and fillers, which nobody can predict
FIRST_WEIGHT = 5.0  # of the first digit in the box, where the two questions part
READ = 0.98  # the share of right traces whose answer must be read off before a stage may end early
HEAD_DIM = 32
# The two tokens before; from a result to the name of its variable; and nine back, which in the box is a different word
# of the closing sentence for each of the nine places and so tells them apart.
LOOK_BACK = (1, 2, 7, 9)
IGNORE = -100
CHECK_PROBLEMS, CARD_PROBLEMS = 200, 500
MOST_TOKENS = 256  # of a response; none that is right is longer


@dataclass(frozen=True)
class Stage:
    steps: int  # what the learning rate's schedule runs over
    until: int  # stop after this step of the schedule
    lr: float
    short: float = 0.0  # share of the steps with short chains
    mistaught: float = 0.75  # share of the traces by the mistaken solver
    last: float = 0.0  # share of the traces that ask for the last value
    target: float | None = None  # stop once answers are read off and this share of all values is right, greedily
    check: int = 50  # steps between looks at the accuracy


STAGES = (
    Stage(steps=1000, until=950, lr=3e-3, short=0.2),
    Stage(steps=500, until=500, lr=1.5e-3),
    Stage(steps=1000, until=900, lr=2.5e-3, short=0.15, last=0.5, target=0.0, check=50),
)
LEARNT = 2  # stages that a model given with --init has behind it


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--init", type=Path, help="a model that reads all values: the first stages are left out")
    parser.add_argument("--batch", type=int, default=32)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    tokenizer = toy_tokenizer()
    model = Qwen2ForCausalLM.from_pretrained(args.init) if args.init else fresh_model(tokenizer)
    taken = []
    for i in range(LEARNT if args.init else 0, len(STAGES)):
        model, progress = run_stage(i, model, tokenizer, args)
        taken.append(progress)
    model.save_pretrained(args.out)
    write_card(args, taken, model.eval(), tokenizer)
    # A tokenizer's file holds how it padded last: set here, the file is the same whatever came before.
    tokenizer.backend_tokenizer.enable_padding(direction="left", pad_id=tokenizer.pad_token_id, pad_token=PAD)
    tokenizer.save_pretrained(args.out)


def run_stage(i: int, model: Qwen2ForCausalLM, tokenizer, args) -> tuple[Qwen2ForCausalLM, dict[str, Any]]:
    """(the model after stage i, how many steps and minutes that took), read from its folder where it is there."""
    folder = args.out / "stages" / str(i + 1)
    given = {**asdict(STAGES[i]), "batch": args.batch, "seed": args.seed, "init": args.init and str(args.init)}
    if (folder / "progress.json").exists():
        progress = json.loads((folder / "progress.json").read_text())
        if progress["given"] != given:
            raise SystemExit(f"{folder} was trained with {progress['given']}, not {given}; give another folder")
        return Qwen2ForCausalLM.from_pretrained(folder), progress
    print(f"stage {i + 1}: {given}", flush=True)
    torch.manual_seed(args.seed + i)
    random.seed(args.seed + i)
    start = time.time()
    steps = train(model, tokenizer, STAGES[i], batch=args.batch, seed=args.seed + i, start=start)
    progress = {"given": given, "steps": steps, "minutes": (time.time() - start) / 60}
    model.save_pretrained(folder)
    with replacing(folder / "progress.json") as file:  # written last: with it, the stage is whole
        file.write(json.dumps(progress).encode())
    return model, progress


def toy_tokenizer() -> PreTrainedTokenizerFast:
    template_only = build_tokenizer([], vocab_size=300)
    traces = sample_traces(2000, TRAIN_SEED)
    return build_tokenizer([render(t.problem, template_only) + t.response for t in traces], vocab_size=600)


def fresh_model(tokenizer: PreTrainedTokenizerFast) -> Qwen2ForCausalLM:
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=4 * HEAD_DIM,
        intermediate_size=448,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        initializer_range=0.05,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen2ForCausalLM(config)
    write_induction(model)
    return model


@torch.no_grad()
def write_induction(model: Qwen2ForCausalLM, fast: int = 4) -> None:
    """Head h of layer 0 copies the token ``LOOK_BACK[h]`` places back into a subspace of its own. The first two heads
    of layer 1 look for the current token in the first two subspaces and copy the token at the place where they find it.

    Looking back is done by the ``fast`` rotary pairs and the biases, matching by the slow pairs.
    """
    hidden, half = model.config.hidden_size, HEAD_DIM // 2
    frequency = model.model.rotary_emb.inv_freq[:fast]
    slow = [i for i in range(HEAD_DIM) if i % half >= fast]
    first, second = (layer.self_attn for layer in model.model.layers[:2])
    for h, offset in enumerate(LOOK_BACK):
        rows = slice(h * HEAD_DIM, (h + 1) * HEAD_DIM)
        basis = torch.linalg.qr(torch.randn(hidden, hidden))[0]
        read, write = basis[:HEAD_DIM], basis[HEAD_DIM : 2 * HEAD_DIM]
        # Rotary embedding turns pair i by position * frequency[i]; a query turned back by the offset points at the key
        # that stands ``offset`` places behind it.
        query, key = torch.zeros(HEAD_DIM), torch.zeros(HEAD_DIM)
        query[:fast], query[half : half + fast] = (-offset * frequency).cos(), (-offset * frequency).sin()
        key[:fast] = 1
        for proj, bias in ((first.q_proj, query), (first.k_proj, key)):
            proj.weight[rows], proj.bias[rows] = 0, 6 * bias
        first.v_proj.weight[rows], first.o_proj.weight[:, rows] = read, 0.5 * write.T
        if h >= 2:
            continue
        for proj, source in ((second.q_proj, read), (second.k_proj, write)):
            proj.weight[rows] = 0
            proj.weight[rows][slow] = source[: len(slow)]
        second.v_proj.weight[rows], second.o_proj.weight[:, rows] = read, 0.5 * read.T


def train(model: Qwen2ForCausalLM, tokenizer, stage: Stage, batch: int, seed: int, start: float) -> int:
    """Train in place; returns the number of steps taken."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=stage.lr, betas=(0.9, 0.98), weight_decay=0.01)
    short, full = (batches(tokenizer, batch, seed, stage, longest) for longest in (SHORT, 9))
    for step in range(stage.until):
        for group in optimizer.param_groups:
            group["lr"] = stage.lr * schedule(step, stage.steps)
        inputs, targets = next(short if step < stage.short * stage.steps else full)
        loss = loss_of(model, tokenizer, inputs, targets)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % stage.check == 0:
            print(f"step {step + 1:4d}  {time.time() - start:5.0f} s  loss {loss.item():.3f}", end="  ", flush=True)
            if good_enough(model, tokenizer, stage.target):
                return step + 1
    return stage.until


def loss_of(model, tokenizer, inputs: Tensor, targets: Tensor) -> Tensor:
    """The mean cross entropy, where digits count more than other tokens, and the box's first one still more."""
    logits, labels = model(inputs).logits[:, :-1], targets[:, 1:]
    each = cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE, reduction="none")
    weight = weights(labels, tokenizer)
    return (each.view_as(labels) * weight).sum() / weight.sum()


def weights(labels: Tensor, tokenizer) -> Tensor:
    digit = torch.isin(labels, digit_ids(tokenizer))
    first = digit & (labels == tokenizer.convert_tokens_to_ids("{")).roll(1, 1)
    return (labels != IGNORE) * (1 + (DIGIT_WEIGHT - 1) * digit) * (1 + (FIRST_WEIGHT - 1) * first)


def good_enough(model, tokenizer, target: float | None) -> bool:
    """Whether validation answers are read off and the share of right ones reaches ``target``; None is never reached."""
    read = {ask: read_accuracy(model, tokenizer, sample_traces(CHECK_PROBLEMS, VALID_SEED, ask=ask)) for ask in ASKS}
    right = 0.0
    if min(read.values()) >= READ and target:
        right, _ = generated_accuracy(model, tokenizer, sample_problems(CHECK_PROBLEMS, VALID_SEED), do_sample=False)
    print(f"answers read {read['all']:.3f}, {read['last']:.3f}  greedy accuracy {right:.3f}", flush=True)
    return target is not None and min(read.values()) >= READ and right >= target


def schedule(step: int, steps: int, warm: int = 30, floor: float = 0.1) -> float:
    return min(1, (step + 1) / warm) * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * step / steps)))


def batches(tokenizer, size: int, seed: int, stage: Stage, longest: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless (inputs, targets) of chains up to ``longest`` steps; four batches are cut by length, to pad little."""
    seeds = itertools.count(TRAIN_SEED * (1 + seed))
    traces = (t for s in seeds for t in lessons(s, stage) if t.meta["n_steps"] <= longest)
    while True:
        rows = sorted((encode(t, tokenizer) for t in itertools.islice(traces, 4 * size)), key=lambda row: len(row[0]))
        for at in torch.randperm(4).tolist():
            yield collate(rows[at * size : (at + 1) * size], tokenizer.pad_token_id)


def lessons(seed: int, stage: Stage) -> list[Trace]:
    """A hundred traces of a stage's questions and solvers."""
    forms = {
        (ask, arithmetic): sample_traces(100, seed, arithmetic, ask)
        for ask in ASKS
        for arithmetic in (modulo_ten, mistaken)
        if ask == "all" or stage.last
    }
    chosen = []
    for i in range(100):
        ask = "last" if stage.last and random.random() < stage.last else "all"
        chosen.append(forms[ask, mistaken if random.random() < stage.mistaught else modulo_ten][i])
    return chosen


def encode(trace: Trace, tokenizer) -> tuple[list[int], int]:
    """(the whole text's ids, how many of them are the prompt's)."""
    prompt = tokenizer(render(trace.problem, tokenizer)).input_ids
    return [*prompt, *tokenizer(trace.response).input_ids, tokenizer.eos_token_id], len(prompt)


def collate(rows: list[tuple[list[int], int]], pad: int) -> tuple[Tensor, Tensor]:
    """Padded rows, some behind a pad. The loss is on the response and on two pads after it: the pad is a baseline of
    integrated gradients, so its embedding is trained as an input and as an output."""
    width = max(len(ids) for ids, _ in rows) + 3
    inputs, targets = torch.full((len(rows), width), pad), torch.full((len(rows), width), IGNORE)
    for i, (ids, prompt) in enumerate(rows):
        lead = int(torch.randint(0, 2, ()))
        inputs[i, lead : lead + len(ids)] = torch.tensor(ids)
        graded = slice(lead + prompt, lead + len(ids) + 2)
        targets[i, graded] = inputs[i, graded]
    return inputs, targets


def digit_ids(tokenizer) -> Tensor:
    return torch.tensor(tokenizer.convert_tokens_to_ids(list("0123456789")))


@torch.no_grad()
def read_accuracy(model, tokenizer, traces: list[Trace]) -> float:
    """The share of traces in whose box the model reads off every digit, teacher-forced."""
    inputs, _ = collate([encode(t, tokenizer) for t in traces], tokenizer.pad_token_id)
    right = model(inputs).logits[:, :-1].argmax(-1) == inputs[:, 1:]
    answering = (inputs == tokenizer.convert_tokens_to_ids("</think>")).cumsum(1).bool()
    digits = (answering & torch.isin(inputs, digit_ids(tokenizer)))[:, 1:]
    return (right | ~digits).all(1).float().mean().item()


@torch.no_grad()
def generated_accuracy(model, tokenizer, problems: list[Trace], do_sample: bool) -> tuple[float, float]:
    """(the share of right answers, the share of responses without an end within 256 tokens)."""
    texts = [render(p.problem, tokenizer) for p in problems]
    prompts = tokenizer(texts, padding=True, padding_side="left", return_tensors="pt")
    out = model.generate(**prompts, max_new_tokens=MOST_TOKENS, do_sample=do_sample, top_k=0)
    responses = out[:, prompts.input_ids.shape[1] :]
    texts = tokenizer.batch_decode(responses, skip_special_tokens=True)
    right = [t.endswith(f"\\boxed{{{p.answer}}}") for t, p in zip(texts, problems, strict=True)]
    unfinished = ~(responses == tokenizer.eos_token_id).any(1)
    return sum(right) / len(right), unfinished.float().mean().item()


def write_card(args, taken: list[dict[str, Any]], model, tokenizer) -> None:
    begun = f", the first from `{args.init.name}`" if args.init else ""
    stages = []
    for stage, progress in zip(STAGES[-len(taken) :], taken, strict=True):
        shares = f"{stage.last:.0%} | {stage.mistaught:.0%}"
        stages.append(f"| {progress['steps']} of {stage.steps} | {progress['minutes']:.0f} | {shares} |")
    measured = [measure(model, tokenizer, ask) for ask in ASKS]
    card = CARD.format(
        command=f"python scripts/train_toy.py OUT --seed {args.seed}"
        + (f" --init {args.init.name}" if args.init else ""),
        begun=begun,
        threads=torch.get_num_threads(),
        stages="\n".join(stages),
        parameters=sum(p.numel() for p in model.parameters()) / 1e6,
        tokens=len(tokenizer),
        measured="\n".join(f"| {name} | {measured[0][name]:.1%} | {measured[1][name]:.1%} |" for name in measured[0]),
        test_seed=TEST_SEED,
        train_seed=TRAIN_SEED,
    )
    print(card)
    (args.out / "README.md").write_text(card)


def measure(model, tokenizer, ask: str) -> dict[str, float]:
    """The rows of the card for one form of question."""
    problems = sample_problems(CARD_PROBLEMS, TEST_SEED, ask)
    greedy, unfinished = generated_accuracy(model, tokenizer, problems, do_sample=False)
    sampled, unfinished_sampled = generated_accuracy(model, tokenizer, problems, do_sample=True)
    right = sample_traces(CARD_PROBLEMS, TEST_SEED, ask=ask)
    mistakes = sample_mistakes(CARD_PROBLEMS, TEST_SEED, ask)
    return {
        "accuracy, greedy": greedy,
        "accuracy, sampled at temperature 1": sampled,
        f"unfinished after {MOST_TOKENS} tokens, greedy": unfinished,
        f"unfinished after {MOST_TOKENS} tokens, sampled": unfinished_sampled,
        "answer read off a right trace, every digit": read_accuracy(model, tokenizer, right),
        "the wrong answer read off a trace whose mistake is carried on": read_accuracy(model, tokenizer, mistakes),
    }


CARD = """# The toy world's base model

A Qwen2 model of {parameters:.2f} million parameters, stored in float32, with a byte-level BPE tokenizer of {tokens}
tokens, trained on `segrl.toy.sample_traces`. It answers both questions, for all values and for the last one: it reads
the answer off a trace almost without fault and is still unsure of its arithmetic: what reinforcement learning can mend.

It was trained by one command,

    {command}

in stages, each from the one before{begun}; {threads} thread(s) of a machine shared with other
work, accuracy checks in the minutes. Some lessons are by a solver who takes products by seven for products by three.

| steps of the schedule | minutes | lessons that ask for the last value | lessons by the mistaken solver |
|---|---|---|---|
{stages}

| on 500 problems of seed {test_seed} | all values | the last value |
|---|---|---|
{measured}

Training drew its traces from the seeds from {train_seed} on; take smaller ones for problems it has not seen.
"""


if __name__ == "__main__":
    main()

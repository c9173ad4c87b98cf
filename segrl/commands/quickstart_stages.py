"""The stages of ``segrl quickstart``: each a command, what it is for, and how long it takes."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from omegaconf import DictConfig

TOY_PROMPT, USERS_PROMPT = 192, 512  # tokens of a problem of the toy world, and of another
SCORES = ("base", "sft", "grpo")  # folders of ``out/scores``, in the order of training
MISTAKES = 100  # planted ones that attribution is to find
UNWEIGHED = {"method=uniform", "segrl.rule=uniform"}
FINDS = "contrast, prefix gain"  # the arm of docs/truth.md that finds them


class Stage(NamedTuple):
    """A command of the quickstart. ``seconds``: with the bundled model, on two quiet cores."""

    name: str
    command: str
    arguments: Sequence[str]
    purpose: str
    seconds: int

    def __str__(self) -> str:
        return shlex.join(["segrl", self.command, *self.arguments])


def stages_of(config: DictConfig, backend: str, trained: bool) -> list[Stage]:
    """The stages in order; without those of SFT and GRPO where verl is missing."""
    before = [evaluation(config, backend, "base"), *preparation(config, backend)]
    return [*before, *(training(config, backend) if trained else []), *looking(config, trained)]


def preparation(config: DictConfig, backend: str) -> list[Stage]:
    """The stages from problems to selected thoughts of the model's own right solutions."""
    out, model = Path(config.out), model_of(config)
    samples, traces = f"traces={out / 'samples'}", f"traces={harvested(out)}"
    learning = [f"data_path={out / 'problems.jsonl'}", *sampling(config, backend), f"generation.n={config.samples}"]
    return [
        Stage(
            "generate",
            "generate",
            [*model, *learning, f"out={out / 'samples'}"],
            "Sample solutions of the model's own to learn from.",
            16,
        ),
        Stage(
            "harvest",
            "harvest",
            [samples, "keep=correct", f"out={out / 'harvest'}"],
            "Keep the shortest right solution of each problem.",
            2,
        ),
        Stage(
            "attribute",
            "attribute",
            [*model, traces, f"out={out / 'attributions'}"],
            "Attribute the answer to the tokens of the solution, for the page.",
            6,
        ),
        Stage(
            "select",
            "select",
            [*model, traces, f"out={out / 'selections.parquet'}"],
            "Score each thought by what the answer gains from it, and keep the thoughts that matter.",
            8,
        ),
    ]


def training(config: DictConfig, backend: str) -> list[Stage]:
    """Selective SFT, GRPO, and an evaluation after each."""
    return [
        Stage("sft", "sft", sft(config), "Train on the kept thoughts alone: selective SFT on verl.", 23),
        evaluation(config, backend, "sft"),
        Stage("grpo", "grpo", grpo(config), "Train on rewards: GRPO on verl with segment-weighted advantages.", 123),
        evaluation(config, backend, "grpo"),
    ]


def looking(config: DictConfig, trained: bool) -> list[Stage]:
    """What attribution finds where the truth is known, one response explained, and the page."""
    out, model = Path(config.out), model_of(config)
    traces = f"traces={harvested(out)}"
    look = [*model, traces, f"selections={out / 'selections.parquet'}", f"attributions={out / 'attributions'}"]
    if trained:
        look += [f"metrics={out / 'logs' / 'grpo.jsonl'}"]
    if trained and not UNWEIGHED & {*shlex.split(config.for_grpo)}:  # which leaves no rollouts to look at
        look += [f"rollouts={out / 'grpo' / 'rollouts'}"]
    page = Stage("report", "report", [*look, f"out={out / 'report.html'}"], "Write all of it as a page.", 4)
    picture = f"page={out / 'trace.svg'}"
    if config.model_path:
        purpose = "Draw one solution, and the thoughts that carried its answer."
        return [Stage("explain", "explain", [*model, traces, picture], purpose, 5), page]
    finding = ["world=toy", "world_options={wrong: true}", f'measures=["{FINDS}",random]', f"limit={MISTAKES}"]
    purpose = f"Look for {MISTAKES} planted mistakes: does attribution find them?"
    return [
        Stage("mistakes", "truth", [*finding, f"out={out / 'mistakes'}"], purpose, 8),
        Stage("explain", "explain", [picture], "Draw a wrong response, and the thought that misled it.", 5),
        page,
    ]


# --- arguments -------------------------------------------------------------------------------------------------------


def evaluation(config: DictConfig, backend: str, name: str) -> Stage:
    """The evaluation of the model as it is, after SFT or after GRPO: always on the same problems."""
    out, purpose = Path(config.out), "Evaluate the model on problems that it does not learn from"
    model = model_of(config) if name == "base" else [f"model_path={out / name / 'model'}"]
    testing = [f"data_path={out / 'test.jsonl'}", *sampling(config, backend), f"generation.n={config.test_samples}"]
    when = {"base": "before any training", "sft": "after SFT", "grpo": "after GRPO"}[name]
    arguments = [*model, *testing, f"out={out / 'scores' / name}"]
    return Stage(f"{name}-scores", "evaluate", arguments, f"{purpose}, {when}.", 34)


def model_of(config: DictConfig) -> list[str]:
    return [f"model_path={config.model_path}"] if config.model_path else []


def harvested(out: Path) -> Path:
    return out / "harvest" / "traces.parquet"


def sampling(config: DictConfig, backend: str) -> list[str]:
    """The keys of sampling. The bundled model is not compiled, which takes longer than its answers."""
    eagerly = backend == "vllm" and not config.model_path
    arguments = [f"backend={backend}", f"generation.max_tokens={config.max_tokens}", f"generation.seed={config.seed}"]
    return arguments + (["generation.vllm.engine.enforce_eager=true"] if eagerly else [])


def sft(config: DictConfig) -> list[str]:
    out = Path(config.out)
    arguments = [*model_of(config), f"traces={harvested(out)}", f"selections={out / 'selections.parquet'}"]
    arguments += [*(["preset=toy_cpu"] if on_cpu() else ["trainer.logger=[console]"])]
    arguments += [f"out={out / 'sft'}", f"data.train_batch_size={config.batch}"]
    if config.model_path:
        arguments += ["optim.lr=1e-5", f"data.max_length={USERS_PROMPT + config.max_tokens}"]
    return [*arguments, *shlex.split(config.for_sft)]


def grpo(config: DictConfig) -> list[str]:
    out = Path(config.out)
    arguments = [f"model_path={out / 'sft' / 'model'}", f"data_path={out / 'problems.jsonl'}", f"out={out / 'grpo'}"]
    arguments += [f"data.train_batch_size={config.batch}", f"segrl.dump_dir={out / 'grpo' / 'rollouts'}"]
    arguments += [f"trainer.total_training_steps={config.steps}", f"trainer.save_freq={config.steps}"]
    arguments += ["trainer.logger=[console,file]"]
    own = config.model_path or config.data_path
    if own:
        arguments += ["data.filter_overlong_prompts=true"]
    if own or not on_cpu():  # preset=toy_cpu has the bundled model's own lengths
        prompt = USERS_PROMPT if own else TOY_PROMPT
        arguments += [f"data.max_prompt_length={prompt}", f"data.max_response_length={config.max_tokens}"]
        arguments += [f"actor_rollout_ref.rollout.max_model_len={prompt + config.max_tokens}"]
    if config.model_path:
        arguments += ["actor_rollout_ref.actor.optim.lr=1e-6"]
    # As in SFT before, all weights are trained, not adapters.
    gpu = ["preset=one_gpu", "actor_rollout_ref.model.lora_rank=0"]
    return [*(["preset=toy_cpu"] if on_cpu() else gpu), *arguments, *shlex.split(config.for_grpo)]


def on_cpu() -> bool:
    import torch

    return not torch.accelerator.is_available()

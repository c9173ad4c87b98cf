"""``segrl cost``: what attribution adds to a training step, and what a command takes, without loading the model."""

from __future__ import annotations

from omegaconf import DictConfig

from segrl.commands.common import attributor_path, model_path
from segrl.commands.config import compose
from segrl.commands.planning import PLANS, gpu_named, read_config
from segrl.cost.hours import estimate
from segrl.cost.shape import shape_of
from segrl.launch import editable
from segrl.resolving import near


def cost(config: DictConfig) -> None:
    """Print seconds and memory of a step's attribution, or a command's plan, from the model's config.json alone."""
    if config.command:
        print_plan(config)
        return
    gpu = gpu_named(config.gpu)
    step = estimate(
        shape_of(read_config(model_path(config))),
        config.length,
        config.rollouts,
        config.gpus,
        nodes=config.nodes,
        share=config.share,
        checkpointing=config.checkpointing,
        certificate_every=config.certificate_every,
        tokens_per_forward=config.tokens_per_forward,
        tflops=gpu.tflops,
        utilisation=config.utilisation,
    )
    print(
        f"{config.rollouts} rollouts of {config.length} tokens, {config.nodes} node(s), share {config.share:g}, "
        f"{config.gpus} x {config.gpu} at {100 * config.utilisation:.0f}% of its peak\n"
        f"  update_actor  {_seconds(step.update_seconds)}\n"
        f"  attribution   {_seconds(step.attribution_seconds)}, {step.units:.2f} x update_actor, if every rollout of "
        f"the share is worth attributing\n"
        f"  memory        {step.memory_gib:.2g} GiB of activations a GPU while it runs, beyond the weights"
    )


def print_plan(config: DictConfig) -> None:
    """Print what a command would take on the GPU that its config or ``gpu`` names, and refuse what does not fit."""
    if config.command not in PLANS:
        raise ValueError(f"command={config.command!r}{near(config.command, PLANS)}")
    planned = editable(compose(config.command, list(config.overrides)))
    path = (attributor_path if config.command == "attribute" else model_path)(planned)
    details = read_config(path)
    plan = PLANS[config.command](planned, shape_of(details), gpu_named(planned.get("gpu") or config.gpu), details)
    if plan is not None:
        print(plan.lines())
        plan.check()


def _seconds(value: float) -> str:
    return f"{value:.2g} s" if value < 100 else f"{value:,.0f} s"

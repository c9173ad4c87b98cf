"""``segrl cost``: what attribution adds to a training step, and what a command takes, without loading the model."""

from __future__ import annotations

from importlib import import_module

from omegaconf import DictConfig

from segrl.commands.common import model_path
from segrl.commands.config import ON_VERL
from segrl.commands.planning import FORWARDS, PLANS, gpu_named, hardware_of, planned_model, read_config
from segrl.cost.hours import estimate
from segrl.cost.shape import shape_of
from segrl.launch import editable

NO_PLAN = {  # command -> the key that decides, and why
    "evaluate": ("backend", "it runs no model here"),
    "select": ("measure", f"{', '.join(FORWARDS)} have one, and of gradients `segrl cost attribute` has"),
}


def cost(config: DictConfig) -> None:
    """Print seconds and memory of a step's attribution, from the model's config.json alone."""
    gpu = gpu_named(config.gpu)
    step = estimate(
        shape_of(read_config(model_path(config))),
        config.length,
        config.rollouts,
        config.gpus,
        nodes=config.nodes,
        share=config.share,
        checkpointing=config.checkpointing,
        path=config.path,
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


def print_plan(config: DictConfig, command: str) -> None:
    """Print what a command would take on the GPU that ``gpu`` names, else on this machine; refuse what does not fit."""
    config = editable(config)
    if command in ON_VERL:
        import_module(f"segrl.commands.{command}").complete(config)
    details = read_config(planned_model(command, config))
    hardware = gpu_named(config.gpu) if config.gpu else hardware_of(config)
    if hardware is None:
        raise ValueError("no GPU is here to plan for; name one, like gpu=h100")
    plan = PLANS[command](config, shape_of(details), hardware, details)
    if plan is None:
        key, why = NO_PLAN[command]
        raise ValueError(f"{key}={config[key]} has no plan: {why}")
    print(plan.lines())
    plan.check()


def _seconds(value: float) -> str:
    return f"{value:.2g} s" if value < 100 else f"{value:,.0f} s"

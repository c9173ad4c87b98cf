"""``segrl cost``: seconds and memory that attribution adds to a training step, without loading the model."""

from __future__ import annotations

import json
from typing import Any

from omegaconf import DictConfig

from segrl.credit.cost import TFLOPS, estimate, shape_of
from segrl.resolving import near


def cost(config: DictConfig) -> None:
    """Print seconds and memory of a step's attribution, from the model's config.json alone."""
    from segrl.commands.common import model_path

    if config.gpu not in TFLOPS:
        raise ValueError(f"gpu={config.gpu!r}{near(config.gpu, TFLOPS)}")
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
        tflops=TFLOPS[config.gpu],
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


def read_config(path: str) -> dict[str, Any]:
    """config.json of a folder, or of a hub id, of which that one small file is fetched."""
    from segrl.loading import local_folder

    local = local_folder(path)
    if local is None:
        from transformers import AutoConfig

        return AutoConfig.from_pretrained(path).to_dict()
    file = local / "config.json"
    if not file.is_file():
        raise FileNotFoundError(f"{local} holds no config.json")
    return json.loads(file.read_text(encoding="utf-8"))


def _seconds(value: float) -> str:
    return f"{value:.2g} s" if value < 100 else f"{value:,.0f} s"

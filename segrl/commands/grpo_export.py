"""What ``segrl grpo`` leaves: the last checkpoint as a plain Hugging Face folder, and room on the disk for it.

It takes the last one, not the best of the validations: on thirty problems luck decides which step is best.
Every checkpoint that is kept holds its model too, in ``actor/huggingface``.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from omegaconf import DictConfig

from segrl.cost.disk import checkpoint_bytes
from segrl.cost.shape import shape_of
from segrl.data.files import replacing_folder
from segrl.loading import weight_files
from segrl.sft.export import base_dtype, finish_weights, lora_alpha
from segrl.sft.space import EXPORTED, bytes_taken, check_room, check_saved
from segrl.sft.stages import TRACKER
from segrl.verl.checks import model_config

CONTENTS = "actor_rollout_ref.actor.checkpoint.save_contents"


def check_disk(config: DictConfig) -> None:
    """Refuse to start where the checkpoints would hold no model, or the disk no checkpoints."""
    if config.trainer.save_freq < 1:
        return
    check_saved(config, CONTENTS)
    model, contents = config.actor_rollout_ref.model, config.actor_rollout_ref.actor.checkpoint.save_contents
    # verl writes a new checkpoint before it removes the last one, if it keeps one alone.
    kept = max(2, config.trainer.max_actor_ckpt_to_keep or 2)
    try:
        count, place = shape_of(model_config(model).to_dict()).parameters, config.trainer.default_local_dir
    except ValueError:
        return  # a model of an unknown kind, which the plan has named
    total = kept * checkpoint_bytes(count, contents, bool(model.lora_rank)) + EXPORTED * count
    check_room(total - bytes_taken(place), total, place, CONTENTS)


def export(config: DictConfig) -> str:
    """Write ``out/model``, whole or not at all; the sentence that says where the trained model is."""
    checkpoints, model = Path(config.trainer.default_local_dir), Path(config.out) / "model"
    if not (checkpoints / TRACKER).exists():
        return f"no checkpoint was saved, so there is no trained model; trainer.save_freq={config.trainer.save_freq}"
    step = (checkpoints / TRACKER).read_text().strip()
    saved = checkpoints / f"global_step_{step}" / "actor" / "huggingface"
    if not weight_files(saved):
        return f"there is no model in {saved}, which only checkpoints of fsdp2 with hf_model have; nothing was exported"
    trained = config.actor_rollout_ref.model
    with replacing_folder(model, "config.json") as draft:
        shutil.copytree(saved, draft, dirs_exist_ok=True)
        finish_weights(draft, base_dtype(trained.path), lora_alpha(trained))
    return f"trained model, of step {step}: {model}"

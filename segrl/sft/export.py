"""The last checkpoint -> a plain Hugging Face folder: weights, tokenizer, chat template, and a model card."""

from __future__ import annotations

import json
import shutil
from importlib.metadata import version
from pathlib import Path

import torch
from omegaconf import DictConfig
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

import segrl
from segrl.data.files import replacing_folder
from segrl.data.records import how_made
from segrl.loading import weight_files
from segrl.sft.dataset import SelectiveDataset
from segrl.sft.rows import reselecting
from segrl.sft.stages import Stage

PEFT = "base_model.model."


def export(config: DictConfig, steps: int, stage: Stage, dataset: SelectiveDataset) -> Path:
    """Write ``config.model_out``, whole or not at all."""
    saved = Path(config.trainer.default_local_dir) / f"global_step_{steps}" / "huggingface"
    if not weight_files(saved):
        raise FileNotFoundError(f"verl ended well, but there is no model in {saved}; is hf_model saved?")
    model = Path(config.model_out)
    try:
        with replacing_folder(model, "config.json") as draft:
            shutil.copytree(saved, draft, dirs_exist_ok=True)
            finish_weights(draft, base_dtype(config.model.path), lora_alpha(config.model))
            dataset.tokenizer.save_pretrained(draft)
            (draft / "README.md").write_text(card(config, steps, stage, dataset))
    except (OSError, SafetensorError) as error:
        why = error.args[0][0][-1] if isinstance(error, shutil.Error) else error
        raise OSError(f"{model} was not written ({why}); its checkpoint stays, the same command exports it") from error
    return model


def lora_alpha(model: DictConfig) -> float:
    """The adapters' scale in training; verl takes it from ``lora_adapter_path`` where one is given."""
    if model.lora_adapter_path is None:
        return model.lora_alpha
    from transformers.utils import cached_file

    return json.loads(Path(cached_file(model.lora_adapter_path, "adapter_config.json")).read_text())["lora_alpha"]


def finish_weights(folder: Path, dtype: torch.dtype | None, alpha: float) -> None:
    """Merge adapters into their layers and cast all weights to the base model's dtype: verl saves float32."""
    files = sorted(folder.glob("*.safetensors"))
    shards = {file: load_file(file) for file in files}
    if any(PEFT in name for shard in shards.values() for name in shard):
        merged = merged_weights({name: weight for shard in shards.values() for name, weight in shard.items()}, alpha)
        for file in [*files, *folder.glob("*.safetensors.index.json")]:
            file.unlink()
        shards = {folder / "model.safetensors": merged}
    for file, shard in shards.items():
        cast = {name: weight.to(dtype or weight.dtype) for name, weight in shard.items()}
        save_file(cast, file, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config.pop("torch_dtype", None)
    config["dtype"] = str(dtype or torch.float32).removeprefix("torch.")
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def base_dtype(model_path: str) -> torch.dtype | None:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(model_path).dtype


def merged_weights(weights: dict[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """The weights with LoRA's matrices added to those they stand beside, under the names of the base model."""
    merged = {}
    for name, weight in weights.items():
        layer, base, kind = name.removeprefix(PEFT).partition(".base_layer")
        if base and kind == ".weight":
            down = weights[f"{PEFT}{layer}.lora_A.default.weight"]
            up = weights[f"{PEFT}{layer}.lora_B.default.weight"]
            weight = (weight.float() + alpha / len(down) * (up.float() @ down.float())).to(weight.dtype)
        if ".lora_" not in name:
            merged[layer + kind] = weight.contiguous()
    return merged


def card(config: DictConfig, steps: int, stage: Stage, dataset: SelectiveDataset) -> str:
    """A model card: what was trained on what, and how."""
    earlier = [Stage(**settings) for settings in config.stages[: stage.number - 1]]
    weighting = f", weighed by the rule {config.segrl.rule}" if stage.mode == "soft" else ""
    facts = {
        "trained from": config.base_model,
        **{
            f"stage {past.number}": f"mode {past.mode}, {past.epochs} epochs, learning rate {past.lr}"
            for past in earlier
        },
        f"stage {stage.number}": f"mode {stage.mode}{weighting}",
        "data": f"{config.traces} ({len(dataset)} traces, hash {dataset.fingerprint})",
        **({"selections": "none: the whole response counts"} if stage.mode == "full" else selected(config)),
        "tokens": f"{dataset.kept} of {dataset.tokens} response tokens kept ({dataset.kept / dataset.tokens:.1%})",
        "normalised over": config.segrl.normalise,
        "steps": f"{steps} in {stage.epochs} epochs, batches of {config.data.train_batch_size}",
        "learning rate": f"{stage.lr}, {config.optim.lr_scheduler_type}",
        "segrl": segrl.__version__,
        "verl": version("verl"),
        "torch": torch.__version__,
    }
    lines = "\n".join(f"| {name} | {value} |" for name, value in facts.items())
    front = json.dumps({"library_name": "transformers", "base_model": config.base_model, "tags": ["segrl"]})
    return f"---\n{front}\n---\n\n# {Path(config.out).name}\n\nTrained with `segrl sft`.\n\n| | |\n|---|---|\n{lines}\n"


def selected(config: DictConfig) -> dict[str, object]:
    """The file of selections and the measure and thresholds that made them, as far as they are known."""
    unknown = dict.fromkeys(("measure", "tau", "beta"), "as in the selections")
    again = reselecting(config.selections, config.tau, config.beta) or {}
    return {"selections": config.selections, **unknown, **how_made(config.selections), **again}

"""The stages of a training, how many steps each takes, and the checks before a stage is resumed."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from segrl.data import shards
from segrl.launch import sharing_data
from segrl.resolving import near
from segrl.sft.masking import MODES

KEYS = ("mode", "epochs", "lr", "steps")
TRACKER = "latest_checkpointed_iteration.txt"  # verl's, written last
# What may differ between a start and its resumption: where it runs and what it keeps, but not what is trained.
PLACES = ("out", "model_out", "node_rank", "master", "gpu", "trainer.default_local_dir", "trainer.logger")
ATTRIBUTING = ("executor", "workers", "shard", "device")  # attribution is over when a stage begins
KEPT = ("trainer.resume_mode", "trainer.save_freq", "trainer.test_freq", "trainer.max_ckpt_to_keep")
SIZES = ("data.num_workers", "data.max_token_len_per_gpu", "model.enable_gradient_checkpointing")
ATTENTION = ("model.use_remove_padding", "model.override_config.attn_implementation")
FREE = (*ATTENTION, *PLACES, *ATTRIBUTING, *KEPT, *SIZES, "trainer.project_name", "trainer.experiment_name")


@dataclass(frozen=True)
class Stage:
    number: int
    mode: str
    epochs: int
    lr: float
    steps: int | None = None


def stages_of(config: DictConfig) -> list[Stage]:
    """The stages of the config; without ``stages`` a single one, of the config's mode, epochs and learning rate."""
    defaults = {
        "mode": config.mode,
        "epochs": config.trainer.total_epochs,
        "lr": config.optim.lr,
        "steps": config.trainer.total_training_steps,
    }
    if config.stages is None:
        return [Stage(1, **defaults)]
    if config.trainer.total_training_steps is not None:
        raise ValueError("trainer.total_training_steps is one number for all stages; give each stage its own steps=")
    stages = []
    for number, settings in enumerate(config.stages, 1):
        unknown = [key for key in settings if key not in KEYS]
        if unknown:
            raise ValueError(f"stage {number} has a key {unknown[0]!r}{near(unknown[0], KEYS)}")
        stages.append(Stage(number, **{**defaults, **settings}))
        if stages[-1].mode not in MODES:
            raise ValueError(f"stage {number}: mode={stages[-1].mode!r}{near(stages[-1].mode, MODES)}")
    if not stages:
        raise ValueError("stages=[] has no stage; leave it out for one, or give [{mode: full, epochs: 7, lr: 1e-5}]")
    if len(stages) > 1 and config.trainer.nnodes > 1:
        raise ValueError(
            f"{len(stages)} stages on {config.trainer.nnodes} machines: the others cannot know when the first has "
            "exported a stage's model; run the stages one by one, each from the model of the last"
        )
    return stages


def stage_config(config: DictConfig, stage: Stage, stages: list[Stage]) -> DictConfig:
    """verl's config of a stage; the model of the last stage lies in ``out/model``."""
    staged = config.copy()
    OmegaConf.set_struct(staged, False)
    staged.mode, staged.trainer.total_epochs, staged.optim.lr = stage.mode, stage.epochs, stage.lr
    staged.trainer.total_training_steps = stage.steps
    staged.trainer.default_local_dir = str(Path(config.trainer.default_local_dir).absolute() / f"stage-{stage.number}")
    staged.model_out = str(model_folder(config, stage, stages))
    staged.base_model = config.model_path
    staged.stages = [asdict(stage) for stage in stages]
    if stage.number > 1:
        staged.model.lora_adapter_path = None  # merged into the model that the last stage exported
    return staged


def model_folder(config: DictConfig, stage: Stage, stages: list[Stage]) -> Path:
    return Path(config.out).absolute() / ("model" if stage == stages[-1] else f"model-{stage.number}")


def ranks(config: DictConfig) -> int:
    """How many ranks share the data: all processes, those that share a sequence counted once."""
    return sharing_data(config.nproc * config.trainer.nnodes, config.engine.get("ulysses_sequence_parallel_size", 1))


def planned_steps(rows: int, config: DictConfig) -> int:
    """The steps that verl makes of ``rows`` rows: all ranks take equally many, and no batch is partly filled."""
    epochs, batch = config.trainer.total_epochs, config.data.train_batch_size
    steps = steps_per_epoch(rows, config) * epochs
    planned = config.trainer.total_training_steps or steps
    if not 0 < planned <= steps:
        raise ValueError(
            f"{rows} traces in batches of data.train_batch_size={batch} on {ranks(config)} ranks make {steps} steps in "
            f"{epochs} epochs, {planned or 'at least one'} must be made: give more epochs or smaller batches"
        )
    return planned


def steps_per_epoch(rows: int, config: DictConfig) -> int:
    batch = config.data.train_batch_size
    if min(batch, config.nproc) < 1:
        raise ValueError(f"data.train_batch_size={batch}, nproc={config.nproc}: expected 1 or more of both")
    if batch % ranks(config):
        raise ValueError(
            f"data.train_batch_size={batch} cannot be shared by {ranks(config)} ranks; give a multiple, or fewer ranks "
            "with nproc=; with flash-attn, which `segrl doctor` looks for, ranks would share a sequence"
        )
    return rows // ranks(config) // (batch // ranks(config))


def executed_steps(config: DictConfig) -> int:
    """The step of the last whole checkpoint; verl saves one at its last step."""
    tracker = Path(config.trainer.default_local_dir) / TRACKER
    return int(tracker.read_text()) if tracker.exists() else 0


def mend_position(config: DictConfig, rows: int) -> None:
    """Delete the data loader's state of a checkpoint at the end of an epoch: verl would resume with an empty loader and
    lose the next epoch. Without the file verl starts that epoch at its beginning.
    """
    step = executed_steps(config)
    if step and config.trainer.resume_mode == "auto" and step % steps_per_epoch(rows, config) == 0:
        for file in Path(config.trainer.default_local_dir, f"global_step_{step}").glob("data_*.pt"):
            file.unlink(missing_ok=True)
    if step:
        print(f"going on after step {step}", flush=True)


def forget_checkpoints(config: DictConfig) -> None:
    """Delete all checkpoints but the last whole one. verl goes on from that, and deletes only those of its own run."""
    step = executed_steps(config)
    if config.trainer.resume_mode == "auto" and config.node_rank == 0:
        for folder in Path(config.trainer.default_local_dir).glob("global_step_*"):
            if folder.name != f"global_step_{step}":
                shutil.rmtree(folder)


def claim_stage(config: DictConfig, stage: Stage, data: str) -> None:
    """Write the stage's data and settings to a file; raise where the file holds those of another training."""
    file = Path(config.out) / f"stage-{stage.number}.json"
    settings = {"data": data, **_flat(OmegaConf.to_container(config, resolve=True))}
    settings = json.loads(json.dumps({key: value for key, value in settings.items() if key not in FREE}))
    changed = shards.claim(file, settings)
    if changed:
        key = "data" if "data" in changed else min(changed)
        old, new = changed[key]
        raise ValueError(
            f"{config.out} holds another training: {key} was {old!r}, now {new!r}; "
            "choose another out=, or remove the folder"
        )


def check_unclaimed(out: str, old: dict[str, Any], new: dict[str, Any]) -> None:
    """Refuse to make other selections in a folder where a training has begun on the old ones."""
    changed = sorted(name for name in new if old.get(name) != new[name])
    if old and changed and any(Path(out).glob("stage-*.json")):
        raise ValueError(
            f"{out} holds a training on other selections: {changed[0]} was {old.get(changed[0])!r}, now "
            f"{new[changed[0]]!r}; choose another out=, or remove the folder"
        )


def _flat(node: Any, name: str = "") -> dict[str, Any]:
    """The nested mapping as a flat one with dotted keys."""
    if not isinstance(node, dict):
        return {name: node}
    return {key: value for k, v in node.items() for key, value in _flat(v, f"{name}.{k}".lstrip(".")).items()}


def torchrun(config: DictConfig) -> list[str]:
    """The command of torchrun: on this machine alone, or as machine ``node_rank`` of ``trainer.nnodes``."""
    command = ["torch.distributed.run", f"--nproc-per-node={config.nproc}"]
    if config.trainer.nnodes == 1:
        return [*command, "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "--local-addr=127.0.0.1"]
    host, _, port = (config.master or "").partition(":")
    if not port:
        raise ValueError(f"trainer.nnodes={config.trainer.nnodes} needs master=host:port of the first machine")
    nodes = [f"--nnodes={config.trainer.nnodes}", f"--node-rank={config.node_rank}"]
    return [*command, *nodes, f"--master-addr={host}", f"--master-port={port}"]

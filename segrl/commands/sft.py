"""``segrl sft``: from traces to a trained model, stage by stage, on verl's own SFT trainer.

Each stage is one run of ``verl.trainer.sft_trainer`` on ``segrl.sft.dataset.SelectiveDataset``. The same command
goes on where it was stopped: a stage that has its model is left out, verl goes on from its last checkpoint.
"""

from __future__ import annotations

from itertools import groupby
from math import gcd
from pathlib import Path

import torch
from omegaconf import DictConfig
from rich.text import Text

from segrl.commands.cold_start import select_here, selects_here
from segrl.commands.common import say
from segrl.commands.config import needed
from segrl.commands.planning import announce, hours_of_stage, say_attention
from segrl.launch import check_device, editable, loggers, on_cpu, run_verl
from segrl.loading import check_weights, load_tokenizer
from segrl.report import draw
from segrl.sft.dataset import SelectiveDataset, save_examples
from segrl.sft.export import export
from segrl.sft.space import check_saved, check_space, full_disk
from segrl.sft.stages import (
    Stage,
    claim_stage,
    executed_steps,
    forget_checkpoints,
    mend_position,
    model_folder,
    planned_steps,
    stage_config,
    stages_of,
    torchrun,
)

SHOWN = 1500  # tokens of a row


def main(config: DictConfig) -> int:
    """Check, say what will be trained, train, export. The exit code."""
    needed(config, "traces", "out")
    config = editable(config)
    config.trainer.logger = loggers(config.trainer.logger)
    check_device(config)
    check_weights(config.model.path)
    check_saved(config)
    say_attention(config.model, config.engine.ulysses_sequence_parallel_size)
    complete(config)
    announce("sft", config)
    stages = stages_of(config)
    if selects_here(config, stages):
        check_beforehand(config, stages)
        select_here(config)
    for stage in stages:
        code = train(stage_config(config, stage, stages), stage)
        if code:
            return code
        config.model.path = str(model_folder(config, stage, stages))
    if config.node_rank == 0:
        say(f"trained model: {config.model.path}")
    return 0


def complete(config: DictConfig) -> None:
    """Set the number of ranks where none is given, and where the batch has no row for each, how many share one, which
    takes packed rows.
    """
    if config.nproc is None:
        config.nproc = 1 if on_cpu() else torch.cuda.device_count()
    processes, batch = config.nproc * config.trainer.nnodes, config.data.train_batch_size
    if config.engine.get("ulysses_sequence_parallel_size") == 1 and config.model.use_remove_padding and processes:
        config.engine.ulysses_sequence_parallel_size = processes // gcd(processes, batch)


def check_beforehand(config: DictConfig, stages: list[Stage]) -> None:
    """Refuse what a training of these traces would be refused for, before they are scored."""
    if config.trainer.nnodes > 1:
        raise ValueError(
            f"trainer.nnodes={config.trainer.nnodes}: each machine would score all traces; run `segrl select "
            "executor=ray` and give what it writes as selections="
        )
    if config.data.val_files:
        raise ValueError(
            "data.val_files needs selections too, and only the training traces would be scored; run `segrl select` on "
            "both files and give what it writes as selections=, or take mode=full"
        )
    untrained = [staged for stage in stages if not is_trained(staged := stage_config(config, stage, stages))]
    check_space(*untrained)
    whole = [staged for staged in untrained if staged.mode != "pruned"]  # how long pruned rows are is not known yet
    if not whole:
        return
    rows = whole[0].copy()
    rows.mode = "full"
    dataset = rows_of(rows, "train", load_tokenizer(config.model.path))
    check_rows(dataset, rows)
    for staged in whole:
        planned_steps(len(dataset), staged)
    for note in dataset.notes:
        say(note)


def is_trained(staged: DictConfig) -> bool:
    return (Path(staged.model_out) / "config.json").exists()


def train(config: DictConfig, stage: Stage) -> int:
    """Train one stage and export its model to ``config.model_out``. The exit code."""
    tokenizer = load_tokenizer(config.model.path)
    dataset = rows_of(config, "train", tokenizer)
    check_rows(dataset, config)
    if config.data.val_files:
        check_rows(rows_of(config, "val", tokenizer), config)
    steps = planned_steps(len(dataset), config)
    say(summary(dataset, steps, stage) + hours_of_stage(config, [len(one.ids_L) for one in dataset.examples], steps))
    trained = is_trained(config)
    if not trained:
        check_space(config)
    claim_stage(config, stage, dataset.fingerprint)
    if trained:
        print(f"stage {stage.number} is trained already: {config.model_out}")
        return 0
    if executed_steps(config) < steps:
        first_row(dataset)
        code = run(config, stage, dataset)
        if code:
            full_disk(config.out)
            return code
    executed = executed_steps(config)
    if executed != steps:
        print(f"segrl sft: {steps} steps were planned and {executed} executed; nothing was exported")
        return 1
    if config.node_rank == 0:
        export(config, steps, stage, dataset)
    return 0


def rows_of(config: DictConfig, part: str, tokenizer) -> SelectiveDataset:
    """The rows that verl's trainer will read of ``data.train_files`` or ``data.val_files``."""
    most = config.data.get(f"{part}_max_samples", -1)
    return SelectiveDataset(config.data[f"{part}_files"], tokenizer, config.data, max_samples=most)


def run(config: DictConfig, stage: Stage, dataset: SelectiveDataset) -> int:
    """Run verl's trainer, from its last checkpoint where it has one; its exit code."""
    name = f"stage-{stage.number}"
    config.segrl.rows = str(Path(config.out).absolute() / f"{name}.safetensors")
    save_examples(config.segrl.rows, dataset.examples)
    mend_position(config, len(dataset))
    forget_checkpoints(config)
    return run_verl([*torchrun(config), "-m", "verl.trainer.sft_trainer"], config, name)


# --- what is said before it starts -----------------------------------------------------------------------------------


def check_rows(dataset: SelectiveDataset, config: DictConfig) -> None:
    """Refuse rows without a kept token, and a row that is longer than a micro-batch of verl."""
    notes = "".join(f"; {note}" for note in dataset.notes)
    if not len(dataset):
        raise ValueError(f"no token of any trace is kept: nothing would be trained{notes}")
    longest = max(len(example.ids_L) for example in dataset.examples)
    room = config.data.max_token_len_per_gpu * config.engine.get("ulysses_sequence_parallel_size", 1)
    if config.data.use_dynamic_bsz and longest > room:
        raise ValueError(
            f"the longest row has {longest} tokens, a micro-batch holds {room}; raise data.max_token_len_per_gpu, "
            "or lower data.max_length with segrl.too_long=drop or truncate"
        )


def summary(dataset: SelectiveDataset, steps: int, stage: Stage) -> str:
    head = (
        f"stage {stage.number}, {stage.mode} SFT: {len(dataset)} traces, {dataset.tokens} response tokens, "
        f"{dataset.kept} of them kept ({dataset.kept / dataset.tokens:.1%}), {steps} steps"
    )
    return "\n".join([head, *(f"  {note}" for note in dataset.notes)])


def first_row(dataset: SelectiveDataset) -> None:
    draw(lit(dataset.examples[0], dataset.tokenizer))


def lit(example, tokenizer) -> Text:
    """The row as text: kept tokens in bold green, those of a lower soft weight in plain green, the rest dimmed."""
    top = float(example.mask_L.max())
    kinds = ["bold green" if weight >= top else "green" if weight > 0 else "dim" for weight in example.mask_L.tolist()]
    text, at = Text(), 0
    for style, run in groupby(kinds[:SHOWN]):
        end = at + len(list(run))
        text.append(tokenizer.decode(example.ids_L[at:end].tolist()), style)
        at = end
    if len(kinds) > SHOWN:
        text.append(f"\n... {len(kinds) - SHOWN} more tokens", "italic")
    return text

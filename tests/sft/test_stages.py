"""Stages, steps, and what a training refuses before it starts."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from testkit.composed import changed
from testkit.processes import alive, wait_until

from segrl import toy
from segrl.commands.config import compose
from segrl.commands.sft import check_beforehand, complete, lit, main, summary, train
from segrl.data import save_traces
from segrl.launch import end_with_parent
from segrl.loading import check_weights, load_tokenizer
from segrl.sft.export import card, export, finish_weights, lora_alpha, selected
from segrl.sft.masking import Example
from segrl.sft.space import check_saved, check_space, full_disk, parameters
from segrl.sft.stages import (
    TRACKER,
    Stage,
    claim_stage,
    executed_steps,
    forget_checkpoints,
    mend_position,
    planned_steps,
    stage_config,
    stages_of,
    torchrun,
)
from segrl.text.prompting import render

TWO = "stages=[{mode: full, epochs: 7, lr: 1.5e-5}, {mode: selective, epochs: 4, lr: 8e-6}]"


def sft_config(folder, *overrides):
    return changed("sft", "toy_cpu", f"traces={folder}/traces.jsonl", f"out={folder}", *overrides)


# --- stages and steps ------------------------------------------------------------------------------------------------


def test_stages_are_what_was_asked_for(tmp_path):
    config = sft_config(tmp_path, TWO)
    stages = stages_of(config)
    assert stages == [Stage(1, "full", 7, 1.5e-5), Stage(2, "selective", 4, 8e-6)]
    one, two = (stage_config(config, stage, stages) for stage in stages)
    assert (one.data.segrl.mode, one.trainer.total_epochs, one.optim.lr) == ("full", 7, 1.5e-5)
    assert (two.data.segrl.mode, two.trainer.total_epochs, two.optim.lr) == ("selective", 4, 8e-6)
    assert one.trainer.default_local_dir == str(tmp_path / "checkpoints" / "stage-1")
    assert one.model_out == str(tmp_path / "model-1")
    assert two.model_out == str(tmp_path / "model")


def test_without_stages_there_is_one_of_the_config_itself(tmp_path):
    config = sft_config(tmp_path, "mode=pruned", "optim.lr=2e-4", "trainer.total_epochs=3")
    assert stages_of(config) == [Stage(1, "pruned", 3, 2e-4)]


@pytest.mark.parametrize(
    ("stages", "sentence"),
    [
        ("[{mode: fulll}]", r"stage 1: mode='fulll', did you mean 'full'\?"),
        ("[{mode: full}, {epoch: 2}]", r"stage 2 has a key 'epoch', did you mean 'epochs'\?"),
        ("[]", "has no stage"),
    ],
)
def test_a_wrong_stage_is_named(tmp_path, stages, sentence):
    with pytest.raises(ValueError, match=sentence):
        stages_of(sft_config(tmp_path, f"stages={stages}"))


@pytest.mark.parametrize(("rows", "nproc", "steps"), [(4, 1, 6), (5, 1, 6), (4, 2, 6), (7, 2, 9)])
def test_steps_are_counted_as_verl_counts_them(tmp_path, rows, nproc, steps):
    config = sft_config(tmp_path, f"nproc={nproc}", "data.train_batch_size=2", "trainer.total_epochs=3")
    assert planned_steps(rows, config) == steps


def test_ranks_that_share_a_sequence_take_the_same_rows(tmp_path):
    shared = ["nproc=4", "engine.ulysses_sequence_parallel_size=2", "data.train_batch_size=2"]
    assert planned_steps(7, sft_config(tmp_path, *shared, "trainer.total_epochs=3")) == 9


def test_steps_that_cannot_be_made_are_refused(tmp_path):
    three = ["data.train_batch_size=2", "trainer.total_epochs=3"]
    with pytest.raises(ValueError, match="make 0 steps in 3 epochs, at least one must be made"):
        planned_steps(1, sft_config(tmp_path, *three))
    with pytest.raises(ValueError, match="make 6 steps in 3 epochs, 9 must be made"):
        planned_steps(4, sft_config(tmp_path, *three, "trainer.total_training_steps=9"))
    with pytest.raises(ValueError, match="nproc=0: expected 1 or more"):
        planned_steps(4, sft_config(tmp_path, "nproc=0"))
    with pytest.raises(ValueError, match="train_batch_size=3 cannot be shared by 2 ranks"):
        planned_steps(4, sft_config(tmp_path, "data.train_batch_size=3", "nproc=2"))


def test_on_several_machines_torchrun_is_told_where_the_first_one_is(tmp_path):
    nodes = ["trainer.nnodes=2", "node_rank=1", "nproc=8"]
    assert torchrun(sft_config(tmp_path, *nodes, "master=10.0.0.1:29500"))[1:] == [
        "--nproc-per-node=8",
        "--nnodes=2",
        "--node-rank=1",
        "--master-addr=10.0.0.1",
        "--master-port=29500",
    ]
    with pytest.raises(ValueError, match="needs master=host:port"):
        torchrun(sft_config(tmp_path, *nodes))
    with pytest.raises(ValueError, match=r"2 stages on 2 machines: .* run the stages one by one"):
        stages_of(sft_config(tmp_path, *nodes, TWO))


# --- going on --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("step", "left"), [(1, True), (2, False), (3, True), (4, False)])
def test_a_position_saved_at_the_end_of_an_epoch_is_not_gone_on_from(tmp_path, step, left):
    """Four rows, batches of two: steps 2 and 4 end an epoch."""
    config = sft_config(tmp_path, "data.train_batch_size=2")
    saved = tmp_path / "checkpoints" / f"global_step_{step}"
    saved.mkdir(parents=True)
    (saved / "data_0.pt").touch()
    (tmp_path / "checkpoints" / "latest_checkpointed_iteration.txt").write_text(str(step))
    assert executed_steps(config) == step
    mend_position(config, 4)
    assert (saved / "data_0.pt").exists() == left


def test_only_the_last_whole_checkpoint_outlives_a_kill(tmp_path):
    """verl's tracker names it; one after it was being written."""
    config = sft_config(tmp_path)
    for step in (2, 4, 6):
        (tmp_path / "checkpoints" / f"global_step_{step}").mkdir(parents=True)
    (tmp_path / "checkpoints" / "latest_checkpointed_iteration.txt").write_text("4")
    forget_checkpoints(sft_config(tmp_path, "trainer.resume_mode=disable"))
    forget_checkpoints(sft_config(tmp_path, "node_rank=1"))
    assert len(list((tmp_path / "checkpoints").glob("global_step_*"))) == 3
    forget_checkpoints(config)
    assert [one.name for one in (tmp_path / "checkpoints").glob("global_step_*")] == ["global_step_4"]


def test_what_is_trained_but_not_exported_is_exported_without_another_step(tmp_path, monkeypatch):
    """Three of four steps: verl asks whether it is done only after a step, and would take the fourth."""
    save_traces(toy.sample_traces(4, seed=0), tmp_path / "traces.jsonl")
    three = ["data.train_batch_size=2", "trainer.total_epochs=2", "trainer.total_training_steps=3"]
    config = sft_config(tmp_path, "mode=full", *three)
    saved = tmp_path / "checkpoints" / "stage-1" / "global_step_3" / "huggingface"
    shutil.copytree(toy.MODEL_PATH, saved)
    (saved.parents[1] / "latest_checkpointed_iteration.txt").write_text("3")
    monkeypatch.setattr("segrl.commands.sft.run_verl", lambda *_: pytest.fail("verl was started"))
    stages = stages_of(config)
    assert train(stage_config(config, stages[0], stages), stages[0]) == 0
    assert (tmp_path / "model" / "model.safetensors").exists()
    assert "| steps | 3 in 2 epochs" in (tmp_path / "model" / "README.md").read_text()


def test_a_disk_that_fills_while_exporting_leaves_nothing_half_written(tmp_path):
    """By the kernel's own limit on the size of a file. Saved in half precision, the weights grow when they are cast."""
    saved = tmp_path / "checkpoints" / "stage-1" / "global_step_2" / "huggingface"
    shutil.copytree(toy.MODEL_PATH, saved)
    config = sft_config(tmp_path, "mode=full")
    [stage] = stages_of(config)
    config = stage_config(config, stage, [stage])
    whole = (saved / "model.safetensors").stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for size in (whole // 4, 3 * whole // 4):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
        try:
            with pytest.raises(OSError, match=r"model was not written \(.*File too large.*\); its checkpoint stays"):
                export(config, 2, stage, rows([0.0, 1.0]))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert sorted(one.name for one in tmp_path.iterdir()) == ["checkpoints"]
        half = {name: one.half() for name, one in load_file(saved / "model.safetensors").items()}
        save_file(half, saved / "model.safetensors", metadata={"format": "pt"})


def test_where_a_training_runs_and_what_it_keeps_may_change(tmp_path):
    stage = Stage(1, "full", 4, 1e-3)
    claim_stage(sft_config(tmp_path), stage, "data")
    claim_stage(
        sft_config(tmp_path, "trainer.max_ckpt_to_keep=1", "master=other:29500", "data.num_workers=2"), stage, "data"
    )


def test_another_training_may_not_go_on_in_the_same_folder(tmp_path):
    stage = Stage(1, "full", 4, 1e-3)
    claim_stage(sft_config(tmp_path), stage, "data")
    claim_stage(sft_config(tmp_path), stage, "data")
    with pytest.raises(ValueError, match=r"holds another training: optim.lr was 0.001, now 0.002; choose another out="):
        claim_stage(sft_config(tmp_path, "optim.lr=2e-3"), stage, "data")
    with pytest.raises(ValueError, match="holds another training: data was 'data', now 'other'"):
        claim_stage(sft_config(tmp_path), stage, "other")


@pytest.mark.parametrize(("executed", "code"), [(4, 1), (8, 0)])
def test_fewer_steps_than_planned_are_a_failure(tmp_path, monkeypatch, capsys, executed, code):
    """verl ends with 0 after an epoch that gave it nothing; only the count tells."""
    save_traces(toy.sample_traces(4, seed=0), tmp_path / "traces.jsonl")
    config = sft_config(tmp_path, "mode=full", "data.train_batch_size=2")

    def run(entry_point, config, name):
        folder = tmp_path / "checkpoints" / "stage-1"
        folder.mkdir(parents=True)
        (folder / "latest_checkpointed_iteration.txt").write_text(str(executed))
        return 0

    monkeypatch.setattr("segrl.commands.sft.run_verl", run)
    monkeypatch.setattr("segrl.commands.sft.export", lambda *_: None)
    stages = stages_of(config)
    assert train(stage_config(config, stages[0], stages), stages[0]) == code
    assert ("8 steps were planned and 4 executed" in capsys.readouterr().out) == bool(code)


# --- what is said before -------------------------------------------------------------------------------------------


class Rows(list):
    """As much of a dataset as is reported on."""

    def __init__(self, examples, notes=()):
        super().__init__(examples)
        self.examples, self.notes, self.fingerprint = examples, list(notes), "f"
        self.tokens = sum(len(one.ids_L) - one.prompt_tokens for one in examples)
        self.kept = sum(int((one.mask_L > 0).sum()) for one in examples)


def rows(*masks) -> Rows:
    return Rows([Example(torch.arange(len(one)), torch.tensor(one), 1) for one in masks], ["1 too long (t)"])


def test_the_summary_counts():
    stage = Stage(1, "selective", 1, 1e-3)
    said = summary(rows([0.0, 1.0, 0.0], [0.0, 1.0]), 6, stage)
    assert said.splitlines() == [
        "stage 1, selective SFT: 2 traces, 3 response tokens, 2 of them kept (66.7%), 6 steps",
        "  1 too long (t)",
    ]


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (
            ["segrl.too_long=drop", "data.max_length=20"],
            "no token of any trace is kept: nothing .*; 4 too long",
        ),
        (
            ["data.max_token_len_per_gpu=60"],
            r"the longest row has \d+ tokens, a micro-batch holds 60; raise data",
        ),
        (["data.max_token_len_per_gpu=30", "engine.ulysses_sequence_parallel_size=2"], "a micro-batch holds 60"),
        (["data.val_files=none.jsonl"], "none.jsonl"),
    ],
)
def test_rows_that_verl_would_fail_on_are_refused_before_it_starts(tmp_path, overrides, sentence):
    save_traces(toy.sample_traces(4, seed=0), tmp_path / "traces.jsonl")
    config = sft_config(tmp_path, "mode=full", "data.train_batch_size=2", *overrides)
    stages = stages_of(config)
    with pytest.raises((ValueError, OSError), match=sentence):
        train(stage_config(config, stages[0], stages), stages[0])
    assert not (tmp_path / "stage-1.json").exists()  # corrected, the same folder serves


def test_long_traces_are_refused_before_anything_is_attributed(tmp_path, monkeypatch):
    """Tokens by hand: the tokenizer's of prompt and response, and the end of text."""
    traces = toy.sample_traces(4, seed=0)
    save_traces(traces, tmp_path / "traces.jsonl")
    monkeypatch.setattr("segrl.commands.cold_start.attribute", lambda _: pytest.fail("it was attributed"))
    tokenizer = toy.load_model()[1]
    lengths = {
        one.id: len(tokenizer(render(one.problem, tokenizer) + one.response, add_special_tokens=False)["input_ids"]) + 1
        for one in traces
    }
    longest = max(lengths, key=lengths.get)
    room = sorted(lengths.values())[1]
    config = compose("sft", ["preset=toy_cpu", f"traces={tmp_path}/traces.jsonl", f"out={tmp_path}/out"]).copy()
    OmegaConf.set_readonly(config, False)
    config.data.max_length = room
    with pytest.raises(
        ValueError,
        match=rf"2 of 4 traces are longer than data.max_length={room} with their prompt; the longest, "
        rf"'{longest}', has {lengths[longest]} tokens: raise data.max_length, or set segrl.too_long to drop",
    ):
        main(config)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["data.train_batch_size=5"], "make 0 steps in 4 epochs"),
        (["data.max_token_len_per_gpu=60"], "a micro-batch holds 60"),
        (["data.val_files=val.jsonl"], "data.val_files needs selections too, and only the training traces would be"),
        (["trainer.nnodes=2"], "each machine would score all traces; run `segrl select executor=ray`"),
        ([TWO.replace("epochs: 4", "epochs: 4, steps: 99")], "make 8 steps in 4 epochs, 99 must be made"),
    ],
)
def test_what_a_later_stage_would_be_refused_for_is_refused_beforehand(tmp_path, overrides, sentence):
    save_traces(toy.sample_traces(4, seed=0), tmp_path / "traces.jsonl")
    config = sft_config(tmp_path, "data.train_batch_size=2", *overrides)
    with pytest.raises(ValueError, match=sentence):
        check_beforehand(config, stages_of(config))


def test_the_disk_must_hold_the_checkpoints_of_every_stage(tmp_path, monkeypatch):
    """Two stages of 36 bytes a parameter; one that is trained already takes no more."""
    save_traces(toy.sample_traces(4, seed=0), tmp_path / "traces.jsonl")
    config = sft_config(tmp_path, TWO, "data.train_batch_size=2")
    usage = type("Usage", (), {"free": 71 * parameters(toy.MODEL_PATH)})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(OSError, match="make room"):
        check_beforehand(config, stages_of(config))
    (tmp_path / "model-1").mkdir()
    (tmp_path / "model-1" / "config.json").write_text("{}")
    check_beforehand(config, stages_of(config))


@pytest.mark.parametrize(
    ("gpus", "batch", "sharing"),
    [(8, 2, 4), (8, 8, 1), (4, 2, 2), (6, 4, 3), (1, 2, 1)],
)
def test_all_gpus_are_used_and_as_few_as_it_takes_share_a_sequence(tmp_path, monkeypatch, gpus, batch, sharing):
    monkeypatch.setattr("segrl.commands.sft.on_cpu", lambda: False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    config = sft_config(tmp_path, "nproc=null", f"data.train_batch_size={batch}", "model.use_remove_padding=true")
    complete(config)
    assert (config.nproc, config.trainer.n_gpus_per_node) == (gpus, gpus)
    assert config.engine.ulysses_sequence_parallel_size == sharing
    assert planned_steps(2 * batch, config) == 2 * config.trainer.total_epochs


def test_what_was_given_of_ranks_stays(tmp_path):
    for overrides in (["nproc=3"], ["nproc=4", "engine.ulysses_sequence_parallel_size=2"]):
        config = sft_config(tmp_path, *overrides)
        before = config.copy()
        complete(config)
        assert config == before
    config = sft_config(tmp_path, "nproc=null")
    complete(config)
    assert config.nproc == 1  # a CPU


def test_kept_tokens_are_lit():
    tokenizer = toy.load_model()[1]
    ids = tokenizer("Okay, a = 3+9 = 2.", add_special_tokens=False)["input_ids"]
    weights = torch.tensor([0.0, 1.0, 1.0, *[0.0] * (len(ids) - 3)])
    text = lit(Example(torch.tensor(ids), weights, 1), tokenizer)
    assert text.plain == "Okay, a = 3+9 = 2."
    [kept] = [text.plain[span.start : span.end] for span in text.spans if "bold" in str(span.style)]
    assert kept == tokenizer.decode(ids[1:3])


# --- the card and the end ---------------------------------------------------------------------------------------------


def test_the_card_says_how_the_selections_came_about(tmp_path):
    path = f"selections={tmp_path / 'selections.parquet'}"
    as_they_are, anew = sft_config(tmp_path, path), sft_config(tmp_path, path, "tau=0.5")

    def thresholds(config):
        return [selected(config)[name] for name in ("measure", "tau", "beta")]

    assert thresholds(as_they_are) == ["as in the selections"] * 3
    assert thresholds(anew) == ["as in the selections", 0.5, 0.8]  # beside the one given, select's own
    (tmp_path / "selections.json").write_text(json.dumps({"measure": "ig", "tau": 0.7, "beta": 1.0}))
    assert thresholds(as_they_are) == ["ig", 0.7, 1.0]
    assert thresholds(anew) == ["ig", 0.5, 1.0]


def test_the_card_names_every_stage(tmp_path):
    config = sft_config(tmp_path, TWO.replace("selective", "soft"), f"selections={tmp_path / 's.parquet'}")
    stages = stages_of(config)
    said = card(stage_config(config, stages[1], stages), 6, stages[1], rows([0.0, 1.0]))
    assert "| stage 1 | mode full, 7 epochs, learning rate 1.5e-05 |" in said
    assert "| stage 2 | mode soft, weighed by the rule linear |" in said


def test_a_killed_command_leaves_no_training_behind():
    """SIGKILL runs no handler: the kernel tells the child."""
    read, write = os.pipe()
    parent = os.fork()
    if parent == 0:
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], preexec_fn=end_with_parent)
        os.write(write, str(child.pid).encode())
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(parent, 0)
    child = int(os.read(read, 20))
    assert wait_until(lambda: not alive(child), seconds=20)


# --- what is refused -------------------------------------------------------------------------------------------------


def test_the_command_says_what_it_needs():
    with pytest.raises(ValueError, match="traces and out must be given"):
        main(OmegaConf.create({"traces": None, "out": None}))


def test_a_model_without_weights_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no model folder"):
        check_weights(str(tmp_path / "none"))
    with pytest.raises(FileNotFoundError, match=r"has no config.json"):
        check_weights(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"has a config.json and no weights"):
        check_weights(str(tmp_path))
    check_weights(str(toy.MODEL_PATH))


def test_what_is_no_hub_id_is_refused_at_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    for path in ("./runs/x", "runs/x/model", "~/nowhere/model"):
        with pytest.raises(FileNotFoundError, match=f"there is no model folder '{path}' .* of the form owner/name"):
            check_weights(path)
    with pytest.raises(FileNotFoundError, match=r"the folder 'runs' .* no model folder 'sft'.* hf download runs/sft"):
        check_weights("runs/sft")
    check_weights("owner/name")  # which may be on the hub


def test_a_model_at_home_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").symlink_to(toy.MODEL_PATH)
    assert load_tokenizer("~/model").vocab_size == load_tokenizer(str(toy.MODEL_PATH)).vocab_size
    assert compose("sft", ["model_path=~/model"]).model.path == f"{tmp_path}/model"


def test_a_disk_without_room_for_a_checkpoint_is_refused(tmp_path, monkeypatch):
    model = toy.load_model()[0]
    tied = {id(one): one.numel() for one in model.parameters()}
    assert parameters(toy.MODEL_PATH) == sum(tied.values())
    # Bytes a parameter: two checkpoints of 16, or of 8 without the optimizer, and the exported model.
    free = {"": 36, "checkpoint.save_contents=[model,extra,hf_model]": 20, "model.lora_rank=4": 20}
    free |= {"trainer.total_epochs=1": 20, "trainer.max_ckpt_to_keep=3": 52, "trainer.max_ckpt_to_keep=null": 68}
    for override, each in free.items():
        config = sft_config(tmp_path, *filter(None, [override]))
        usage = type("Usage", (), {"free": each * sum(tied.values())})
        monkeypatch.setattr("shutil.disk_usage", lambda _, usage=usage: usage)
        check_space(config)
        usage.free -= 1
        with pytest.raises(OSError, match=r"checkpoints and the exported model take about \d+ MiB, .* left; make room"):
            check_space(config)
    (tmp_path / "checkpoints" / "stage-1").mkdir(parents=True)
    (tmp_path / "checkpoints" / "stage-1" / "model.pt").write_bytes(b"0")
    check_space(config)  # the byte that is missing is there already
    (tmp_path / "checkpoints" / TRACKER).write_text("4")
    with pytest.raises(OSError, match="make room"):
        check_space(config)  # verl keeps the checkpoint that it goes on from, beside those that it makes


def test_checkpoints_without_a_model_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"save_contents=\['model', 'extra'\] has no hf_model"):
        check_saved(sft_config(tmp_path, "checkpoint.save_contents=[model,extra]"))


def test_a_failure_on_a_full_disk_says_so(tmp_path, monkeypatch, capsys):
    full_disk(str(tmp_path))
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 2**20}))
    full_disk(str(tmp_path))
    assert f"the disk of {tmp_path} is full (1 MiB left); make room" in capsys.readouterr().err


def test_without_a_model_there_is_nothing_to_export(tmp_path):
    config = OmegaConf.create({"trainer": {"default_local_dir": str(tmp_path)}})
    with pytest.raises(FileNotFoundError, match="there is no model in"):
        export(config, 2, Stage(1, "full", 1, 1e-3), rows([0.0, 1.0]))


# --- adapters --------------------------------------------------------------------------------------------------------


def test_given_adapters_keep_their_scale_and_are_applied_once(tmp_path):
    pytest.importorskip("peft").LoraConfig(r=4, lora_alpha=32).save_pretrained(tmp_path)
    config = sft_config(tmp_path, TWO, "model.lora_rank=4", f"model.lora_adapter_path={tmp_path}")
    stages = stages_of(config)
    one, two = (stage_config(config, stage, stages) for stage in stages)
    assert (lora_alpha(one.model), lora_alpha(two.model)) == (32, 16)
    assert (one.model.lora_adapter_path, two.model.lora_adapter_path) == (str(tmp_path), None)


def test_adapters_are_merged_by_hand(tmp_path):
    """W = 1, r = 1, alpha = 2: W + 2 B A."""
    name = "base_model.model.model.layers.0.q_proj"
    weights = {
        f"{name}.base_layer.weight": torch.ones(2, 3),
        f"{name}.base_layer.bias": torch.zeros(2),
        f"{name}.lora_A.default.weight": torch.tensor([[1.0, 2.0, 3.0]]),
        f"{name}.lora_B.default.weight": torch.tensor([[1.0], [-1.0]]),
        "base_model.model.model.norm.weight": torch.ones(3),
    }
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"torch_dtype": "bfloat16"}))
    finish_weights(tmp_path, torch.float32, alpha=2)
    merged = load_file(tmp_path / "model.safetensors")
    assert merged.keys() == {
        "model.layers.0.q_proj.weight",
        "model.layers.0.q_proj.bias",
        "model.norm.weight",
    }
    assert merged["model.layers.0.q_proj.weight"].tolist() == [[3.0, 5.0, 7.0], [-1.0, -3.0, -5.0]]
    assert json.loads((tmp_path / "config.json").read_text()) == {"dtype": "float32"}

"""How verl's entry points are started, and what is refused before they are."""

import sys

import pytest
import torch
from omegaconf import OmegaConf
from testkit.composed import changed, needs_verl

from segrl import launch, toy
from segrl.commands import grpo
from segrl.commands.config import compose
from segrl.commands.grpo_rows import give_rows, rows_file
from segrl.data import read_rows, write_rows
from segrl.launch import PLUGIN, check_device, editable, environment, fit_attention, loggers, on_cpu, run_verl

ENTRY_POINT = """
import os, pathlib, sys
import hydra

@hydra.main(version_base=None)
def main(config):
    assert os.environ["VERL_USE_EXTERNAL_MODULES"] == "segrl.verl"
    assert (config.a.b, config.a.c) == (1, 1)
    assert os.environ["TENSORBOARD_DIR"] == str(pathlib.Path(config.out, "tensorboard"))
    pathlib.Path(config.out, "ran").write_text("here")
    sys.exit(config.code)

main()
"""


@pytest.fixture(autouse=True)
def without_accelerator(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    for name in ("VERL_PLATFORM", "VERL_USE_EXTERNAL_MODULES", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("code", [0, 3])
def test_an_entry_point_runs_on_the_composed_config(tmp_path, monkeypatch, code):
    (tmp_path / "entry_point.py").write_text(ENTRY_POINT)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    config = OmegaConf.create({"out": str(tmp_path / "out"), "code": code, "a": {"b": 1, "c": "${a.b}"}})
    assert run_verl(["entry_point"], config, "job") == code
    assert (tmp_path / "out" / "ran").read_text() == "here"
    assert OmegaConf.load(tmp_path / "out" / "job.yaml") == config


def test_the_command_can_be_typed_again(tmp_path, capfd):
    run_verl(["segrl.nothing"], OmegaConf.create({"out": str(tmp_path)}), "job")
    named = "VERL_PLATFORM=cpu VERL_USE_EXTERNAL_MODULES=segrl.verl"
    said = capfd.readouterr()
    assert f"running {named} {sys.executable} -m segrl.nothing --config-path {tmp_path}" in said.out
    assert "segrl.nothing ended with exit code 1; the cause stands above" in said.err


CHATTER = "(Worker pid=7) UserWarning: no engine: ModuleNotFoundError('x')"
FAILURES = [
    CHATTER,
    "\x1b[36m(Loop pid=8)\x1b[0m KeyError: 'my reward'",
    "\x1b[36m(Loop pid=9)\x1b[0m KeyError: 'my reward'",
    "RuntimeError: no trajectories",
]


def test_the_last_lines_name_the_first_error_and_the_last(tmp_path, monkeypatch, capfd):
    (tmp_path / "entry_point.py").write_text(f"import sys\nprint({chr(10).join(FAILURES)!r})\nsys.exit(1)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert run_verl(["entry_point"], OmegaConf.create({"out": str(tmp_path / "out")}), "job") == 1
    said = capfd.readouterr()
    assert CHATTER in said.out
    assert said.err.endswith("the first of them first:\n  KeyError: 'my reward'\n  RuntimeError: no trajectories\n")


def test_the_environment_names_the_plugin_once_and_keeps_what_is_set(monkeypatch):
    monkeypatch.setenv("VERL_USE_EXTERNAL_MODULES", "mine,segrl.verl")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    env = environment()
    assert env["VERL_USE_EXTERNAL_MODULES"] == f"{PLUGIN},mine"
    assert (env["VERL_PLATFORM"], env["OMP_NUM_THREADS"]) == ("cpu", "2")
    assert "CUDA_VISIBLE_DEVICES" not in env


def test_an_accelerator_or_a_platform_asked_for_leaves_the_environment_alone(monkeypatch):
    monkeypatch.setenv("VERL_PLATFORM", "huawei")
    assert not on_cpu()
    assert environment()["VERL_PLATFORM"] == "huawei"
    monkeypatch.delenv("VERL_PLATFORM")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    assert "VERL_PLATFORM" not in environment()


@needs_verl
@pytest.mark.parametrize("command", ["sft", "grpo"])
def test_a_gpu_config_without_a_gpu_is_refused_with_the_way_out(command):
    with pytest.raises(ValueError, match="no accelerator; add preset=toy_cpu"):
        check_device(compose(command, []))
    check_device(compose(command, ["preset=toy_cpu"]))


# --- the presets, as verl reads them ---------------------------------------------------------------------------------


def grpo_config(*overrides):
    return editable(compose("grpo", ["preset=toy_cpu", *overrides]))


def test_the_sft_preset_becomes_verls_dataclasses():
    pytest.importorskip("verl")
    from verl.utils.config import omega_conf_to_dataclass

    config = editable(compose("sft", ["preset=toy_cpu", "out=here", "traces=traces.jsonl"]))
    engine = omega_conf_to_dataclass(config.engine)
    assert (engine.strategy, engine.mixed_precision["param_dtype"]) == ("fsdp2", "fp32")
    assert config.data.segrl.mode == "selective"


def test_tensorboard_is_left_out_where_it_is_not_installed(monkeypatch, capsys):
    assert loggers(["console", "tensorboard"]) == ["console", "tensorboard"]
    monkeypatch.setattr(launch, "find_spec", lambda name: None)
    assert loggers(["console", "tensorboard", "wandb"]) == ["console", "wandb"]
    assert "tensorboard is not installed, so nothing is logged for it" in capsys.readouterr().err
    assert loggers("console") == ["console"]


# --- the rows verl trains on -----------------------------------------------------------------------------------------


@needs_verl
def test_problems_become_verls_rows_and_verls_rows_stay(tmp_path):
    write_rows(tmp_path / "mine.jsonl", [{"id": "a", "problem": "What is 3 + 4?", "answer": "7"}])
    config = grpo_config(f"out={tmp_path}", f"data_path={tmp_path / 'mine.jsonl'}")
    written = rows_file(config, "train")
    assert written == str(tmp_path / "data" / "train.parquet")
    config.data_path = written
    assert rows_file(config, "train") == written


@needs_verl
def test_without_problems_the_toy_world_is_trained_and_validated(tmp_path):
    config = grpo_config(f"out={tmp_path}", "trainer.test_freq=5")
    assert give_rows(config) is None
    train, val = (
        {row["prompt"][0]["content"] for row in read_rows(config.data[f"{s}_files"])} for s in ("train", "val")
    )
    assert not train & val
    assert config.trainer.test_freq == 5


def test_without_problems_to_validate_on_nothing_is_validated(tmp_path):
    """verl's default would sample the whole training set before the first step."""
    write_rows(tmp_path / "mine.jsonl", [{"id": "a", "problem": "What is 3 + 4?", "answer": "7"}])
    on = ("trainer.test_freq=10", "trainer.val_before_train=true")
    config = grpo_config(f"out={tmp_path}", f"data_path={tmp_path / 'mine.jsonl'}", *on)
    assert give_rows(config) == (
        "nothing is validated while it trains; for that give val_path=aime24, val_path=[aime24,amc23] or a file"
    )
    assert (config.trainer.val_before_train, config.trainer.test_freq) == (False, -1)


def test_several_benchmarks_are_validated_each_under_its_name(tmp_path):
    for name, answer in (("aime24", "7"), ("amc23", "8")):
        write_rows(tmp_path / f"{name}.jsonl", [{"id": "a", "problem": f"What is {answer}?", "answer": answer}])
    files = [str(tmp_path / f"{name}.jsonl") for name in ("aime24", "amc23")]
    config = grpo_config(f"out={tmp_path}", f"data_path={files[0]}", f"val_path=[{','.join(files)}]")
    assert give_rows(config) is None
    rows = read_rows(config.data.val_files)
    assert [(row["data_source"], row["reward_model"]["ground_truth"]) for row in rows] == [
        ("aime24", "7"),
        ("amc23", "8"),
    ]
    assert config.trainer.val_before_train == grpo_config().trainer.val_before_train


def test_verls_own_rows_stay_as_they_are_in_a_list_too(tmp_path):
    """A system message, a source and further columns are none of a trace; beside other problems the rows are copied."""
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 3 + 4?"}]
    for name, answer in (("a", "7"), ("b", "8")):
        gold = {"style": "rule", "ground_truth": answer}
        row = {"data_source": name * 3, "prompt": chat, "ability": "math", "reward_model": gold}
        write_rows(tmp_path / f"{name}.parquet", [row | {"extra_info": {"level": 3}}])
    files = [str(tmp_path / f"{name}.parquet") for name in "ab"]
    write_rows(tmp_path / "c.jsonl", [{"id": "c", "problem": "What is 4 + 5?", "answer": "9"}])
    both = [files[0], str(tmp_path / "c.jsonl")]
    config = grpo_config(f"out={tmp_path}", f"data.train_files=[{','.join(files)}]", f"val_path=[{','.join(both)}]")
    assert give_rows(config) is None
    assert list(config.data.train_files) == files
    first, second = read_rows(config.data.val_files)
    assert (first["prompt"], first["data_source"], first["extra_info"]["level"]) == (chat, "aaa", 3)
    assert (second["data_source"], second["reward_model"]["ground_truth"]) == ("c", "9")
    config = grpo_config(f"out={tmp_path}", f"data.train_files={files[0]}", f"data.val_files={files[1]}")
    assert (give_rows(config), config.data.train_files, config.data.val_files) == (None, *files)


def test_two_names_for_the_problems_are_one_too_many(tmp_path):
    config = grpo_config(f"out={tmp_path}", "data_path=a.jsonl", "data.train_files=b.parquet")
    with pytest.raises(ValueError, match=r"data_path=a.jsonl and data.train_files=b.parquet name different problems"):
        give_rows(config)


def test_a_benchmark_is_known_by_its_name(tmp_path):
    """The hub cannot be reached here; the sentence says that it was asked for the benchmark's own dataset."""
    with pytest.raises(ValueError, match="'HuggingFaceH4/aime_2024' is no file or folder here, and as a hub dataset"):
        rows_file(grpo_config(f"out={tmp_path}", "val_path=aime24"), "val")


@needs_verl
def test_a_model_that_is_not_there_is_named_before_anything_starts(tmp_path):
    config = changed("grpo", "toy_cpu", f"out={tmp_path / 'out'}", f"model_path={tmp_path / 'none'}")
    with pytest.raises(FileNotFoundError, match=r"there is no model folder '.*none' .* give a folder, or a hub id"):
        grpo.main(config)
    assert not (tmp_path / "out").exists()


@needs_verl
def test_another_arms_checkpoints_are_not_gone_on_from(tmp_path):
    """Until there is one, anything may change; afterwards what makes the arm may not, but on purpose."""

    def asked(*overrides):
        return changed("grpo", "toy_cpu", f"out={tmp_path}", *overrides)

    grpo.claim(asked("segrl.rule=uniform"))
    grpo.claim(asked("segrl.measure=length"))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "latest_checkpointed_iteration.txt").write_text("4")
    grpo.claim(asked("segrl.measure=length", "trainer.total_training_steps=9", "segrl.fidelity_every=7"))
    for key, was, now in (
        ("segrl.measure", "length", "ig"),
        ("segrl.form", "times", "plus"),
        ("data_path", None, "other.jsonl"),
        ("actor_rollout_ref.actor.policy_loss.loss_mode", "vanilla", "gspo"),
    ):
        with pytest.raises(ValueError, match=f"another run: {key} was {was!r}, now {now!r}; choose another out="):
            grpo.claim(asked("segrl.measure=length", f"{key}={now}"))
    with pytest.raises(ValueError, match=r"holds checkpoints of an earlier run, which trainer.resume_mode=disable"):
        grpo.claim(asked("segrl.measure=length", "trainer.resume_mode=disable"))
    grpo.claim(asked("segrl.measure=ig", "trainer.resume_mode=resume_path"))


# --- attention -------------------------------------------------------------------------------------------------------


def model_of(command: str, preset: str, *overrides: str):
    """The model's section of the composed config."""
    config = changed(command, preset, *overrides)
    return config.model if command == "sft" else config.actor_rollout_ref.model


PRESETS = [("sft", "r1_distill_qwen_7b"), ("grpo", "r1_distill_qwen_1.5b")]


@pytest.fixture(params=[True, False], ids=["flash", "no flash"])
def flash(request, tmp_path, monkeypatch):
    """flash_attn as a package that can be imported, or as one that was built for another torch."""
    body = "" if request.param else "raise ImportError('undefined symbol')"
    (tmp_path / "flash_attn.py").write_text(body)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "flash_attn", raising=False)
    yield request.param
    sys.modules.pop("flash_attn", None)


@pytest.mark.parametrize(("command", "preset"), PRESETS)
def test_attention_is_flash_where_it_can_be_imported_and_else_sdpa_without_packing(command, preset, flash):
    pytest.importorskip("verl")
    from verl.utils.config import omega_conf_to_dataclass
    from verl.workers.config import HFModelConfig

    model = model_of(command, preset)
    said = fit_attention(model, 1)
    model.path = str(toy.MODEL_PATH)
    read = omega_conf_to_dataclass(model, HFModelConfig)  # as verl reads it: it asks transformers for this attention
    assert read.hf_config._attn_implementation == ("flash_attention_2" if flash else "sdpa")
    assert read.use_remove_padding is flash
    assert said == "" if flash else "SDPA on padded rows" in said and "pip install flash-attn" in said


def test_a_chosen_attention_stays(flash):
    model = model_of("sft", "toy_cpu")
    assert fit_attention(model, 1) == ""
    assert model.override_config.attn_implementation == "sdpa"


def test_shared_rows_need_packing(flash):
    model = model_of("sft", "r1_distill_qwen_7b")
    if flash:
        assert fit_attention(model, 2) == ""
    else:
        with pytest.raises(ValueError, match="ulysses_sequence_parallel_size=2 shares packed rows, which needs flash"):
            fit_attention(model, 2)

"""The model that GRPO leaves, and the disk that its checkpoints need."""

import json
import shutil

import pytest
import torch
from testkit.composed import changed

from segrl import toy
from segrl.commands.grpo_export import check_disk, export
from segrl.cost.shape import shape_of
from segrl.loading import load_model

pytest.importorskip("verl")
pytestmark = pytest.mark.skipif(not (toy.MODEL_PATH / "model.safetensors").exists(), reason="no model is bundled")


def grpo_config(out, *overrides):
    return changed("grpo", "toy_cpu", f"out={out}", *overrides)


def test_the_last_checkpoint_becomes_a_hugging_face_folder(tmp_path):
    config, checkpoints = grpo_config(tmp_path), tmp_path / "checkpoints"
    for step in (1, 2):
        shutil.copytree(toy.MODEL_PATH, checkpoints / f"global_step_{step}" / "actor" / "huggingface")
    saved = checkpoints / "global_step_2" / "actor" / "huggingface"
    model, tokenizer = load_model(str(saved), dtype="float32")
    with torch.no_grad():
        next(model.parameters()).add_(1.0)
    model.save_pretrained(saved)
    (checkpoints / "latest_checkpointed_iteration.txt").write_text("2")

    assert export(config) == f"trained model, of step 2: {tmp_path / 'model'}"
    exported, its_tokenizer = load_model(str(tmp_path / "model"))
    pairs = zip(exported.parameters(), model.parameters(), strict=True)
    assert all(torch.equal(one.float(), other) for one, other in pairs)
    assert its_tokenizer.get_vocab() == tokenizer.get_vocab()
    assert its_tokenizer.chat_template == tokenizer.chat_template
    assert json.loads((tmp_path / "model" / "config.json").read_text())["dtype"] == "float32"


def test_without_a_saved_model_nothing_is_exported_and_a_sentence_says_why(tmp_path):
    config = grpo_config(tmp_path, "trainer.save_freq=-1")
    assert export(config) == "no checkpoint was saved, so there is no trained model; trainer.save_freq=-1"
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "latest_checkpointed_iteration.txt").write_text("2")
    assert "global_step_2/actor/huggingface, which only checkpoints of fsdp2 with hf_model have" in export(config)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("overrides", "bytes_each"),
    [
        ([], 2 * 16 + 4),  # float32, Adam's two moments, and once more for Hugging Face, twice; then the exported one
        (["trainer.max_actor_ckpt_to_keep=1"], 2 * 16 + 4),  # verl writes the new one before it removes the old
        (["trainer.max_actor_ckpt_to_keep=3"], 3 * 16 + 4),
        (["actor_rollout_ref.actor.checkpoint.save_contents=[model,hf_model]"], 2 * 8 + 4),
        (["actor_rollout_ref.model.lora_rank=4"], 2 * 8 + 4),
    ],
)
def test_a_disk_without_room_for_the_checkpoints_is_refused(tmp_path, monkeypatch, overrides, bytes_each):
    config = grpo_config(tmp_path, *overrides)
    weights = shape_of(json.loads((toy.MODEL_PATH / "config.json").read_text())).parameters
    usage = type("Usage", (), {"free": bytes_each * weights})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    check_disk(config)
    usage.free -= 1
    with pytest.raises(OSError, match=r"the checkpoints and the exported model take about .* left; make room, "):
        check_disk(config)
    config.trainer.save_freq = -1
    check_disk(config)


def test_checkpoints_without_a_model_are_refused(tmp_path):
    config = grpo_config(tmp_path, "actor_rollout_ref.actor.checkpoint.save_contents=[model,extra]")
    with pytest.raises(ValueError, match=r"save_contents=\['model', 'extra'\] has no hf_model, from which the trained"):
        check_disk(config)

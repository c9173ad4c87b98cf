"""scripts/train_toy.py with stages of two steps: it resumes, and its tokenizer is the bundled one."""

import json
import shutil
import sys

import pytest
import torch
from testkit.script_files import loaded
from transformers import AutoTokenizer

from segrl.toy import MODEL_PATH, sample_traces


@pytest.fixture(scope="module")
def script():
    return loaded("train_toy")


@pytest.fixture
def train(script, monkeypatch):
    """Runs the script in a folder, at a size that takes seconds."""
    stages = [script.Stage(steps=2, until=2, lr=1e-3, short=0.5, mistaught=0.5, check=2)] * 2
    for name, value in {"STAGES": stages, "CHECK_PROBLEMS": 2, "CARD_PROBLEMS": 2, "MOST_TOKENS": 4}.items():
        monkeypatch.setattr(script, name, value)

    def run(out, seed=0):
        monkeypatch.setattr(sys, "argv", ["train_toy.py", str(out), "--seed", str(seed), "--batch", "2"])
        script.main()

    return run


def test_a_killed_run_goes_on_from_its_last_whole_stage_and_ends_in_the_same_model(train, tmp_path):
    train(tmp_path / "whole")
    shutil.copytree(tmp_path / "whole/stages/1", tmp_path / "killed/stages/1")
    (tmp_path / "killed/stages/2").mkdir()  # begun and not whole
    train(tmp_path / "killed")
    models = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "killed")]
    assert models[0] == models[1]
    first, second = (json.loads((tmp_path / f"killed/stages/{i}/progress.json").read_text())["minutes"] for i in (1, 2))
    card = (tmp_path / "killed/README.md").read_text()
    assert f"| 1 | 2 of 2 | {first:.0f} | 50% |\n| 2 | 2 of 2 | {second:.0f} | 50% |" in card
    assert str(tmp_path) not in card
    bundled = (MODEL_PATH / "tokenizer.json").read_bytes()
    assert (tmp_path / "whole/tokenizer.json").read_bytes() == bundled
    with pytest.raises(SystemExit, match=r"was trained with .*'seed': 0.*, not .*'seed': 1.*; give another"):
        train(tmp_path / "whole", seed=1)


def test_only_a_digit_alone_in_the_box_weighs_as_much_as_five(script):
    tokenizer = AutoTokenizer.from_pretrained(MODEL_PATH)
    for ask in ("all", "last"):
        [trace] = sample_traces(1, seed=3, ask=ask)
        inputs, targets = script.collate([script.encode(trace, tokenizer)], tokenizer.pad_token_id)
        labels = targets[:, 1:]
        weight = script.weights(labels, tokenizer)
        digits = [tokenizer.decode(i).isdigit() for i in labels[0].tolist() if i != script.IGNORE]
        told = weight[labels != script.IGNORE].tolist()
        assert {w for w, digit in zip(told, digits, strict=True) if not digit} == {1.0}
        boxed = len(trace.answer)
        assert told[-boxed - 4 : -4] == ([20.0] if ask == "last" else [4.0] * boxed)
        assert sum(w == 20 for w in told) == (ask == "last")
        assert not weight[labels == script.IGNORE].any()
        assert torch.equal(inputs[targets != script.IGNORE], targets[targets != script.IGNORE])

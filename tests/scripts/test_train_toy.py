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
    small = {"steps": 2, "until": 2, "lr": 1e-3, "short": 0.5, "mistaught": 0.5, "check": 2}
    stages = [script.Stage(**small), script.Stage(**small, last=0.5, target=0.0)]
    for name, value in {
        "STAGES": stages,
        "CHECK_PROBLEMS": 2,
        "CARD_PROBLEMS": 2,
        "MOST_TOKENS": 4,
        "LEARNT": 1,
    }.items():
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
    assert f"| 2 of 2 | {first:.0f} | 0% | 50% |\n| 2 of 2 | {second:.0f} | 50% | 50% |" in card
    assert str(tmp_path) not in card
    bundled = (MODEL_PATH / "tokenizer.json").read_bytes()
    assert (tmp_path / "whole/tokenizer.json").read_bytes() == bundled
    with pytest.raises(SystemExit, match=r"was trained with .*'seed': 0.*, not .*'seed': 1.*; give another"):
        train(tmp_path / "whole", seed=1)


def test_digits_weigh_more_and_the_first_in_the_box_still_more(script):
    tokenizer = AutoTokenizer.from_pretrained(MODEL_PATH)
    for ask in ("all", "last"):
        [trace] = sample_traces(1, seed=3, ask=ask)
        inputs, targets = script.collate([script.encode(trace, tokenizer)], tokenizer.pad_token_id)
        graded, labels = targets[0, 1:] != script.IGNORE, targets[0, 1:]
        told = script.weights(targets[:, 1:], tokenizer)[0]
        texts = tokenizer.convert_ids_to_tokens(labels[graded].tolist())
        box = len(texts) - 1 - texts[::-1].index("{")
        # one in ordinary text, four on a digit, five times four behind the brace
        assert told[graded].tolist() == [20 if i == box + 1 else 4 if t.isdigit() else 1 for i, t in enumerate(texts)]
        assert not told[~graded].any()
        assert torch.equal(inputs[0, 1:][graded], labels[graded])

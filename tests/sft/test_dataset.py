"""The rows that verl's SFT trainer reads, from files of traces and selections."""

import json
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from testkit.tiny import OPENS_THINK, byte_level_tokenizer, metaspace_tokenizer

import segrl
from segrl import Trace
from segrl.data import save_traces, write_rows
from segrl.data.records import failed_selection_row, selection_row
from segrl.importance import from_strength
from segrl.importance.aggregation import token_scores
from segrl.sft.dataset import SelectiveDataset, save_examples
from segrl.sft.rows import reselecting

RESPONSE = "First, 3 + 4 = 7.\n\nWait, so 7.\n\nHowever, 7.\n</think>\nthe answer is \\boxed{7}."
TOKENIZER = byte_level_tokenizer()
EOS = TOKENIZER.eos_token_id


def traces(n: int = 2) -> list[Trace]:
    return [Trace(id=f"t{i}", problem=f"What is 3 + {i}?", response=RESPONSE, answer="7") for i in range(n)]


def selected(trace: Trace, keep: str, tokenizer=TOKENIZER, template: str = "chat") -> dict:
    """A row as `segrl select` writes it; ``keep`` is a 1 or 0 for each segment."""
    trace = segrl.tokenize(trace, tokenizer, template)
    segments = segrl.segment(trace)
    assert len(segments) == len(keep)
    keep_S = torch.tensor([one == "1" for one in keep])
    selection = segrl.Selection(keep_S, tuple("forced" if one == "1" else "dropped" for one in keep))
    return selection_row(trace, segments, from_strength(keep_S.double(), segments), selection)


def dataset(folder: Path, given: list[Trace], rows: list[dict] | None = None, tokenizer=TOKENIZER, **settings):
    save_traces(given, folder / "traces.jsonl")
    if rows is not None:
        write_rows(folder / "selections.parquet", rows)
    config = {
        "max_length": settings.pop("max_length", 512),
        "segrl": {
            "mode": "full" if rows is None else "selective",
            "selections": str(folder / "selections.parquet"),
            "template": "chat",
            "think_start": "never",  # tests of it say otherwise
            **settings,
        },
    }
    return SelectiveDataset([str(folder / "traces.jsonl")], tokenizer, OmegaConf.create(config))


def test_each_label_counts_as_its_own_segment(tmp_path):
    [row] = dataset(tmp_path, traces(1), [selected(traces(1)[0], "1011")])
    kept = row["input_ids"][row["loss_mask"] == 1]
    assert TOKENIZER.decode(kept) == "First, 3 + 4 = 7.\n\nHowever, 7.\n</think>\nthe answer is \\boxed{7}.<|im_end|>"
    assert TOKENIZER.decode(row["input_ids"]).endswith(RESPONSE + "<|im_end|>")
    assert row["loss_mask"][0] == 0
    assert torch.equal(row["position_ids"], torch.arange(len(row["input_ids"])))


def test_full_mode_counts_the_whole_response_and_nothing_of_the_prompt(tmp_path):
    [row] = dataset(tmp_path, traces(1))
    trace = segrl.tokenize(traces(1)[0], TOKENIZER)
    assert row["loss_mask"].tolist() == [0.0] * len(trace.prompt_ids) + [1.0] * (trace.tokens + 1)


def test_soft_counts_by_the_share_of_each_segment(tmp_path):
    """Shares 1/4, 3/4, 0 of the thinking: by the rule linear the weights, of mean one over its tokens, are as these."""
    trace = segrl.tokenize(traces(1)[0], TOKENIZER)
    segments = segrl.segment(trace)
    scores = from_strength(torch.tensor([1.0, 3.0, 0.0, 0.0]), segments)
    row = selection_row(trace, segments, scores, segrl.select(scores))
    [one] = dataset(tmp_path, traces(1), [row], mode="soft", think_end="segment")
    weights_T = one["loss_mask"][len(trace.prompt_ids) : -1]
    expected_T = segrl.weigh(scores, segments, rule="linear")
    torch.testing.assert_close(weights_T, expected_T)
    first, second, third, answer = (weights_T[one] for one in segments.slices)
    torch.testing.assert_close(second, torch.full_like(second, 3 * float(first[0])))
    assert third.tolist() == [0.0] * len(third)
    assert answer.tolist() == [1.0] * len(answer)


def test_pruned_leaves_the_rest_out_of_the_context_too(tmp_path):
    row = selected(traces(1)[0], "1001")
    [one] = dataset(tmp_path, traces(1), [row], mode="pruned")
    response = "First, 3 + 4 = 7.\n</think>\nthe answer is \\boxed{7}."
    assert TOKENIZER.decode(one["input_ids"][one["loss_mask"] == 1]) == response + "<|im_end|>"
    assert TOKENIZER.decode(one["input_ids"]).endswith(f"assistant\n{response}<|im_end|>")


def test_a_response_that_ends_by_itself_gets_no_second_end(tmp_path):
    ids = TOKENIZER("Wait, 7.", add_special_tokens=False)["input_ids"]
    ended = Trace.from_ids(id="t", problem="", prompt_ids=[5], response_ids=[*ids, EOS], tokenizer=TOKENIZER)
    [row] = dataset(tmp_path, [ended])
    assert row["input_ids"].tolist() == [5, *ids, EOS]
    assert row["loss_mask"].tolist() == [0.0, *[1.0] * len(ids), 1.0]


def test_rollout_ids_are_kept(tmp_path):
    """`Wait` letter by letter, as the tokenizer would never write it."""
    ids = [TOKENIZER.convert_tokens_to_ids(letter) for letter in "Wait"]
    sampled = Trace.from_ids(id="t", problem="p", prompt_ids=[5], response_ids=ids, tokenizer=TOKENIZER)
    assert TOKENIZER("Wait", add_special_tokens=False)["input_ids"] != ids
    [row] = dataset(tmp_path, [sampled])
    assert row["input_ids"].tolist() == [5, *ids, EOS]


# --- selections of another tokenizer ---------------------------------------------------------------------------------


@pytest.mark.parametrize("maker", [byte_level_tokenizer(300), metaspace_tokenizer()], ids=["byte-level", "metaspace"])
@pytest.mark.parametrize("saved", [True, False], ids=["tokens saved", "text alone"])
def test_selections_of_another_tokenizer_keep_the_same_text(tmp_path, monkeypatch, maker, saved):
    """What is kept is the same text, whichever tokens count it, up to a token that lies across its edge."""
    template = "Q: {problem} A:"
    [trace] = traces(1)
    row = selected(trace, "0100", maker, template)
    given = segrl.tokenize(trace, maker, template) if saved else trace
    monkeypatch.setattr("segrl.sft.dataset.load_tokenizer", lambda path: maker)
    settings = {"template": template, "think_end": "segment", "boxed": "segment", "end": "segment"}
    found = dataset(tmp_path, [given], [row], attributor_path=None if saved else "maker", **settings)
    [one] = found
    [note] = found.notes
    makers, ours = segrl.tokenize(trace, maker, template), segrl.tokenize(trace, TOKENIZER, template)
    start, end = segrl.segment(makers).boundaries[1:3]
    first, last = int(makers.offsets_T[start, 0]), int(makers.offsets_T[end, 0])
    assert "so 7" in RESPONSE[first:last]
    kept = [first <= char < last for char in ours.offsets_T[:, 0].tolist()]
    assert (one["loss_mask"][len(ours.prompt_ids) : -1] > 0).tolist() == kept
    before, after = 100 * (end - start) / makers.tokens, 100 * float((one["loss_mask"] > 0).sum()) / ours.tokens
    assert (
        f"{before:.2f}% of the attributor's tokens kept, {after:.2f}% of the model's ({after - before:+.2f} points)"
        in note
    )


def test_a_prompt_that_opens_the_thought_and_one_that_does_not_see_the_same_segments(tmp_path, monkeypatch):
    """R1's template opens `<think>`, so that its response begins behind it; Qwen's leaves it in the response."""
    maker = byte_level_tokenizer(chat_template=OPENS_THINK)
    trace = Trace(id="t0", problem="p", response="<think>\n" + RESPONSE, answer="7")
    row = selected(trace, "0100", maker)
    monkeypatch.setattr("segrl.sft.dataset.load_tokenizer", lambda path: maker)
    settings = {"think_end": "segment", "boxed": "segment", "end": "segment"}
    [one] = dataset(tmp_path, [trace], [row], attributor_path="maker", **settings)
    assert TOKENIZER.decode(one["input_ids"][one["loss_mask"] > 0]) == "Wait, so 7.\n\n"
    assert "<think>\nFirst" in TOKENIZER.decode(one["input_ids"])


BARE = RESPONSE.replace("</think>\n", "")  # as LIMO's: no tag at all


@pytest.mark.parametrize(
    ("think_start", "response", "opened"),
    [
        ("closed", RESPONSE, True),
        ("closed", BARE, False),
        ("always", BARE, True),
        ("always", f"<think>\n{RESPONSE}", True),
        ("never", RESPONSE, False),
    ],
)
@pytest.mark.parametrize("opens", [False, True], ids=["the response opens", "the prompt opens"])
def test_a_thought_is_opened_once_whoever_opens_it(tmp_path, think_start, response, opened, opens):
    tokenizer = byte_level_tokenizer(chat_template=OPENS_THINK) if opens else TOKENIZER
    given = [Trace(id="t0", problem="p", response=response, answer="7")]
    [row] = dataset(tmp_path, given, tokenizer=tokenizer, think_start=think_start)
    text, counted = (tokenizer.decode(ids) for ids in (row["input_ids"], row["input_ids"][row["loss_mask"] > 0]))
    assert text.count("<think>\nFirst") == (opened or opens)
    assert text.count("<think>") == (opened or opens)
    assert counted.startswith("<think>\nFirst" if opened and not opens else "First")


@pytest.mark.parametrize("own", [True, False], ids=["own tokenizer", "attributor's"])
def test_an_opened_thought_is_masked_as_its_first_segment(tmp_path, monkeypatch, own):
    """The selection knows nothing of the tag, which is put before the response afterwards."""
    maker = TOKENIZER if own else byte_level_tokenizer(chat_template=OPENS_THINK)
    monkeypatch.setattr("segrl.sft.dataset.load_tokenizer", lambda path: maker)
    marks = {"think_end": "segment", "boxed": "segment", "end": "segment", "think_start": "always"}
    kept = {}
    for keep in ("100", "010"):
        trace = Trace(id="t0", problem="p", response=BARE, answer="7")
        row = selected(trace, keep, maker)
        [one] = dataset(tmp_path, [trace], [row], attributor_path=None if own else "maker", **marks)
        kept[keep] = TOKENIZER.decode(one["input_ids"][one["loss_mask"] > 0])
    assert kept == {"100": "<think>\nFirst, 3 + 4 = 7.\n\n", "010": "Wait, so 7.\n\n"}


def test_only_selections_of_another_tokenizer_have_a_note(tmp_path, monkeypatch):
    monkeypatch.setattr("segrl.sft.dataset.load_tokenizer", lambda path: byte_level_tokenizer())
    found = dataset(tmp_path, traces(1), [selected(traces(1)[0], "1011")], attributor_path="maker")
    assert not found.notes
    other = byte_level_tokenizer(chat_template=OPENS_THINK)  # the same words, another prompt
    monkeypatch.setattr("segrl.sft.dataset.load_tokenizer", lambda path: other)
    [note] = dataset(tmp_path, traces(1), [selected(traces(1)[0], "1011", other)], attributor_path="maker").notes
    assert "selections made on the attributor's tokens" in note


def test_what_a_tool_wrote_is_not_trained_on_in_other_tokens_either(tmp_path):
    maker = byte_level_tokenizer(300)
    texts = ["So I ask. ", "SECRET RESULT", " and so 7"]
    written = [(i != 1, one) for i, text in enumerate(texts) for one in maker(text)["input_ids"]]
    ids = {"prompt_ids": maker("What?")["input_ids"], "response_ids": [one for _, one in written]}
    trainable_T = torch.tensor([own for own, _ in written])
    given = Trace.from_ids(id="t", problem="p", tokenizer=maker, trainable_T=trainable_T, **ids)
    [row] = dataset(tmp_path, [given])
    assert "SECRET RESULT" in TOKENIZER.decode(row["input_ids"])
    counted = TOKENIZER.decode(row["input_ids"][row["loss_mask"] > 0])
    assert counted == "So I ask.  and so 7<|im_end|>"


def test_words_of_one_family_in_another_models_prompt_are_made_again(tmp_path):
    """The same ids spell the response, but the prompt they stand behind is another model's."""
    other = byte_level_tokenizer(chat_template=OPENS_THINK)
    [row] = dataset(tmp_path, [replace(segrl.tokenize(traces(1)[0], other), prompt_hash="0" * 16)])
    assert not TOKENIZER.decode(row["input_ids"]).count("<think>")
    sampled = TOKENIZER("A prompt of a rollout", add_special_tokens=False)["input_ids"]
    ids = {"prompt_ids": sampled, "response_ids": TOKENIZER("7")["input_ids"]}
    [row] = dataset(tmp_path, [Trace.from_ids(id="t", problem="p", tokenizer=TOKENIZER, **ids)])
    assert row["input_ids"][: len(sampled)].tolist() == sampled


# --- what is left out, and what is refused ---------------------------------------------------------------------------


def test_too_long_is_an_error_or_dropped_or_cut_and_counted(tmp_path):
    rows = [selected(trace, "1011") for trace in traces(2)]
    with pytest.raises(ValueError, match=r"data\.max_length=40 .*; the longest, '[^']+', has \d+ tokens"):
        dataset(tmp_path, traces(1), max_length=40)
    assert dataset(tmp_path, traces(2), max_length=40, too_long="drop").notes == ["2 too long and dropped (t0, t1)"]
    trace = segrl.tokenize(traces(1)[0], TOKENIZER)
    room = len(trace.prompt_ids) + segrl.segment(trace).boundaries[2]
    for given in (None, rows):
        cut = dataset(tmp_path, traces(2), given, max_length=room + 1, too_long="truncate")
        assert cut.notes == ["2 too long and cut at a segment boundary (t0, t1)"]
        assert TOKENIZER.decode(cut[0]["input_ids"]).endswith("First, 3 + 4 = 7.\n\nWait, so 7.\n\n")
    whole = len(trace.prompt_ids) + trace.tokens + 1
    assert not dataset(tmp_path, traces(1), max_length=whole, too_long="truncate").notes


def test_the_rows_of_a_token_measure_are_cut_at_the_traces_own_segments(tmp_path):
    trace = segrl.tokenize(traces(1)[0], TOKENIZER)
    segments = segrl.segment(trace)
    scores = token_scores(torch.ones(trace.tokens), segments)
    row = selection_row(trace, segments, scores, segrl.select(scores, tau=1.0))
    room = len(trace.prompt_ids) + segments.boundaries[2] + 1
    cut = dataset(tmp_path, traces(1), [row], max_length=room, too_long="truncate")
    assert TOKENIZER.decode(cut[0]["input_ids"]).endswith("First, 3 + 4 = 7.\n\nWait, so 7.\n\n")


def test_a_trace_that_could_not_be_scored_is_dropped_and_counted(tmp_path):
    given = [segrl.tokenize(trace, TOKENIZER) for trace in traces(2)]
    failed = failed_selection_row(given[0], segrl.segment(given[0]), "its scores are not finite")
    for again in ({}, {"tau": 0.5}):  # which would force its first and last thought
        found = dataset(tmp_path, traces(2), [failed, selected(traces(2)[1], "1111")], **again)
        assert found.notes == ["1 that could not be scored, dropped (t0)"]
        assert len(found) == 1


def test_no_more_rows_than_asked_for(tmp_path):
    config = OmegaConf.create({"max_length": 512, "segrl": {"mode": "full", "template": "chat"}})
    save_traces(traces(3), tmp_path / "traces.jsonl")
    assert len(SelectiveDataset(str(tmp_path / "traces.jsonl"), TOKENIZER, config, max_samples=2)) == 2


def test_a_row_without_a_kept_token_is_dropped_and_counted(tmp_path):
    found = dataset(tmp_path, traces(2), [selected(traces(2)[0], "0000"), selected(traces(2)[1], "1001")])
    assert found.notes == ["1 without a kept token and dropped (t0)"]
    assert len(found) == 1


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"id": "other"}, "trace 't0' has none of the 1 selections"),
        ({"response_hash": "0" * 16}, "made for another response"),
        ({"prompt_hash": "0" * 16}, "made for another prompt"),
        ({"boundaries": [0, 1, 2, 3, 4]}, "the selection covers 4 tokens, this tokenizer makes"),
    ],
)
def test_a_selection_made_from_something_else_is_refused(tmp_path, change, sentence):
    with pytest.raises(ValueError, match=sentence):
        dataset(tmp_path, traces(1), [selected(traces(1)[0], "1111") | change])


def test_without_selections_a_mode_that_reads_them_says_so(tmp_path):
    with pytest.raises(ValueError, match="needs selections=<file>"):
        dataset(tmp_path, traces(1), mode="selective", selections=None)


def test_another_threshold_selects_anew_from_the_saved_scores(tmp_path):
    trace = segrl.tokenize(traces(1)[0], TOKENIZER)
    segments = segrl.segment(trace)
    scores = from_strength(torch.tensor([1.0, 3.0, 2.0, 0.0]), segments)
    row = selection_row(trace, segments, scores, segrl.select(scores, tau=1.0))
    assert dataset(tmp_path, traces(1), [row]).kept == trace.tokens + 1
    fewer = dataset(tmp_path, traces(1), [row], tau=0.1)  # the second alone; the first and third are forced
    again = dataset(tmp_path, traces(1), [row | {"share": [0.0, 0.0, 1.0, 0.0], "strength": [0.0, 0, 1, 0]}], tau=0.1)
    assert fewer.kept == trace.tokens + 1
    assert again.kept == trace.tokens + 1 - int(segments.tokens_S[1])


def test_another_threshold_leaves_the_rest_as_the_selections_were_made(tmp_path):
    """Selected with beta 1 and nothing forced; by select's own 0.8 the second, of consistency 0.9, would go."""
    trace = segrl.tokenize(traces(1)[0], TOKENIZER)
    segments = segrl.segment(trace)
    scores = from_strength(torch.tensor([1.0, 3.0, 2.0, 0.0]), segments, torch.tensor([0.0, 0.9, 0.9, 0.0]).double())
    row = selection_row(trace, segments, scores, segrl.select(scores))
    note = {"measure": "ig", "tau": 0.9, "beta": 1.0, "force": [], "match_tokens": 0.45, "attributor": "a"}
    (tmp_path / "selections.json").write_text(json.dumps(note))
    found = dataset(tmp_path, traces(1), [row], tau=0.5, end="never", think_end="segment", boxed="segment")
    assert found.kept == int(segments.tokens_S[1] + segments.tokens_S[3])  # the second alone, and the answer
    options = reselecting(str(tmp_path / "selections.parquet"), None, 0.5)
    kept = {"tau": 0.9, "beta": 0.5, "force": [], "match_tokens": 0.45}
    assert options == {**kept, "match_segments": None, "beta_min_tokens": 1, "consistency": "plain"}


def test_saved_rows_are_the_rows(tmp_path):
    made = dataset(tmp_path, traces(2), [selected(trace, "1011") for trace in traces(2)])
    save_examples(tmp_path / "rows.safetensors", made.examples)
    config = OmegaConf.create({"train_files": "t", "segrl": {"rows": str(tmp_path / "rows.safetensors")}})
    read = SelectiveDataset("t", TOKENIZER, config)
    assert (read.fingerprint, read.tokens, read.kept) == (made.fingerprint, made.tokens, made.kept)
    for a, b in zip(made, read, strict=True):
        assert all(torch.equal(a[name], b[name]) for name in ("input_ids", "position_ids", "loss_mask"))


def test_the_former_module_says_the_new_one():
    with pytest.raises(ImportError, match=r"is now segrl\.sft\.dataset"):
        import_module("segrl.verl.sft_dataset")

"""The dataset that verl's SFT trainer reads, aligned by hand, and the gradient its mask lets through."""

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from tiny import byte_level_tokenizer

import segrl
from segrl import Trace
from segrl.data import save_traces, write_rows
from segrl.importance import from_strength
from segrl.records import selection_row
from segrl.verl.sft import Example, SelectiveDataset, export, main, make_example, planned_steps, summary

RESPONSE = "First, 3 + 4 = 7.\n\nWait, so 7.\n\nHowever, 7.\n</think>\nthe answer is \\boxed{7}."
EOS = byte_level_tokenizer().eos_token_id


def traces(n: int = 2) -> list[Trace]:
    return [Trace(id=f"t{i}", problem=f"What is 3 + {i}?", response=RESPONSE, answer="7") for i in range(n)]


def selected(trace: Trace, keep: str) -> dict:
    """A row as `segrl select` writes it; ``keep`` is a 1 or 0 for each segment."""
    trace = segrl.tokenize(trace, byte_level_tokenizer())
    segments = segrl.segment(trace)
    assert len(segments) == len(keep)
    keep_S = torch.tensor([one == "1" for one in keep])
    selection = segrl.Selection(keep_S, tuple("forced" if one == "1" else "dropped" for one in keep))
    return selection_row(trace, segments, from_strength(keep_S.double(), segments), selection)


def dataset(folder: Path, given: list[Trace], rows: list[dict] | None = None, **settings) -> SelectiveDataset:
    save_traces(given, folder / "traces.jsonl")
    if rows is not None:
        write_rows(folder / "selections.parquet", rows)
    config = {
        "max_length": settings.pop("max_length", 512),
        "segrl": {
            "mode": "full" if rows is None else "selective",
            "selections": str(folder / "selections.parquet"),
            "template": "chat",
            "too_long": "error",
            **settings,
        },
    }
    return SelectiveDataset([str(folder / "traces.jsonl")], byte_level_tokenizer(), OmegaConf.create(config))


def test_each_label_counts_as_its_own_segment(tmp_path):
    [row] = dataset(tmp_path, traces(1), [selected(traces(1)[0], "1011")])
    tokenizer = byte_level_tokenizer()
    kept = row["input_ids"][row["loss_mask"] == 1]
    assert tokenizer.decode(kept) == "First, 3 + 4 = 7.\n\nHowever, 7.\n</think>\nthe answer is \\boxed{7}.<|im_end|>"
    assert tokenizer.decode(row["input_ids"]).endswith(RESPONSE + "<|im_end|>")
    assert row["loss_mask"][0] == 0
    assert torch.equal(row["position_ids"], torch.arange(len(row["input_ids"])))


def test_full_mode_counts_the_whole_response_and_nothing_of_the_prompt(tmp_path):
    [row] = dataset(tmp_path, traces(1))
    trace = segrl.tokenize(traces(1)[0], byte_level_tokenizer())
    assert row["loss_mask"].tolist() == [0.0] * len(trace.prompt_ids) + [1.0] * (trace.tokens + 1)


def test_a_response_that_ends_by_itself_gets_no_second_end():
    ended = Trace.from_ids(
        id="t", problem="", prompt_ids=[5], response_ids=[6, 7, EOS], tokenizer=byte_level_tokenizer()
    )
    example = make_example(ended, torch.tensor([1.0, 0.0, 0.0]), EOS)
    assert example.ids_L.tolist() == [5, 6, 7, EOS]
    assert example.mask_L.tolist() == [0.0, 1.0, 0.0, 1.0]


def test_rollout_ids_are_kept(tmp_path):
    """`1` and `2` one by one, which the tokenizer would never write where it has learned `12`."""
    tokenizer = byte_level_tokenizer()
    ids = [tokenizer.convert_tokens_to_ids(letter) for letter in "Wait"]
    sampled = Trace.from_ids(id="t", problem="p", prompt_ids=[5], response_ids=ids, tokenizer=tokenizer)
    assert tokenizer("Wait", add_special_tokens=False)["input_ids"] != ids
    [row] = dataset(tmp_path, [sampled])
    assert row["input_ids"].tolist() == [5, *ids, EOS]


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


def test_too_long_is_an_error_or_dropped_and_counted(tmp_path):
    with pytest.raises(ValueError, match=r"data\.max_length is 40; raise it, or set segrl.too_long=drop"):
        dataset(tmp_path, traces(1), max_length=40)
    assert dataset(tmp_path, traces(2), max_length=40, too_long="drop").dropped == ["t0", "t1"]


def test_a_wrong_mode_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"segrl.mode='selectiv', did you mean 'selective'\?"):
        dataset(tmp_path, traces(1), mode="selectiv")
    with pytest.raises(ValueError, match="needs selections=<file>"):
        dataset(tmp_path, traces(1), mode="selective", selections=None)


# --- what verl makes of it -------------------------------------------------------------------------------------------


def verl_loss(examples: list[Example], logits: list[torch.Tensor]) -> torch.Tensor:
    """verl's own loss on a batch, as its engine calls it on one rank."""
    pytest.importorskip("verl")
    from verl.utils import tensordict_utils as tu
    from verl.utils.dataset.dataset_utils import SFTTensorCollator
    from verl.workers.utils.losses import sft_loss

    rows = [{"input_ids": one.ids_L, "loss_mask": one.mask_L} for one in examples]
    batch = tu.get_tensordict(SFTTensorCollator("no_padding")(rows))
    tu.assign_non_tensor(batch, dp_size=1, batch_num_tokens=float(batch["loss_mask"].values().sum()))
    # The engine's log-prob at a position is that of the next token of the flattened batch.
    logp = torch.cat([torch.log_softmax(one, -1) for one in logits])
    ids = batch["input_ids"].values().roll(-1)
    log_probs = torch.nested.nested_tensor_from_jagged(
        logp.gather(1, ids[:, None]).squeeze(1), batch["input_ids"].offsets()
    )
    return sft_loss(None, {"log_probs": log_probs}, batch)[0]


def test_a_masked_token_gets_no_gradient_and_a_kept_one_what_full_sft_gives_it():
    ids = [torch.tensor([1, 2, 3, 4]), torch.tensor([1, 5, 6])]
    kept = [torch.tensor([0.0, 1.0, 0.0, 1.0]), torch.tensor([0.0, 0.0, 1.0])]
    full = [torch.tensor([0.0, 1.0, 1.0, 1.0]), torch.tensor([0.0, 1.0, 1.0])]
    torch.manual_seed(0)
    values = [torch.randn(4, 8), torch.randn(3, 8)]

    def gradients(masks):
        logits = [one.clone().requires_grad_() for one in values]
        loss = verl_loss([Example(*pair) for pair in zip(ids, masks, strict=True)], logits)
        return [g * sum(float(mask.sum()) for mask in masks) for g in torch.autograd.grad(loss, logits)]

    for ours, whole, mask in zip(gradients(kept), gradients(full), kept, strict=True):
        predicts_kept = mask.roll(-1).bool()  # the row that predicts token t is the one before it
        assert torch.equal(ours[~predicts_kept], torch.zeros_like(ours[~predicts_kept]))
        torch.testing.assert_close(ours[predicts_kept], whole[predicts_kept])


def test_the_loss_is_the_mean_over_kept_tokens_by_hand():
    examples = [
        Example(torch.tensor([1, 2, 3]), torch.tensor([0.0, 1.0, 0.0])),
        Example(torch.tensor([1, 4]), torch.tensor([0.0, 1.0])),
    ]
    torch.manual_seed(0)
    logits = [torch.randn(3, 8), torch.randn(2, 8)]
    by_hand = -(torch.log_softmax(logits[0], -1)[0, 2] + torch.log_softmax(logits[1], -1)[0, 4]) / 2
    torch.testing.assert_close(verl_loss(examples, logits), by_hand)


# --- the command -----------------------------------------------------------------------------------------------------


def sft_config(**changes):
    base = {
        "nproc": 1,
        "data": {"train_batch_size": 2},
        "trainer": {"total_epochs": 3, "total_training_steps": None},
        "segrl": {"mode": "full"},
    }
    return OmegaConf.merge(base, OmegaConf.from_dotlist([f"{key}={value}" for key, value in changes.items()]))


@pytest.mark.parametrize(("rows", "nproc", "steps"), [(4, 1, 6), (5, 1, 6), (4, 2, 6), (7, 2, 9)])
def test_steps_are_counted_as_verl_counts_them(rows, nproc, steps):
    assert planned_steps(rows, sft_config(nproc=nproc)) == steps


def test_steps_that_cannot_be_made_are_refused():
    with pytest.raises(ValueError, match="make 0 steps in 3 epochs, at least one must be made"):
        planned_steps(1, sft_config())
    with pytest.raises(ValueError, match="make 6 steps in 3 epochs, 9 must be made"):
        planned_steps(4, sft_config(**{"trainer.total_training_steps": 9}))


def test_the_summary_counts_and_refuses_an_empty_mask(tmp_path):
    whole = dataset(tmp_path, traces(2))
    assert whole.tokens == whole.kept == 2 * (segrl.tokenize(traces(1)[0], byte_level_tokenizer()).tokens + 1)
    assert summary(whole, 6, sft_config()).startswith(
        f"full SFT: 2 traces, {whole.tokens} response tokens, {whole.kept} of them"
    )
    whole.examples = [Example(one.ids_L, torch.zeros_like(one.mask_L)) for one in whole.examples]
    with pytest.raises(ValueError, match="no token of 2 traces is kept"):
        summary(whole, 6, sft_config())


def test_without_a_model_there_is_nothing_to_export(tmp_path):
    config = OmegaConf.create({"out": str(tmp_path), "trainer": {"default_local_dir": str(tmp_path)}})
    with pytest.raises(FileNotFoundError, match="there is no model in"):
        export(config, 2)


def test_the_command_says_what_it_needs():
    with pytest.raises(ValueError, match="traces and out must be given"):
        main(OmegaConf.create({"traces": None, "out": None}))

"""What verl's own loss makes of our masks: by hand, and by autograd on the bundled model."""

import pytest

pytest.importorskip("verl")

import torch
from verl.utils import tensordict_utils as tu
from verl.utils.dataset.dataset_utils import SFTTensorCollator
from verl.workers.utils.losses import sft_loss

import segrl
from segrl import toy
from segrl.sft.masking import Choice, Example, Masked, Rules, example, mask
from segrl.types import TokenisedTrace


def verl_loss(examples: list[Example], logits: list[torch.Tensor], tokens: float, dp_size: int = 1) -> torch.Tensor:
    """verl's loss on a micro-batch of one rank; ``tokens`` is the mask's sum over the global batch, as its engine
    gathers it.
    """
    rows = [{"input_ids": one.ids_L, "loss_mask": one.mask_L} for one in examples]
    batch = tu.get_tensordict(SFTTensorCollator("no_padding")(rows))
    tu.assign_non_tensor(batch, dp_size=dp_size, batch_num_tokens=tokens)
    # The engine's log-prob at a position is that of the next token of the flattened batch.
    logp = torch.cat([torch.log_softmax(one, -1) for one in logits])
    ids = batch["input_ids"].values().roll(-1)
    log_probs = torch.nested.nested_tensor_from_jagged(
        logp.gather(1, ids[:, None]).squeeze(1), batch["input_ids"].offsets()
    )
    return sft_loss(None, {"log_probs": log_probs}, batch)[0]


def total(examples: list[Example]) -> float:
    return float(sum(one.mask_L.sum() for one in examples))


# --- normalisation ---------------------------------------------------------------------------------------------------


def random_rows(normalise: str) -> tuple[list[Example], list[torch.Tensor]]:
    """Four rows of 3 to 9 tokens, a prompt of two, and 1, 2, 3 and 4 kept tokens."""
    torch.manual_seed(0)
    examples, logits = [], []
    for kept, length in enumerate((3, 5, 9, 7), 1):
        weights_T = torch.zeros(length - 2)
        weights_T[torch.randperm(length - 2)[:kept]] = 1
        offsets_T = torch.stack([torch.arange(length - 2), torch.arange(1, length - 1)], dim=1)
        trace = TokenisedTrace(
            id="t",
            problem="",
            response="x" * (length - 2),
            prompt_ids=torch.randint(8, (2,)),
            response_ids=torch.randint(8, (length - 2,)),
            offsets_T=offsets_T,
            trainable_T=torch.ones(length - 2, dtype=torch.bool),
            prompt_hash="",
        )
        examples.append(example(Masked(trace, weights_T, torch.zeros(length - 2), ends=False), 0, normalise))
        logits.append(torch.randn(length, 8))
    return examples, logits


def by_hand(examples, logits, normalise) -> torch.Tensor:
    """-log p of each kept token given what stands before it; over all of them, or over traces of their own means."""
    nll = [
        [-torch.log_softmax(logits[i][t - 1], -1)[one.ids_L[t]] for t in range(len(one.ids_L)) if one.mask_L[t] > 0]
        for i, one in enumerate(examples)
    ]
    if normalise == "batch":
        return torch.stack([each for row in nll for each in row]).mean()
    return torch.stack([torch.stack(row).mean() for row in nll]).mean()


@pytest.mark.parametrize("normalise", ["batch", "trace"])
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("micro", [1, 2, 4])
def test_the_loss_is_the_mean_that_was_asked_for(normalise, ranks, micro):
    """FSDP averages gradients over ranks, so the loss that is minimised is the mean of the ranks' sums."""
    examples, logits = random_rows(normalise)
    shares = [range(rank, 4, ranks) for rank in range(ranks)]
    pieces = [list(share)[at : at + micro] for share in shares for at in range(0, len(share), micro)]
    losses = [
        verl_loss([examples[i] for i in piece], [logits[i] for i in piece], total(examples), ranks) for piece in pieces
    ]
    torch.testing.assert_close(sum(losses) / ranks, by_hand(examples, logits, normalise))


def test_soft_weights_weigh_each_label():
    examples, logits = random_rows("batch")
    soft = [Example(one.ids_L, one.mask_L * torch.rand(len(one.mask_L)), 2) for one in examples]
    nll = [
        -float(one.mask_L[t]) * torch.log_softmax(logits[i][t - 1], -1)[one.ids_L[t]]
        for i, one in enumerate(soft)
        for t in range(len(one.ids_L))
        if one.mask_L[t] > 0
    ]
    torch.testing.assert_close(verl_loss(soft, logits, total(soft)), torch.stack(nll).sum() / total(soft))


# --- what reaches the model ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bundled():
    if not (toy.MODEL_PATH / "model.safetensors").exists():
        pytest.skip("no model is bundled")
    return toy.load_model()


def rows_of(keep, tokenizer, n: int = 2) -> list[Example]:
    """Toy traces whose segments are kept where ``keep`` says so of their number."""
    rows = []
    for trace in toy.sample_traces(n, seed=7):
        trace = segrl.tokenize(trace, tokenizer)
        segments = segrl.segment(trace)
        weights_S = torch.tensor([float(keep(s)) for s in range(len(segments))])
        rules = Rules(end="segment", think_end="segment", boxed="segment")
        rows.append(
            example(mask(trace, Choice(weights_S[segments.index_T], segments.index_T), rules), tokenizer.eos_token_id)
        )
    return rows


def test_masked_segments_give_no_gradient_and_kept_ones_that_of_full_sft(bundled):
    """By autograd through the model: what a prediction is told, of a masked token exactly nothing, of a kept token what
    full SFT tells it but for the number of tokens averaged over.
    """
    model, tokenizer = bundled
    found = {}
    for name, keep in (("half", lambda s: s % 2 == 0), ("all", lambda s: True)):
        rows = rows_of(keep, tokenizer)
        logits = [model(one.ids_L[None]).logits[0] for one in rows]
        gradients = torch.autograd.grad(verl_loss(rows, logits, total(rows)), logits)
        found[name] = rows, [gradient * total(rows) for gradient in gradients]
    for one, ours, whole in zip(found["half"][0], found["half"][1], found["all"][1], strict=True):
        predicts_kept = one.mask_L.roll(-1).bool()
        assert 0 < int(predicts_kept.sum()) < len(predicts_kept)
        assert torch.equal(ours[~predicts_kept], torch.zeros_like(ours[~predicts_kept]))
        torch.testing.assert_close(ours[predicts_kept], whole[predicts_kept], atol=1e-6, rtol=1e-4)


def test_the_parameters_move_by_the_kept_tokens_of_the_whole_context_alone(bundled):
    """Against a loss written out: the log-probs of kept tokens, each behind all that stands before it."""
    model, tokenizer = bundled
    rows = rows_of(lambda s: s == 1, tokenizer, n=1)
    parameters = list(model.parameters())
    logits = [model(one.ids_L[None]).logits[0] for one in rows]
    ours = torch.autograd.grad(verl_loss(rows, logits, total(rows)), parameters)
    kept = [
        torch.log_softmax(model(one.ids_L[None, :t]).logits[0, -1], -1)[one.ids_L[t]]
        for one in rows
        for t in one.mask_L.nonzero().flatten().tolist()
    ]
    by_hand = torch.autograd.grad(-torch.stack(kept).mean(), parameters)
    for a, b in zip(ours, by_hand, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-3)

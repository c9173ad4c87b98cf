import warnings

import pytest
import torch
from testkit import paper
from testkit.tiny import byte_level_tokenizer, tiny_model

import segrl
from segrl import Trace
from segrl.attribution.path import resolve_baseline


def trace():
    return segrl.tokenize(Trace("t", "3+4?", "Okay, 3 + 4.\n\nWait, 7.", "77"), byte_level_tokenizer())


def attribute(model, **options):
    [found] = paper.attribute(model, [trace()], byte_level_tokenizer(), **options)
    return found


def test_the_pad_token_else_the_end_of_text():
    def bare(pad, eos):
        return type("Bare", (), {"pad_token_id": pad, "eos_token_id": eos})

    assert resolve_baseline("pad", bare(3, 5)) == 3
    assert resolve_baseline("pad", bare(None, 5)) == 5
    assert resolve_baseline(7, bare(None, None)) == 7
    with pytest.raises(ValueError, match="neither a pad nor an end-of-text token; pass baseline"):
        resolve_baseline("pad", bare(None, None))
    with pytest.raises(ValueError, match="baseline='padd', expected one of"):
        resolve_baseline("padd", bare(3, 5))


@pytest.mark.filterwarnings("ignore:the embedding of token")  # a mean is shorter than any row
@pytest.mark.parametrize("architecture", ["qwen2", "gemma"])
def test_the_mean_embedding_is_what_a_token_with_that_embedding_gives(architecture):
    """Written into an unused row of the table, the mean gives the same scores; Gemma scales both."""
    model = tiny_model(architecture)
    weight, unused = model.get_input_embeddings().weight, 9
    assert unused not in trace().response_ids.tolist()
    with torch.no_grad():
        weight[unused] = (weight.sum(0) - weight[unused]) / (len(weight) - 1)  # the mean of all, itself included
    mean, row = (attribute(model, baseline=b, nodes=5, tolerance=None) for b in ("mean", unused))
    assert row.scores_T.tolist() == pytest.approx(mean.scores_T.tolist(), rel=1e-3, abs=1e-6)


def test_a_zero_baseline_warns():
    with pytest.warns(UserWarning, match="the baseline is all zero"):
        attribute(tiny_model(), baseline="zero")
    with pytest.warns(UserWarning, match="the baseline is all zero"):
        attribute(tiny_model("gemma"), baseline=0)  # its pad row


def test_an_untrained_row_warns_and_a_trained_one_does_not():
    model = tiny_model()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attribute(model, baseline=7)
    with torch.no_grad():
        model.get_input_embeddings().weight[7] *= 0.2
    with pytest.warns(UserWarning, match="the embedding of token 7 looks untrained"):
        attribute(model, baseline=7)


def test_the_last_feed_forward_runs_on_the_answers_rows_alone():
    model = tiny_model()
    widths = []
    for layer in model.model.layers:
        layer.mlp.gate_proj.register_forward_hook(lambda _, args, out: widths.append(args[0].shape[1]))
    found = attribute(model, nodes=1, tolerance=None, certificate=True, checkpointing=True)
    tokens, answer = len(found.input_ids), len(found.input_ids) - found.answer_span[0] + 1
    # values at both ends in one batch, one gradient, and its recomputation, last layer first
    assert widths == [tokens, answer] * 2 + [answer, tokens]
    assert not model.model.layers[-1].mlp._forward_hooks
    assert not model.model.layers[-1].mlp._forward_pre_hooks

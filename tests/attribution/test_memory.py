"""Checkpointing, batches that do not fit, and captum behind the same call."""

import pytest
import torch
from testkit import paper
from testkit.tiny import CONFIGS, byte_level_tokenizer, tiny_model
from torch.autograd.graph import saved_tensors_hooks
from transformers import LlamaConfig, LlamaForCausalLM

import segrl
from segrl import Trace
from segrl.attribution.evaluator import Evaluator
from segrl.attribution.path import evaluating


def traces(n=3):
    made = [Trace(f"t{i}", "3+4?", f"Okay, 3 + 4.\n\nWait,{' 1' * i} 7.", "77") for i in range(n)]
    return [segrl.tokenize(trace, byte_level_tokenizer()) for trace in made]


def counted(model):
    """Count the forwards of each decoder layer by its attention: transformers 5.24 recomputes inside its hooks."""
    attentions = [module for name, module in model.named_modules() if name.endswith((".0.self_attn", ".1.self_attn"))]
    assert len(attentions) == 2
    calls = []
    for attention in attentions:
        attention.register_forward_pre_hook(lambda *_: calls.append(1))
    return calls


@pytest.mark.parametrize("architecture", CONFIGS)
def test_checkpointed_scores_are_the_same_bit_for_bit(architecture):
    model = tiny_model(architecture)
    plain, saving = (
        paper.attribute(model, traces(), byte_level_tokenizer(), nodes=3, baseline=7, checkpointing=flag)
        for flag in (False, True)
    )
    assert all(torch.equal(a.scores_T, b.scores_T) for a, b in zip(plain, saving, strict=True))


def test_checkpointing_recomputes_each_layer_of_each_gradient_once():
    model = tiny_model()
    calls = counted(model)
    options = {"nodes": 3, "tolerance": None, "batch_rows": 1}
    paper.attribute(model, traces(1), byte_level_tokenizer(), **options)
    assert len(calls) == 2 * (2 + 3)
    calls.clear()
    paper.attribute(model, traces(1), byte_level_tokenizer(), checkpointing=True, **options)
    assert len(calls) == 2 * (2 + 2 * 3)
    calls.clear()
    paper.attribute(model, traces(1), byte_level_tokenizer(), batch_tokens=10, nodes=3, tolerance=None)
    assert len(calls) == 2 * (2 + 2 * 3)  # a trace longer than the budget is checkpointed unasked


def test_checkpointing_keeps_a_layers_input_and_drops_its_insides():
    sizes = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 8, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=8, **sizes))
    hidden_TD = torch.randn(1, 512, 64, requires_grad=True)

    def kept(checkpointing: bool) -> int:
        saved = []
        with evaluating(model, checkpointing), saved_tensors_hooks(lambda t: saved.append(t.nbytes) or t, lambda t: t):
            model(inputs_embeds=hidden_TD, use_cache=False)
        return sum(saved)

    assert 8 * hidden_TD.nbytes <= kept(True) < kept(False) / 4


def test_checkpointing_leaves_the_model_as_it_was():
    model = tiny_model()
    before = {name: dict(module.__dict__) for name, module in model.named_modules()}
    paper.attribute(model, traces(1), byte_level_tokenizer(), nodes=1, checkpointing=True)
    for name, module in model.named_modules():
        assert module.training is False
        assert set(module.__dict__) == set(before[name])
        assert module.__dict__.get("gradient_checkpointing") == before[name].get("gradient_checkpointing")


def test_lora_dropout_stays_off_under_checkpointing():
    peft = pytest.importorskip("peft")

    torch.manual_seed(0)
    config = peft.LoraConfig(target_modules=["q_proj", "down_proj"], r=4, lora_dropout=0.5, init_lora_weights=False)
    model = peft.get_peft_model(tiny_model(), config).train()
    plain, saving = (
        paper.attribute(model, traces(), byte_level_tokenizer(), nodes=3, checkpointing=flag) for flag in (False, True)
    )
    assert all(torch.equal(a.scores_T, b.scores_T) for a, b in zip(plain, saving, strict=True))


def full_beyond(rows, monkeypatch):
    """A machine whose memory holds so many rows."""
    real = Evaluator.__call__
    sizes = []

    def call(self, batch, checkpointing=False):
        sizes.append(len(batch))
        if len(batch) > rows:
            raise torch.OutOfMemoryError
        return real(self, batch, checkpointing)

    monkeypatch.setattr(Evaluator, "__call__", call)
    return sizes


def test_a_batch_that_does_not_fit_is_halved_and_nothing_is_lost(monkeypatch):
    expected = paper.attribute(tiny_model(), traces(), byte_level_tokenizer(), nodes=4)
    sizes = full_beyond(4, monkeypatch)
    found = paper.attribute(tiny_model(), traces(), byte_level_tokenizer(), nodes=4)
    assert max(sizes) > 4
    for a, b in zip(found, expected, strict=True):
        assert a.scores_T.tolist() == pytest.approx(b.scores_T.tolist(), rel=1e-4, abs=1e-7)
        assert a.evaluations == b.evaluations


def test_one_row_that_does_not_fit_is_a_sentence(monkeypatch):
    full_beyond(0, monkeypatch)
    with pytest.raises(MemoryError, match=r"out of memory at 1 rows of \d+ tokens; give fewer batch_tokens"):
        paper.attribute(tiny_model(), traces(), byte_level_tokenizer())


def test_a_fixed_number_of_forwards_is_never_retried(monkeypatch):
    sizes = full_beyond(1, monkeypatch)
    with pytest.raises(MemoryError, match="out of memory at 2 rows"):
        paper.attribute(tiny_model(), traces(), byte_level_tokenizer(), batch_rows=2)
    assert sizes == [2]


def test_an_interrupt_comes_through_and_the_model_is_put_back():
    model = tiny_model().train()

    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        paper.attribute(model, traces(), byte_level_tokenizer(), progress=interrupt)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not model.get_input_embeddings()._forward_hooks


@pytest.mark.parametrize("rule", ["midpoint", "left", "right", "gauss_legendre"])
def test_captum_behind_the_same_call(rule):
    model = tiny_model()
    ours, theirs = (
        paper.attribute(
            model, traces(), byte_level_tokenizer(), quadrature=rule, nodes=6, tolerance=None, engine=engine
        )
        for engine in ("segrl", "captum")
    )
    for a, b in zip(ours, theirs, strict=True):
        tiny = 1e-5 * float(b.scores_T.abs().max())
        assert a.scores_T.tolist() == pytest.approx(b.scores_T.tolist(), rel=1e-3, abs=tiny)
        assert a.gap == pytest.approx(b.gap, abs=1e-3)


def test_what_captum_cannot_do_is_a_sentence():
    model, tokenizer = tiny_model(), byte_level_tokenizer()
    with pytest.raises(ValueError, match="engine=captum moves every position alike"):
        paper.attribute(model, traces(1), tokenizer, engine="captum", interpolate="response")
    with pytest.raises(ValueError, match="engine=captum has no quadrature 'authors'"):
        paper.attribute(model, traces(1), tokenizer, engine="captum", quadrature="authors")
    with pytest.raises(ValueError, match="engine='shap'"):
        paper.attribute(model, traces(1), tokenizer, engine="shap")

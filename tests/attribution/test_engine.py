import warnings
from functools import cache

import pytest
import torch
from captum.attr import LayerIntegratedGradients
from testkit import paper
from testkit.tiny import CONFIGS, byte_level_tokenizer, tiny_model

import segrl
from segrl import Trace
from segrl.attribution.target import explain

METHODS = {
    "midpoint": "riemann_middle",
    "left": "riemann_left",
    "right": "riemann_right",
    "gauss_legendre": "gausslegendre",
}
BASELINE = 7  # an ordinary token: Gemma's pad row is all zero, where the path has no gradient


def traces(n=3):
    texts = [f"Okay, 3 + 4.\n\nWait, {' 1' * 3 * i} it is 7.\n\nHowever, x.\n</think> \\boxed{{7}}" for i in range(n)]
    made = [Trace(id=f"t{i}", problem="What is 3+4?", response=text, answer="77") for i, text in enumerate(texts)]
    return [segrl.tokenize(trace, byte_level_tokenizer()) for trace in made]


def captum_scores(model, trace, nodes, rule):
    """The oracle: captum on the embedding layer, one unpadded trace at a time."""
    one = explain(trace, byte_level_tokenizer())
    ids = one.input_ids[None]
    start, end = one.answer_span

    def logp(ids_BL):
        logp_BLV = torch.log_softmax(model(input_ids=ids_BL).logits.float(), -1)
        return (
            logp_BLV[:, start - 1 : end - 1].gather(-1, ids[:, start:end, None].expand(len(ids_BL), -1, -1)).sum((1, 2))
        )

    explained = LayerIntegratedGradients(logp, model.get_input_embeddings())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scores = explained.attribute(
            ids, torch.full_like(ids, BASELINE), n_steps=nodes, method=METHODS[rule], internal_batch_size=1
        )
    return scores.sum(-1)[0, one.thinking].detach()


def error(found, expected):
    return float((found[: len(expected)] - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("architecture", CONFIGS)
def test_scores_equal_captums(architecture):
    model, options = tiny_model(architecture), {"nodes": 5, "tolerance": None, "baseline": BASELINE}
    for found, trace in zip(paper.attribute(model, traces(), byte_level_tokenizer(), **options), traces(), strict=True):
        assert error(found.scores_T, captum_scores(model, trace, 5, "midpoint")) < 1e-5


@pytest.mark.parametrize("rule", METHODS)
def test_every_rule_equals_captums(rule):
    model, trace = tiny_model(), traces(1)[0]
    options = {"quadrature": rule, "nodes": 6, "tolerance": None, "baseline": BASELINE}
    [found] = paper.attribute(model, [trace], byte_level_tokenizer(), **options)
    assert error(found.scores_T, captum_scores(model, trace, 6, rule)) < 1e-5


@cache
def alone():
    return [paper.attribute(tiny_model(), [trace], byte_level_tokenizer(), batch_rows=1)[0] for trace in traces()]


@pytest.mark.parametrize(
    "batching", [{"batch_rows": 1}, {"batch_rows": 4}, {"batch_tokens": 150}, {"batch_tokens": 99_999}]
)
def test_batching_and_padding_change_nothing(batching):
    together = paper.attribute(tiny_model(), traces(), byte_level_tokenizer(), **batching)
    for one, other in zip(alone(), together, strict=True):
        assert error(other.scores_T, one.scores_T) < 1e-5
        assert other.gap == pytest.approx(one.gap, abs=1e-4)


def test_masses_are_complete_at_many_nodes():
    for found in paper.attribute(tiny_model(), traces(2), byte_level_tokenizer(), nodes=300, tolerance=None):
        total = float(found.scores_T.double().sum()) + found.mass_prompt + found.mass_suffix
        assert total == pytest.approx(found.logp_input - found.logp_baseline, rel=1e-4)
        assert found.gap < 1e-4


def test_moving_the_response_alone_explains_the_response_alone():
    model = tiny_model()
    for found in paper.attribute(
        model, traces(2), byte_level_tokenizer(), nodes=300, tolerance=None, interpolate="response"
    ):
        assert found.mass_prompt == found.mass_suffix == 0
        assert float(found.scores_T.double().sum()) == pytest.approx(found.logp_input - found.logp_baseline, rel=1e-3)


def test_a_hidden_answer_gets_no_score_and_the_rest_stays_complete():
    tokenizer = byte_level_tokenizer()
    trace = segrl.tokenize(Trace("t", "3+4?", "Okay 7.\n\nWait, 7 it is.\n</think> \\boxed{7}", "7"), tokenizer)
    [shown] = paper.attribute(tiny_model(), [trace], tokenizer, nodes=50)
    [hidden] = paper.attribute(tiny_model(), [trace], tokenizer, nodes=300, hide_answer=True, tolerance=None)
    restating = [i for i, (a, b) in enumerate(trace.offsets_T.tolist()) if "7" in trace.response[a:b]][:2]
    assert shown.copy_share == pytest.approx(
        float(shown.scores_T[restating].abs().sum() / shown.scores_T.abs().sum()), rel=1e-4
    )
    assert shown.copy_share > 0
    assert hidden.scores_T[restating].tolist() == [0, 0]
    assert hidden.copy_share == 0
    assert hidden.gap < 1e-3


class Linear(torch.nn.Module):
    """A model whose answer log-probability is linear in one token's embedding, so that the integral is known."""

    def __init__(self, vocab, decides):
        super().__init__()
        self.embedding = torch.nn.Embedding(vocab, 4)
        self.decides = decides
        self.config = type("Config", (), {"_name_or_path": "", "max_position_embeddings": None})()

    def get_input_embeddings(self):
        return self.embedding

    def forward(self, input_ids, attention_mask=None, position_ids=None, use_cache=False):
        value_B = (self.embedding(input_ids).sum(-1) * (input_ids == self.decides)).sum(-1)
        # log_softmax of (value, log(1 - exp(value)), nothing...) gives the value itself: exp(value) must stay below 1.
        logits = torch.full((*input_ids.shape, self.embedding.num_embeddings), -1e4)
        logits[..., ANSWER_ID] = value_B[:, None]
        logits[..., 0] = torch.log1p(-value_B.exp())[:, None]
        return type("Output", (), {"logits": logits})()


tokenizer_ = byte_level_tokenizer()
ANSWER_ID = tokenizer_.convert_tokens_to_ids("7")


def test_a_linear_model_gives_the_closed_form_at_the_token_that_decides():
    """All mass lands on the planted token, and it is weight . (embedding - baseline); off by one fails here."""
    planted = tokenizer_.convert_tokens_to_ids("x")
    model = Linear(len(tokenizer_), planted)
    with torch.no_grad():
        model.embedding.weight.copy_(-torch.rand(model.embedding.weight.shape) - 0.1)
    trace = segrl.tokenize(Trace("t", "p", "1 2 3x4 5", "7"), tokenizer_)
    at = [trace.response[a:b] for a, b in trace.offsets_T.tolist()].index("x")
    expected = float((model.embedding.weight[planted] - model.embedding.weight[BASELINE]).detach().sum())
    for nodes in (1, 4):
        [found] = paper.attribute(model, [trace], tokenizer_, nodes=nodes, baseline=BASELINE)
        assert float(found.scores_T[at]) == pytest.approx(expected, rel=1e-5)
        assert float(found.scores_T.abs().sum()) == pytest.approx(abs(expected), rel=1e-5)
        assert found.gap < 1e-5


def test_what_stays_coarse_or_flat_is_flagged():
    model, tokenizer = tiny_model(), byte_level_tokenizer()
    flags = [one.flags for one in paper.attribute(model, traces(), tokenizer, nodes=1, tolerance=1e-9, max_nodes=3)]
    assert flags == [("coarse",)] * 3
    with torch.no_grad():
        for parameter in model.model.layers.parameters():
            parameter.zero_()
        model.lm_head.weight.zero_()
    assert [one.flags for one in paper.attribute(model, traces(), tokenizer)] == [("flat",)] * 3


def test_training_goes_on_as_if_nothing_had_happened():
    """Modes, requires_grad and gradients are as before; the next step's gradients are bit for bit the same."""
    tokenizer = byte_level_tokenizer()

    def step(attribute_first):
        model = tiny_model().train()
        model.model.norm.weight.requires_grad_(False)
        ids = traces()[0].response_ids[None]
        if attribute_first:
            paper.attribute(model, traces(), tokenizer, nodes=3)
            assert all(parameter.grad is None for parameter in model.parameters())
            assert all(module.training for module in model.modules())
            assert not model.model.norm.weight.requires_grad
        model(input_ids=ids, labels=ids).loss.backward()
        return [p.grad for p in model.parameters() if p.grad is not None]

    assert all(torch.equal(a, b) for a, b in zip(step(False), step(True), strict=True))


def test_lora_adapters_are_explained_too():
    peft = pytest.importorskip("peft")

    torch.manual_seed(0)
    config = peft.LoraConfig(target_modules=["q_proj", "v_proj"], r=4, lora_dropout=0.5)
    model = peft.get_peft_model(tiny_model(), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    model.train()
    one, again = (paper.attribute(model, traces(), byte_level_tokenizer(), baseline=BASELINE) for _ in range(2))
    assert all(torch.equal(a.scores_T, b.scores_T) for a, b in zip(one, again, strict=True))
    [found] = paper.attribute(model, traces(1), byte_level_tokenizer(), nodes=4, tolerance=None, baseline=BASELINE)
    assert error(found.scores_T, captum_scores(model.eval(), traces(1)[0], 4, "midpoint")) < 1e-5


def test_bfloat16_keeps_its_sums_in_higher_precision():
    exact = paper.attribute(tiny_model(), traces(), byte_level_tokenizer(), nodes=24)
    rough = paper.attribute(tiny_model().bfloat16(), traces(), byte_level_tokenizer(), nodes=24, tolerance=None)
    for a, b in zip(exact, rough, strict=True):
        assert torch.corrcoef(torch.stack([a.scores_T, b.scores_T]))[0, 1] > 0.98


def test_tokens_of_the_visible_answer_get_no_score():
    [found] = paper.attribute(tiny_model(), traces(1), byte_level_tokenizer())
    thinking = segrl.segment(traces(1)[0]).boundaries[-2]
    assert float(found.scores_T[thinking:].abs().sum()) == 0
    assert float(found.scores_T[:thinking].abs().min()) > 0


def test_bad_input_is_a_sentence():
    model, tokenizer = tiny_model(), byte_level_tokenizer()
    long = segrl.tokenize(Trace("long", "p", "7 " * 600, "7"), tokenizer)
    with pytest.raises(ValueError, match=r"'long' has \d+ tokens with prompt and answer, the model takes 512"):
        paper.attribute(model, [long], tokenizer)
    for need in ("logp_T", "perplexity_S", "support_S", "continued_S"):
        with pytest.raises(ValueError, match=r"'long' has \d+ tokens with prompt and answer, the model takes 512"):
            segrl.gather(model, [long], tokenizer, (need,), segments=[segrl.segment(long, "fixed", tokens=1190)])
    with pytest.raises(TypeError, match="no option rule; quadrature= says how nodes are chosen"):
        paper.attribute(model, traces(1), tokenizer, rule="left")
    with pytest.raises(ValueError, match="quadrature='simpson', expected one of midpoint"):
        paper.attribute(model, traces(1), tokenizer, quadrature="simpson")
    with pytest.raises(ValueError, match="interpolate='none'"):
        paper.attribute(model, traces(1), tokenizer, interpolate="none")
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"'t0': \d+ of \d+ attribution scores are not finite"):
        paper.attribute(model, traces(1), tokenizer)


def test_a_single_token_of_thinking_is_enough():
    tokenizer = byte_level_tokenizer()
    trace = segrl.tokenize(Trace("t", "p", "7", "7"), tokenizer)
    empty = segrl.tokenize(Trace("t", "p", "", "7"), tokenizer)
    for given, tokens in ((trace, 1), (empty, 0)):
        [found] = paper.attribute(tiny_model(), [given], tokenizer, nodes=3)
        assert len(found.scores_T) == tokens
        total = float(found.scores_T.sum()) + found.mass_prompt + found.mass_suffix
        change = found.logp_input - found.logp_baseline
        assert found.gap == pytest.approx(abs(total - change) / abs(change), abs=1e-5)


def test_by_default_a_trace_takes_one_evaluation_of_a_gate_at_one_half():
    """The same options by name; that a gate's gradient is right is shown in test_gates.py."""
    model, tokenizer = tiny_model(), byte_level_tokenizer()
    whole = {"quadrature": (torch.tensor([0.5], dtype=torch.float64), torch.ones(1, dtype=torch.float64))}
    path = {"path": "values", "output": "log_odds", "interpolate": "response", "tolerance": None}
    for found, expected in zip(
        segrl.attribute(model, traces(), tokenizer),
        segrl.attribute(model, traces(), tokenizer, **path, **whole),
        strict=True,
    ):
        assert (found.evaluations, found.gap, found.path, found.flags) == (1, None, "values", ())
        assert torch.equal(found.scores_T, expected.scores_T)


def test_compat_gives_the_numbers_of_the_papers_code():
    """The loop from its description: 50 nodes of linspace(0, 1), logits everywhere, one mean, length one."""
    model, tokenizer = tiny_model(), byte_level_tokenizer()
    [found] = paper.attribute(model, traces(1), tokenizer, compat="authors", baseline=BASELINE)
    one = explain(traces(1)[0], tokenizer)
    embed, ids = model.get_input_embeddings(), one.input_ids[None]
    x, base = embed(ids).detach(), embed(torch.full_like(ids, BASELINE)).detach()
    start, end = one.answer_span
    total = torch.zeros_like(x)
    for alpha in torch.linspace(0, 1, 50):
        point = (base + alpha * (x - base)).requires_grad_(True)
        logp = torch.log_softmax(model(inputs_embeds=point).logits, -1)[0, start - 1 : end - 1]
        logp.gather(-1, ids[0, start:end, None]).sum().backward()
        total += point.grad
    masses = ((x - base) * total / 50).sum(-1)[0]
    expected = (masses / masses.norm())[one.thinking]
    assert error(found.scores_T, expected) < 1e-5
    assert found.evaluations == 52
    with pytest.raises(ValueError, match="compat=authors is the paper's path, not path=values with output=log_odds"):
        segrl.attribute(model, traces(1), tokenizer, compat="authors")
    with pytest.raises(ValueError, match="compat='papers', expected authors"):
        paper.attribute(model, traces(1), tokenizer, compat="papers")


def test_an_unknown_option_is_a_type_error_that_names_it():
    with pytest.raises(TypeError, match="unexpected keyword argument 'nods'"):
        paper.attribute(tiny_model(), traces(1), byte_level_tokenizer(), nods=3)

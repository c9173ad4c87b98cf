"""The value path against a forward written by hand, captum, and a layer whose integral is known."""

import pytest
import torch
from captum.attr import IntegratedGradients
from testkit.tiny import CONFIGS, byte_level_tokenizer, tiny_model
from transformers import AttentionInterface, AutoModelForCausalLM, FalconConfig, MambaConfig

import segrl
from segrl import Trace
from segrl.attribution.target import explain

TEXTS = [
    "Okay, 3 + 4.\n\nWait, it is 7.\n\nHowever, x.\n</think> \\boxed{8}",
    "Okay, 3 + 4 = 7.\n\nWait, 1 1 1 1 1 it is 8 then.\n</think> \\boxed{78}",
    "Okay.\n\nAlternatively, 12 * 2.\n\nWait, so 9.\n</think> \\boxed{}9",
]
GATES = None  # what the attention written by hand multiplies values with, (rows, positions)


def traces(n=3):
    tokenizer = byte_level_tokenizer()
    return [segrl.tokenize(Trace(f"t{i}", "What is 3+4?", TEXTS[i], "77"), tokenizer) for i in range(n)]


def by_hand(module, query, key, value, attention_mask, scaling=None, **ignored):
    """Causal attention in plain arithmetic, of value vectors that are scaled by ``GATES``."""
    if GATES is not None:
        value = value * GATES[:, None, :, None]
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.transpose(2, 3) * scaling
    later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    weights = scores.masked_fill(later, -torch.inf).softmax(-1)
    return (weights @ value).transpose(1, 2).contiguous(), None


AttentionInterface.register("by_hand", by_hand)


def values_by_hand(model, explained, output):
    """A function of the gates of the thinking, (rows, thinking) -> the output of each row, by the forward above."""
    start, end = explained.answer_span
    answer = explained.input_ids[start:end]

    def value_of(gates):
        global GATES
        rows = len(gates)
        GATES = torch.ones(rows, len(explained)).index_copy(1, torch.arange(len(explained))[explained.thinking], gates)
        ids = explained.input_ids.expand(rows, -1)
        logits = model(input_ids=ids, use_cache=False).logits[:, start - 1 : end - 1].double()
        GATES = None
        chances = logits.softmax(-1)[:, range(end - start), answer]
        if explained.rival is not None:
            return logits[:, 0, answer[0]] - logits[:, 0, explained.rival]
        return (chances.log() if output == "logp" else (chances / (1 - chances)).log()).sum(-1)

    return value_of


def error(found, expected):
    return float((found[: len(expected)] - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("architecture", CONFIGS)
def test_gates_equal_scaled_values_in_a_forward_written_by_hand(architecture, attention):
    model, tokenizer, trace = tiny_model(architecture), byte_level_tokenizer(), traces(1)[0]
    model.set_attn_implementation(attention)
    options = {"path": "values", "quadrature": (torch.tensor([0.3]), torch.ones(1)), "tolerance": None}
    [found] = segrl.attribute(model, [trace], tokenizer, certificate=True, **options)
    model.set_attn_implementation("by_hand")
    explained = explain(trace, tokenizer)
    value_of = values_by_hand(model, explained, "logp")
    gates = torch.full((1, explained.thinking.stop - explained.thinking.start), 0.3, requires_grad=True)
    (gradient,) = torch.autograd.grad(value_of(gates).sum(), gates)
    assert error(found.scores_T, gradient[0]) < 1e-5
    with torch.no_grad():
        ends = [float(value_of(torch.full_like(gates, end))) for end in (1.0, 0.0)]
    assert [found.logp_input, found.logp_baseline] == pytest.approx(ends, rel=1e-5)


@pytest.mark.parametrize(("target", "output"), [("gold", "logp"), ("own", "log_odds"), ("contrast", "logp")])
def test_scores_equal_captums_over_the_gates(target, output):
    model, tokenizer = tiny_model(), byte_level_tokenizer()
    options = {"path": "values", "output": output, "target": target, "nodes": 6, "tolerance": None}
    found = segrl.attribute(model, traces(2), tokenizer, **options)
    model.set_attn_implementation("by_hand")
    for attribution, trace in zip(found, traces(2), strict=True):
        explained = explain(trace, tokenizer, target)
        gates = torch.ones(1, explained.thinking.stop - explained.thinking.start)
        captum = IntegratedGradients(values_by_hand(model, explained, output))
        expected = captum.attribute(gates, torch.zeros_like(gates), n_steps=6, method="riemann_middle")
        assert error(attribution.scores_T, expected[0]) < 1e-5


@pytest.mark.parametrize("options", [{}, {"begin": 0.5}, {"output": "log_odds"}, {"target": "contrast"}])
def test_masses_are_complete_at_many_nodes(options):
    found = segrl.attribute(
        tiny_model(), traces(2), byte_level_tokenizer(), path="values", nodes=300, tolerance=None, **options
    )
    for attribution in found:
        assert attribution.mass_prompt == attribution.mass_suffix == 0
        total = float(attribution.scores_T.double().sum())
        assert total == pytest.approx(attribution.logp_input - attribution.logp_baseline, rel=1e-4)


def test_a_path_that_begins_later_is_the_rest_of_the_path():
    """Over the whole path and over its second half, the same function is integrated."""
    model, tokenizer = tiny_model(), byte_level_tokenizer()
    whole = torch.linspace(0.5, 1, 101, dtype=torch.float64)[:-1] + 0.0025
    weights = torch.full_like(whole, 0.005)
    options = {"path": "values", "tolerance": None}
    [half] = segrl.attribute(model, traces(1), tokenizer, begin=0.5, nodes=100, **options)
    [part] = segrl.attribute(model, traces(1), tokenizer, quadrature=(whole, weights), **options)
    assert error(half.scores_T, part.scores_T) < 1e-4


@pytest.mark.parametrize(
    "batching", [{"batch_rows": 4}, {"batch_tokens": 150}, {"batch_tokens": 60, "checkpointing": True}]
)
@pytest.mark.parametrize("target", ["gold", "contrast"])
def test_batching_padding_and_checkpointing_change_nothing(batching, target):
    options = {"path": "values", "target": target, "output": "log_odds", "nodes": 3}
    single = segrl.attribute(tiny_model(), traces(2), byte_level_tokenizer(), batch_rows=1, **options)
    found = segrl.attribute(tiny_model(), traces(2), byte_level_tokenizer(), **options, **batching)
    for attribution, expected in zip(found, single, strict=True):
        assert error(attribution.scores_T, expected.scores_T) < 1e-5
        assert attribution.gap == pytest.approx(expected.gap, abs=1e-4)


def test_refinement_closes_the_gap_on_gates_too():
    options = {"path": "values", "nodes": 3, "max_nodes": 108}
    coarse = segrl.attribute(tiny_model(), traces(2), byte_level_tokenizer(), tolerance=None, **options)
    fine = segrl.attribute(tiny_model(), traces(2), byte_level_tokenizer(), tolerance=0.002, **options)
    assert max(found.gap for found in coarse) > 0.002
    assert all(found.gap <= 0.002 for found in fine)


class OneLayer(torch.nn.Module):
    """Attention to all positions alike, in one layer whose values reach the logit of ``7`` as they are."""

    def __init__(self, vocab):
        super().__init__()
        layer = torch.nn.Module()
        layer.v_proj = torch.nn.Linear(1, 1, bias=False)
        self.layers = torch.nn.ModuleList([layer])
        self.embedding = torch.nn.Embedding(vocab, 1)
        self.config = type("Config", (), {"_name_or_path": "", "max_position_embeddings": None})()

    def get_input_embeddings(self):
        return self.embedding

    def forward(self, input_ids, use_cache=False):
        values_BL = self.layers[0].v_proj(self.embedding(input_ids))[..., 0]
        logits = torch.zeros(*input_ids.shape, self.embedding.num_embeddings)
        logits[..., byte_level_tokenizer().convert_tokens_to_ids("7")] = values_BL.mean(1, keepdim=True)
        return type("Output", (), {"logits": logits})()


def test_a_linear_layer_gives_the_closed_form():
    """The log-odds of an answer of one token are its logit less a constant: a mean over positions, so each token's
    share is its value over the length, whatever the node."""
    tokenizer = byte_level_tokenizer()
    torch.manual_seed(0)
    model, trace = OneLayer(len(tokenizer)), segrl.tokenize(Trace("t", "3+4?", "a b c d.\n</think>", "7"), tokenizer)
    [found] = segrl.attribute(model, [trace], tokenizer, path="values", output="log_odds", nodes=1, tolerance=None)
    explained = explain(trace, tokenizer)
    values_L = (model.embedding.weight * model.layers[0].v_proj.weight)[explained.input_ids, 0].detach()
    expected = values_L[explained.thinking] / len(explained)
    torch.testing.assert_close(found.scores_T[: len(expected)], expected)
    assert found.evaluations == 1
    assert found.gap is None


@pytest.mark.parametrize(
    ("config", "layer"),
    [
        (MambaConfig(vocab_size=300, hidden_size=32, num_hidden_layers=2, state_size=4), "MambaBlock"),
        (
            FalconConfig(vocab_size=300, hidden_size=32, num_hidden_layers=2, num_attention_heads=2),
            "FalconDecoderLayer",
        ),
    ],
)
def test_layers_without_known_value_vectors_are_refused_by_name(config, layer):
    model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(ValueError, match=f"layer 0, a {layer}, has none that segrl knows"):
        segrl.attribute(model, traces(1), byte_level_tokenizer(), path="values")


def test_nothing_of_the_gates_stays_behind():
    model, tokenizer = tiny_model(), byte_level_tokenizer()
    ids = traces(1)[0].response_ids[None]
    before = model(ids).logits
    segrl.attribute(model, traces(1), tokenizer, path="values", nodes=2)
    assert torch.equal(model(ids).logits, before)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


# --- contrast --------------------------------------------------------------------------------------------------------


def test_a_contrast_explains_the_first_token_at_which_the_answers_part():
    tokenizer = byte_level_tokenizer()
    own, gold = tokenizer("7").input_ids[0], tokenizer("8").input_ids[0]
    brace = tokenizer("}").input_ids[0]
    first, longer, _ = traces()
    explained = explain(first, tokenizer, "contrast")  # 8 against 77
    assert explained.answer == "8"
    assert (int(explained.input_ids[-1]), explained.rival) == (gold, own)
    assert explained.answer_span == (len(explained) - 1, len(explained))
    explained = explain(longer, tokenizer, "contrast")  # 78 against 77: they part at the second digit
    assert tokenizer.decode(explained.input_ids[-3:].tolist()) == "{78"
    assert explained.rival == own
    shorter = segrl.tokenize(Trace("s", "?", "Okay.\n</think> \\boxed{7}", "77"), tokenizer)
    explained = explain(shorter, tokenizer, "contrast")  # 7 against 77: they part where the one ends
    assert (int(explained.input_ids[-1]), explained.rival) == (brace, own)


def test_the_contrast_of_a_right_response_explains_its_gold_answer():
    tokenizer = byte_level_tokenizer()
    right = segrl.tokenize(Trace("r", "?", "Okay.\n</think> \\boxed{\\frac{1}{2}}", "0.5"), tokenizer)
    explained, gold = (explain(right, tokenizer, target) for target in ("contrast", "gold"))
    assert explained.rival is None
    assert torch.equal(explained.input_ids, gold.input_ids)


@pytest.mark.parametrize(("number", "gold", "what"), [(2, "77", "boxes no answer of its own"), (0, None, "no gold")])
def test_a_contrast_without_one_of_the_answers_says_which(number, gold, what):
    tokenizer = byte_level_tokenizer()
    trace = segrl.tokenize(Trace("t", "?", TEXTS[number], gold), tokenizer)
    with pytest.raises(ValueError, match=what):
        segrl.attribute(tiny_model(), [trace], tokenizer, target="contrast")


def test_an_answer_that_somebody_has_read_is_the_response_s_own():
    tokenizer = byte_level_tokenizer()
    trace = segrl.tokenize(Trace("t", "?", "Okay.\n</think> It is 9", "77", {"own_answer": "9"}), tokenizer)
    assert explain(trace, tokenizer, "own").answer == "9"
    assert explain(trace, tokenizer, "contrast").answer == "9"


def test_options_of_the_path_are_checked():
    for options, said in [
        ({"path": "keys"}, "path='keys'"),
        ({"output": "logit"}, "output='logit'"),
        ({"begin": 1.0}, "begin=1.0"),
        ({"path": "values", "compat": "authors"}, "path=values; leave one of them out"),
        ({"path": "values", "engine": "captum", "nodes": 3, "tolerance": None}, "engine=captum follows embeddings"),
    ]:
        with pytest.raises(ValueError, match=said):
            segrl.attribute(tiny_model(), traces(1), byte_level_tokenizer(), **options)

"""Everything gathered against the plain model, run slowly and one sequence at a time."""

import pytest
import torch
from testkit import paper
from testkit.tiny import CONFIGS, byte_level_tokenizer, tiny_model
from transformers import Lfm2Config, Lfm2ForCausalLM

import segrl
from segrl import Segments, Trace, toy
from segrl.analysis.shapley import dependence, subsets
from segrl.attribution.evaluator import Batching, Row
from segrl.attribution.target import TEMPLATE
from segrl.importance import confidence, streams
from segrl.importance.discriminating import ACROSS_RESPONSES
from segrl.importance.gathering import NEEDS, token_streams
from segrl.importance.keeping import keeping, kept_answer_value, of_thoughts
from segrl.importance.reader import Reader
from segrl.importance.reading import Reading
from segrl.types import Evidence

TEXT = "Okay, 12 and 3.\n\nWait, 3 + 4 = 7.\n\nHowever, x is 7.\n</think> So, \\boxed{7}"
OPENING = "</think> So, the final answer is \\boxed{"


def made(text=TEXT, answer="7", id="t"):
    trace = segrl.tokenize(Trace(id, "What is 3+4?", text, answer), byte_level_tokenizer())
    return trace, segrl.segment(trace)


def gathered(*needs, text=TEXT, model=None, **options):
    trace, segments = made(text)
    [evidence] = paper.gather(
        model or tiny_model(), [trace], byte_level_tokenizer(), needs, segments=[segments], **options
    )
    return trace, segments, evidence


def ids_of(text):
    return torch.tensor(byte_level_tokenizer()(text, add_special_tokens=False)["input_ids"])


@torch.no_grad()
def slow_logp(model, context_ids, ids):
    """The summed log-probability of ``ids`` behind ``context_ids``, one token after the other."""
    total = 0.0
    for id in ids.tolist():
        total += float(torch.log_softmax(model(input_ids=context_ids[None]).logits[0, -1].double(), -1)[id])
        context_ids = torch.cat([context_ids, torch.tensor([id])])
    return total


def slow_answer_logp(model, trace, kept_ids):
    """The answer is one token here, and the template's pieces are those of its parts: see the test below."""
    return slow_logp(model, torch.cat([trace.prompt_ids, kept_ids, ids_of(OPENING)]), ids_of("7"))


def test_the_template_is_cut_where_the_slow_oracle_cuts_it():
    assert torch.equal(torch.cat([ids_of(OPENING), ids_of("7"), ids_of("}")]), ids_of(OPENING + "7}"))
    assert made()[1].kinds_S == ("thought", "thought", "thought", "answer")


# --- streams ---------------------------------------------------------------------------------------------------------


def test_streams_are_those_of_the_plain_model():
    trace, _, evidence = gathered("logp", "entropy")
    model = tiny_model()
    ids = torch.cat([trace.prompt_ids, trace.response_ids])
    with torch.no_grad():
        logp_TV = torch.log_softmax(model(input_ids=ids[None]).logits[0, -trace.tokens - 1 : -1].double(), -1)
    expected = logp_TV[range(trace.tokens), trace.response_ids]
    assert evidence.logp_T.tolist() == pytest.approx(expected.tolist(), abs=1e-4)
    assert evidence.entropy_T.tolist() == pytest.approx((-logp_TV.exp() * logp_TV).sum(-1).tolist(), abs=1e-4)
    assert evidence.cost == {"logp_T": 1.0, "entropy_T": 1.0}


def test_no_more_logits_are_held_than_allowed_and_nothing_changes(monkeypatch):
    trace, _ = made()
    model = tiny_model()
    whole = token_streams(model, trace)
    vocab, held = model.config.vocab_size, []
    model.get_output_embeddings().register_forward_hook(lambda module, args, output: held.append(output.shape[1]))
    monkeypatch.setattr(streams, "LOGITS", 7 * vocab)
    for have, want in zip(token_streams(model, trace), whole, strict=True):
        assert have.tolist() == pytest.approx(want.tolist(), abs=1e-4)
    assert max(held) == 7
    assert sum(held) == len(trace.prompt_ids) + trace.tokens - 1


def test_impossible_tokens_have_no_part_in_the_entropy():
    """A padded vocabulary's logits are minus infinity: 0 * log 0 is 0."""
    trace, _ = made()
    model = tiny_model()
    before = token_streams(model, trace)[1]

    def forbid(module, args, output):
        return torch.cat([output, torch.full_like(output[..., :3], -torch.inf)], -1)

    model.get_output_embeddings().register_forward_hook(forbid)
    assert token_streams(model, trace)[1].tolist() == pytest.approx(before.tolist(), abs=1e-5)


def test_perplexity_without_each_segment():
    trace, segments, evidence = gathered("perplexity")
    for s, piece in enumerate(segments.slices[:-1]):
        rest = torch.cat([trace.response_ids[: piece.start], trace.response_ids[piece.stop :]])
        slow = slow_logp(tiny_model(), trace.prompt_ids, rest)
        assert float(evidence.perplexity_S[s]) == pytest.approx(torch.tensor(-slow / len(rest)).exp().item(), rel=1e-3)
    lengths = [len(trace.prompt_ids) + trace.tokens - n for n in (0, *segments.tokens_S[:-1].tolist())]
    assert evidence.cost["perplexity_S"] == pytest.approx(sum(lengths) / lengths[0])


def test_a_last_thought_that_nothing_follows_has_the_median_of_the_others():
    """Of three open thoughts the first two lose 5 and 1; with an answer behind them the last one loses nothing."""
    (trace, _), lost = made(), torch.tensor([5.0, 1.0, 0.0])

    def strengths(*kinds):
        segments = Segments((0, 2, 4, trace.tokens), kinds)
        evidence = Evidence(trace, segments=segments, support_S=lost)
        return segrl.score(evidence, segments, measure="support").strength_S.tolist()

    assert strengths("thought", "thought", "thought") == [5, 1, 3]
    assert strengths("thought", "thought", "answer") == [5, 1, 0]


def test_support_is_what_the_rest_loses():
    trace, segments, evidence = gathered("support")
    model, prompt, response = tiny_model(), trace.prompt_ids, trace.response_ids

    def rest(before, after):
        """log p(after | the prompt and what stands before)"""
        return slow_logp(model, torch.cat([prompt, before]), after)

    for s, piece in enumerate(segments.slices[:-1]):
        after = response[piece.stop :]
        lost = rest(response[: piece.stop], after) - rest(response[: piece.start], after)
        assert float(evidence.support_S[s]) == pytest.approx(float(lost), rel=1e-3, abs=1e-3)
    assert float(evidence.support_S[-1]) == 0  # nothing follows the answer
    lengths = [len(prompt) + trace.tokens - n for n in (0, *segments.tokens_S[:-1].tolist())]
    assert evidence.cost["support_S"] == pytest.approx(sum(lengths) / lengths[0])


def test_losses_by_hand():
    # of five tokens, the segments 0, 1 2, 3 and 4
    boundaries, whole, written_T = [0, 1, 3, 4, 5], [-1.0, -2, -3, -4, -5], torch.ones(5, dtype=torch.bool)
    each, two = streams.kept_in_turn(boundaries, 3), streams.kept_in_turn(boundaries, 2)
    assert [kept_T.int().tolist() for kept_T in each[1:]] == [[0, 1, 1, 1, 1], [1, 0, 0, 1, 1], [1, 1, 1, 0, 1]]
    assert [kept_T.int().tolist() for kept_T in two[1:]] == [[0, 1, 1, 0, 1], [1, 0, 0, 1, 1]]
    # what follows the first has -2 -3 -4 -5 with it and -16 without; the second -4 -5 and -10; the third -5 and -5.5
    logps = [torch.tensor(values) for values in (whole, [-2.5, -3.5, -4.5, -5.5], [-1.0, -4, -6], [-1.0, -2, -3, -5.5])]
    assert streams.losses(logps, each, boundaries, written_T).tolist() == [2.0, 1.0, 0.5, 0.0]
    # the fourth token is a tool's, so its loss of 0.5 does not count
    tools_T = torch.tensor([1, 1, 1, 0, 1]) > 0
    assert streams.losses(logps, each, boundaries, tools_T).tolist() == [1.5, 1.0, 0.5, 0.0]
    # the third is out with the first, which counts by what the second loses: -2 -3 with it and -6.5 without
    logps = [torch.tensor(values) for values in (whole, [-2.5, -4, -7], [-1.0, -4, -6])]
    assert streams.losses(logps, two, boundaries, written_T).tolist() == [1.5, 1.0, 2.0, 0.0]


# --- the answer's log-probability ------------------------------------------------------------------------------------


def test_prefixes_against_the_plain_model():
    trace, segments, evidence = gathered("prefix_logp")
    ends = [0, *segments.boundaries[1:4]]
    slow = [slow_answer_logp(tiny_model(), trace, trace.response_ids[:end]) for end in ends]
    assert evidence.empty_logp == pytest.approx(slow[0], abs=1e-4)
    assert evidence.prefix_logp_S.tolist() == pytest.approx([*slow[1:], slow[3]], abs=1e-4)  # the answer adds nothing
    assert evidence.answer_logp == pytest.approx(slow[3], abs=1e-4)
    scores = segrl.score(evidence, segments, "pmi")
    assert scores.strength_S.tolist() == pytest.approx([b - a for a, b in zip(slow, slow[1:])] + [0], abs=1e-3)  # noqa: B905


def test_leaving_one_out_against_the_plain_model():
    trace, segments, evidence = gathered("without_logp")
    end = segments.boundaries[3]
    whole = slow_answer_logp(tiny_model(), trace, trace.response_ids[:end])
    slow = []
    for piece in segments.slices[:3]:
        rest = torch.cat([trace.response_ids[: piece.start], trace.response_ids[piece.stop : end]])
        slow.append(slow_answer_logp(tiny_model(), trace, rest))
    assert evidence.without_logp_S.tolist() == pytest.approx([*slow, whole], abs=1e-4)
    scores = segrl.score(evidence, segments, "leave_one_out")
    assert scores.strength_S.tolist() == pytest.approx([*(whole - one for one in slow), 0], abs=1e-3)


@torch.no_grad()
def slow_logits(model, trace, kept_ids):
    """The logits of the answer's token, which is one."""
    ids = torch.cat([trace.prompt_ids, kept_ids, ids_of(OPENING)])
    return model(input_ids=ids[None]).logits[0, -1].double()


def log_odds(logits_V, id):
    chance = torch.softmax(logits_V, -1)[id]
    return float((chance / (1 - chance)).log())


def cost(trace, pieces, coalitions):
    """The tokens before the answer, each once that follows the same ones, over those of the whole trace."""
    rows = [[*trace.prompt_ids, *(id for i in kept for id in pieces[i]), *ids_of(OPENING)] for kept in coalitions]
    beginnings = {tuple(map(int, row[:end])) for row in rows for end in range(1, len(row) + 1)}
    return len(beginnings) / (len(trace.prompt_ids) + sum(map(len, pieces)) + len(ids_of(OPENING + "7}")))


def test_log_odds_of_prefixes_and_of_losses_against_the_plain_model():
    trace, segments, evidence = gathered("prefix_logp", "without_logp", "gradient", output="log_odds")
    [seven] = ids_of("7").tolist()
    end = segments.boundaries[3]
    slow = [log_odds(slow_logits(tiny_model(), trace, trace.response_ids[:b]), seven) for b in segments.boundaries[:4]]
    assert [evidence.empty_logp, *evidence.prefix_logp_S.tolist()] == pytest.approx([*slow, slow[3]], abs=1e-4)
    rest = trace.response_ids[segments.boundaries[1] : end]
    without = log_odds(slow_logits(tiny_model(), trace, rest), seven)
    assert float(evidence.without_logp_S[0]) == pytest.approx(without, abs=1e-4)
    assert evidence.answer_logp == pytest.approx(slow[3], abs=1e-4)
    *_, shared = gathered("prefix_logp", output="log_odds", shared_prefixes=True)
    assert shared.prefix_logp_S.tolist() == pytest.approx(evidence.prefix_logp_S.tolist(), abs=1e-4)
    assert evidence.output == "log_odds"
    with pytest.raises(ValueError, match=r"confidence_gain_cheap.*it reads probabilities.*output=log_odds; take logp"):
        segrl.score(evidence, segments, "confidence_gain_cheap")


def test_each_thought_alone_and_taken_away_against_the_plain_model():
    trace, segments, evidence = gathered("alone_value", "without_value")
    [seven] = ids_of("7").tolist()
    pieces = [trace.response_ids[piece] for piece in segments.slices[:3]]

    def v(*kept):
        ids = torch.cat([pieces[i] for i in kept] or [torch.zeros(0, dtype=torch.long)])
        return log_odds(slow_logits(tiny_model(), trace, ids), seven)

    nothing, whole = v(), v(0, 1, 2)
    assert evidence.alone_value_S.tolist() == pytest.approx([v(0), v(1), v(2), nothing], abs=1e-4)
    assert evidence.without_value_S.tolist() == pytest.approx([v(1, 2), v(0, 2), v(0, 1), whole], abs=1e-4)
    assert (evidence.empty_value, evidence.whole_value) == pytest.approx((nothing, whole), abs=1e-4)
    assert evidence.cost["alone_value_S"] == pytest.approx(cost(trace, pieces, [(), (0,), (1,), (2,)]))
    assert evidence.cost["without_value_S"] == pytest.approx(cost(trace, pieces, [(0, 1, 2), (1, 2), (0, 2), (0, 1)]))
    *_, plain = gathered("alone_value", subset_output="logp")
    assert float(plain.alone_value_S[0]) == pytest.approx(slow_answer_logp(tiny_model(), trace, pieces[0]), abs=1e-4)


@pytest.mark.parametrize("architecture", ["qwen2", "gemma", "gpt_neox"])
def test_rows_too_long_for_a_tree_are_read_from_where_they_leave_the_row_before(architecture, monkeypatch):
    """One row a tree, six tokens at once: the values are the same, and no token is read twice."""
    model = tiny_model(architecture)
    *_, together = gathered("alone_value", "without_value", model=model)
    for name in ("CPU_NODES", "PIECE"):
        monkeypatch.setattr(f"segrl.importance.keeping.{name}", 6)
    *_, apart = gathered("alone_value", "without_value", model=model)
    assert apart.alone_value_S.tolist() == pytest.approx(together.alone_value_S.tolist(), abs=1e-4)
    assert apart.without_value_S.tolist() == pytest.approx(together.without_value_S.tolist(), abs=1e-4)
    assert apart.cost == pytest.approx(together.cost)


def test_the_visible_answer_stays_where_it_is_read():
    """Of context=full: the thoughts come and go before it."""
    trace, segments, evidence = gathered("alone_value", context="full", subset_output="logp")
    shown = trace.response_ids[segments.slices[3]]
    for s, piece in enumerate(segments.slices[:3]):
        slow = slow_answer_logp(tiny_model(), trace, torch.cat([trace.response_ids[piece], shown]))
        assert float(evidence.alone_value_S[s]) == pytest.approx(slow, abs=1e-4)
    assert evidence.empty_value == pytest.approx(slow_answer_logp(tiny_model(), trace, shown), abs=1e-4)


def test_shapley_of_few_thoughts_is_exact():
    trace, segments, evidence = gathered("shapley", subset_output="logp")
    exact = dependence(tiny_model(), byte_level_tokenizer(), trace, segments, Reading())
    assert evidence.shapley_S.tolist() == pytest.approx([*exact["shapley"], 0], abs=1e-4)
    assert evidence.shapley_error_S.tolist() == [0] * 4
    assert evidence.cost["shapley_S"] == pytest.approx(exact["evaluations"])
    assert evidence.whole_value - evidence.empty_value == pytest.approx(float(evidence.shapley_S.sum()))
    *_, odds = gathered("shapley")
    exact = dependence(tiny_model(), byte_level_tokenizer(), trace, segments, Reading(output="log_odds"))
    assert odds.shapley_S.tolist() == pytest.approx([*exact["shapley"], 0], abs=1e-4)


def test_a_contrast_is_asked_by_short_forwards_too():
    """The response says 7 and gold is 3: a value is by how much 7 stands above 3, whatever the output."""
    trace, segments = made(answer="3")
    [seven], [three] = ids_of("7").tolist(), ids_of("3").tolist()

    def margin(ids):
        logits_V = slow_logits(tiny_model(), trace, ids)
        return float(logits_V[seven] - logits_V[three])

    needs = ("prefix_logp", "without_logp", "alone_value", "shapley")
    for options in ({}, {"shared_prefixes": True, "output": "log_odds", "subset_output": "logp"}):
        [evidence] = paper.gather(
            tiny_model(), [trace], byte_level_tokenizer(), needs, segments=[segments], target="contrast", **options
        )
        slow = [margin(trace.response_ids[:end]) for end in segments.boundaries[:4]]
        assert evidence.prefix_logp_S.tolist()[:3] == pytest.approx(slow[1:], abs=1e-4)
        rest = trace.response_ids[segments.boundaries[1] : segments.boundaries[3]]
        assert float(evidence.without_logp_S[0]) == pytest.approx(margin(rest), abs=1e-4)
        for s, piece in enumerate(segments.slices[:3]):
            assert float(evidence.alone_value_S[s]) == pytest.approx(margin(trace.response_ids[piece]), abs=1e-4)
        assert float(evidence.shapley_S.sum()) == pytest.approx(slow[3] - slow[0], abs=1e-4)


@pytest.mark.parametrize("template", [TEMPLATE, "{answer} it is"])
@pytest.mark.parametrize("architecture", CONFIGS)
def test_what_is_read_once_changes_no_value(architecture, template):
    """Each subset of the thoughts as a sequence of its own, without padding or a cache."""
    trace, segments = made()
    model, tokenizer = tiny_model(architecture), byte_level_tokenizer()
    [sequence] = Reading(template=template).explained(model, [trace], tokenizer)
    kept_KT = of_thoughts(sequence, segments, subsets(3))
    alone = [Reader(model, [keeping(sequence, kept_T)])([Row(0, 1.0, None)])[0][0] for kept_T in kept_KT]
    for tokens in (1, 50, 300):  # a tree for each row, some trees, one
        [(values_K, _)] = kept_answer_value(model, [sequence], [kept_KT], Batching(tokens))
        assert values_K.tolist() == pytest.approx(alone, abs=1e-5, rel=1e-5)


def hybrid():
    """A model with a layer that has a state and no attention."""
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}
    layers = ["conv", "full_attention"]
    vocabulary = len(byte_level_tokenizer())
    return Lfm2ForCausalLM(Lfm2Config(vocab_size=vocabulary, num_hidden_layers=2, layer_types=layers, **shape)).eval()


def windowed(window):
    model = tiny_model("mistral")
    model.config.sliding_window = window
    return model


@pytest.mark.parametrize("model", [windowed(16), windowed(512), hybrid()], ids=["narrow", "wide", "hybrid"])
@pytest.mark.parametrize("nodes", [512, 6])
def test_rows_of_a_model_that_does_not_attend_to_all_are_what_each_is_by_itself(model, nodes, monkeypatch):
    """Through a window that a row outgrows, or a state that runs on; a wider window changes nothing."""
    for name in ("CPU_NODES", "PIECE"):
        monkeypatch.setattr(f"segrl.importance.keeping.{name}", nodes)
    trace, segments = made()
    tokenizer = byte_level_tokenizer()
    [sequence] = Reading().explained(model, [trace], tokenizer)
    kept_KT = of_thoughts(sequence, segments, subsets(3))
    [(values_K, _)] = kept_answer_value(model, [sequence], [kept_KT], Batching())
    alone = [Reader(model, [keeping(sequence, kept_T)])([Row(0, 1.0, None)])[0][0] for kept_T in kept_KT]
    assert values_K.tolist() == pytest.approx(alone, abs=1e-4)


def test_eager_attention_reads_trees_too():
    *_, evidence = gathered("alone_value")
    model = tiny_model()
    model.set_attn_implementation("eager")
    *_, eager = gathered("alone_value", model=model)
    assert eager.alone_value_S.tolist() == pytest.approx(evidence.alone_value_S.tolist(), abs=1e-4)
    assert model.config._attn_implementation == "eager"


@pytest.mark.parametrize("batching", [{"batch_tokens": 1}, {"batch_tokens": 100_000}, {"batch_rows": 2}])
def test_prefixes_do_not_depend_on_what_shares_their_forward(batching):
    one, other = made(), made("Okay, 5.\n\nWait, no: 8 it is, not 5 and not 6.", answer="8", id="u")
    model, tokenizer = tiny_model(), byte_level_tokenizer()

    def gathered(*pairs, **batching):
        traces, segments = zip(*pairs, strict=True)
        return segrl.gather(model, traces, tokenizer, ("prefix_logp",), segments=segments, **batching)

    for pair, evidence in zip((one, other), gathered(one, other, **batching), strict=True):
        [alone] = gathered(pair)
        assert len(evidence.prefix_logp_S) == len(pair[1])
        assert evidence.prefix_logp_S.tolist() == pytest.approx(alone.prefix_logp_S.tolist(), abs=1e-4)
        assert evidence.empty_logp == pytest.approx(alone.empty_logp, abs=1e-4)


@pytest.mark.parametrize("template", [TEMPLATE, "{answer} it is"])
@pytest.mark.parametrize("architecture", ["qwen2", "gemma", "gpt_neox"])
def test_prefixes_read_in_one_pass_are_the_same(architecture, template):
    trace, segments, apart = gathered("prefix_logp", model=tiny_model(architecture), template=template)
    *_, shared = gathered("prefix_logp", model=tiny_model(architecture), template=template, shared_prefixes=True)
    assert shared.prefix_logp_S.tolist() == pytest.approx(apart.prefix_logp_S.tolist(), abs=1e-4)
    assert shared.empty_logp == pytest.approx(apart.empty_logp, abs=1e-4)
    thinking, suffix = segments.boundaries[3], len(ids_of(template.replace("{answer}", "7")))
    before = len(trace.prompt_ids) + thinking  # read once, and for each of four prefixes the template
    assert shared.cost["prefix_logp_S"] == pytest.approx((before - 1 + 4 * (1 + suffix)) / (before + suffix))


def test_what_prefixes_and_subsets_cost():
    trace, segments, evidence = gathered("prefix_logp", "without_logp")
    pieces = [trace.response_ids[piece] for piece in segments.slices[:3]]
    assert evidence.cost["prefix_logp_S"] == pytest.approx(cost(trace, pieces, [(), (0,), (0, 1), (0, 1, 2)]))
    assert evidence.cost["without_logp_S"] == pytest.approx(cost(trace, pieces, [(0, 1, 2), (1, 2), (0, 2), (0, 1)]))


# --- gradients and attention -----------------------------------------------------------------------------------------


def test_gradients_against_autograd_on_input_embeddings():
    trace, segments, evidence = gathered("gradient", "gradnorm")
    model, end = tiny_model(), segments.boundaries[3]
    ids = torch.cat([trace.prompt_ids, trace.response_ids[:end], ids_of(OPENING + "7}")])
    embedded = model.get_input_embeddings()(ids[None]).detach().requires_grad_()
    logits = model(inputs_embeds=embedded).logits[0, -3].float()  # before "7" and "}"
    torch.log_softmax(logits, -1)[ids_of("7")].sum().backward()
    product = (embedded.grad * embedded.detach())[0, len(trace.prompt_ids) :][:end]
    assert evidence.gradient_T[:end].tolist() == pytest.approx(product.sum(-1).tolist(), rel=1e-3, abs=1e-4)
    assert evidence.gradnorm_T[:end].tolist() == pytest.approx(product.norm(dim=-1).tolist(), rel=1e-3, abs=1e-4)
    assert float(evidence.gradient_T[end:].abs().sum()) == 0
    assert evidence.cost == {"gradient_T": 1.0, "gradnorm_T": 1.0}
    assert all(parameter.grad is None for parameter in model.parameters() if not parameter.requires_grad)


def test_gathering_leaves_the_model_as_it_was():
    model = tiny_model().train()
    before = model.config._attn_implementation
    gathered(
        *(need for need in NEEDS if need not in ("ig", *ACROSS_RESPONSES)), model=model, samples=2, answer_tokens=2
    )
    assert model.training
    assert model.config._attn_implementation == before
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert not model.get_input_embeddings()._forward_hooks


@pytest.mark.parametrize("architecture", ["qwen2", "gpt_neox"])
def test_attention_against_the_plain_eager_model(architecture):
    model = tiny_model(architecture)
    trace, segments, evidence = gathered("attention", model=model)
    end = segments.boundaries[3]
    ids = torch.cat([trace.prompt_ids, trace.response_ids[:end], ids_of(OPENING + "7}")])
    model.set_attn_implementation("eager")
    with torch.no_grad():
        layers = model(input_ids=ids[None], output_attentions=True).attentions
    mean_L = torch.stack([layer[0, :, -3] for layer in layers]).mean((0, 1))  # where "7" is predicted
    expected = mean_L[len(trace.prompt_ids) :][:end]
    assert evidence.attention_T[:end].tolist() == pytest.approx(expected.tolist(), abs=1e-5)
    assert float(evidence.attention_T[end:].abs().sum()) == 0


# --- confidence ------------------------------------------------------------------------------------------------------


def test_sampled_confidence_is_the_chance_of_the_right_answer():
    """Drawn at temperature one, the share of right answers is the probability of "7" and what closes it."""
    model, n = likely_to_say_seven(), 200
    trace, segments, evidence = gathered("confidence", model=model, samples=n, temperature=1.0, answer_tokens=3)
    for s, end in enumerate(segments.boundaries[1:4]):
        context = torch.cat([trace.prompt_ids, trace.response_ids[:end], ids_of(OPENING)])
        chance = torch.tensor(slow_logp(model, context, ids_of("7}"))).exp().item()
        error = (chance * (1 - chance) / n) ** 0.5
        assert 0.05 < chance < 0.95
        assert float(evidence.confidence_S[s]) == pytest.approx(chance, abs=4 * error)


def likely_to_say_seven():
    """The tiny model with other logits: half the chance for 7, most of the rest for a closing brace."""
    model = tiny_model()
    lift = torch.zeros(model.config.vocab_size)
    lift[ids_of("7")], lift[ids_of("}")], lift[ids_of("3")] = 60.0, 60.0, 59.0
    model.get_output_embeddings().register_forward_hook(lambda module, args, output: output / 40 + lift)
    return model


def test_answers_that_begin_alike_are_read_once_and_no_more_at_once_than_allowed():
    """Four tokens are likely, and two of them need not be equal: what was drawn together is the same as apart."""
    model, wide = likely_to_say_seven(), []
    model.get_input_embeddings().register_forward_hook(lambda module, args, output: wide.append(len(output)))
    reading = Reading(temperature=1.0, answer_tokens=4)
    counts = []
    for rows in (2, 1000):
        drawer = confidence.Drawer(model, byte_level_tokenizer(), reading, "t")
        drawer.read(made()[0].prompt_ids)
        wide.clear()
        counts.append(drawer.draw(400, rows))
        assert counts[-1].total() == 400
        assert len(counts[-1]) <= drawer.tokens < 100  # not 400 samples of up to four tokens
        assert max(wide) <= rows
    for answer in ("7", "", "3"):
        assert counts[0][answer] == pytest.approx(counts[1][answer], abs=80)  # four standard errors of a difference


def test_a_sampled_answer_also_ends_with_the_tokens_of_the_generation_config():
    model = likely_to_say_seven()
    model.generation_config.eos_token_id = ids_of("3").tolist()  # the tokenizer ends with another
    drawer = confidence.Drawer(model, byte_level_tokenizer(), Reading(temperature=1.0, answer_tokens=3), "t")
    drawer.read(made()[0].prompt_ids)
    answers = drawer.draw(200, 1000)
    assert answers["3"] > 10
    assert not any(answer[:-1].count("3") for answer in answers)


def test_a_sampled_answer_ends_where_its_box_does():
    assert confidence.closing_at("7} and", "}.") == 1
    assert confidence.closing_at("\\frac{1}{2}} so", "}") == 11
    assert confidence.closing_at("{7}", "}") is None
    assert confidence.closing_at("7 END", " END") == 1
    assert confidence.closing_at("7\nthen", "") == 1


@pytest.mark.parametrize("setting", [{"samples": 0}, {"temperature": 0.0}, {"answer_tokens": 0}])
def test_sampling_nothing_is_a_sentence(setting):
    with pytest.raises(ValueError, match="expected one or more samples"):
        gathered("confidence", **setting)


@pytest.mark.e2e
def test_the_bundled_model_grows_confident_as_its_needed_steps_come():
    model, tokenizer = toy.load_model()
    traces = [segrl.tokenize(trace, tokenizer) for trace in toy.sample_traces(4, seed=0)]
    segments = [segrl.segment(trace) for trace in traces]
    found = paper.gather(model, traces, tokenizer, ("confidence", "prefix_logp"), segments=segments, samples=8)
    for one in found:
        assert one.empty_confidence < 0.5 < float(one.confidence_S[-1])
        assert one.empty_logp < float(one.prefix_logp_S[-1])


# --- what is asked for -----------------------------------------------------------------------------------------------


def test_needs_are_gathered_once_and_together(monkeypatch):
    calls = []
    real = NEEDS["logp_T"]
    spy = lambda *given: calls.append(1) or real(*given)  # noqa: E731
    for name in ("logp_T", "entropy_T"):
        monkeypatch.setitem(NEEDS, name, spy)
    _, _, evidence = gathered("entropy", "logp_T", "ig", "logp", nodes=2, tolerance=None)
    assert calls == [1]
    assert evidence.ig.evaluations == evidence.cost["ig"] == 4
    assert set(evidence.cost) == {"ig", "logp_T", "entropy_T"}


def test_a_contrast_is_gathered_beside_the_attribution_on_the_same_path():
    trace, _ = made(answer="3")
    model, tokenizer = tiny_model(), byte_level_tokenizer()
    path = {"path": "values", "nodes": 2, "tolerance": None}
    [evidence] = paper.gather(model, [trace], tokenizer, ("ig", "contrast"), target="own", **path)
    [own] = paper.attribute(model, [trace], tokenizer, target="own", **path)
    [contrast] = paper.attribute(model, [trace], tokenizer, target="contrast", **path)
    assert torch.equal(evidence.ig.scores_T, own.scores_T)
    assert torch.equal(evidence.contrast.scores_T, contrast.scores_T)
    assert evidence.contrast.path == "values"
    assert evidence.cost == {"ig": own.evaluations, "contrast": contrast.evaluations}


def test_what_cannot_be_gathered_is_a_sentence():
    trace, segments = made()
    model, tokenizer = tiny_model(), byte_level_tokenizer()

    def refused(sentence, *arguments, **options):
        with pytest.raises(ValueError, match=sentence):
            paper.gather(model, *arguments, **options)

    refused("nothing is gathered as 'entrpy', did you mean 'entropy_T'", [trace], tokenizer, ("entrpy",))
    refused("are of segments; pass segments=", [trace], tokenizer, ("prefix_logp",))
    refused("got 2 segments for 1 traces", [trace], tokenizer, ("perplexity",), segments=[segments] * 2)
    refused("gather has no option 'smaples', did you mean 'samples'", [trace], tokenizer, smaples=3)
    refused("gather has no option 'rule'; quadrature= says how nodes are chosen", [trace], tokenizer, rule="left")
    unanswered, _ = made(answer=None)
    for need in ("ig", "gradient", "attention", "prefix_logp", "without_logp", "alone_value", "shapley", "confidence"):
        refused("trace 't' has no gold answer", [unanswered], tokenizer, (need,), segments=[segments])
    refused("trace 't' has no gold answer", [unanswered], tokenizer, ("contrast",))
    unboxed, _ = made("Okay, 7.\n</think> 7")
    refused("trace 't' boxes no answer of its own", [unboxed], tokenizer, ("contrast",))
    options = {"segments": [segments], "subset_output": "odds"}
    refused("subset_output='odds', expected one of", [trace], tokenizer, ("alone_value",), **options)
    few = {"segments": [segments], "forwards": 7}
    refused("of 3 thoughts take 8 forwards or more, got forwards=7", [trace], tokenizer, ("shapley",), **few)


def test_a_broken_model_is_a_sentence():
    model = tiny_model()
    with torch.no_grad():
        model.get_output_embeddings().weight[0] = torch.nan
    with pytest.raises(ValueError, match=r"trace 't': evidence logp_T: \d+ of \d+ values are not finite"):
        gathered("logp", model=model)


def test_evidence_checks_its_counts_and_segments():
    trace, segments = made()
    with pytest.raises(ValueError, match="evidence gradient_T: got 3 for"):
        Evidence(trace, gradient_T=torch.ones(3))
    with pytest.raises(ValueError, match="perplexity_S comes with the segments"):
        Evidence(trace, perplexity_S=torch.ones(4))
    with pytest.raises(ValueError, match="perplexity_S: got 3 for 4"):
        Evidence(trace, segments=segments, perplexity_S=torch.ones(3))
    evidence = Evidence(trace, segments=segments, prefix_logp_S=torch.ones(4), empty_logp=0.0)
    with pytest.raises(ValueError, match="the evidence was gathered for 4 segments, cut otherwise than the 1 to score"):
        segrl.score(evidence, Segments((0, trace.tokens)), "pmi")

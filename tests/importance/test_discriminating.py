"""DelTA's coefficients: by hand, against a slow oracle, and on the vectors of a model."""

from dataclasses import replace
from math import exp
from statistics import pstdev
from threading import Barrier, Thread

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from testkit.tiny import byte_level_tokenizer, tiny_model

import segrl
from segrl import Evidence, Segments, Trace
from segrl.importance.discriminating import coefficients, vectors_of
from segrl.importance.gathering import token_streams
from segrl.importance.lockstep import Request, compare_in_lockstep
from segrl.types import TokenisedTrace
from segrl.weighting import Weighable, weigh_together

NEED = "coefficient_T"


def column(*values):
    """One-dimensional vectors."""
    return torch.tensor(values, dtype=torch.float64)[:, None]


def all_of(found):
    return [value for coefficients_T in found for value in coefficients_T.tolist()]


# --- by hand ---------------------------------------------------------------------------------------------------------


def test_two_responses_of_two_tokens_by_hand():
    """Centroids 1 and -1, so m = (v + 1)^2 - (v - 1)^2 = 4v: 8 and 0 on either side, and gamma 4. With q = sigmoid(2) =
    0.880797 and 1/2 the centroids become +-1.275781, and m = 4 . 1.275781 v = 10.206245 and 0."""
    found = coefficients([column(2, 0), column(0, -2)], [torch.ones(2), -torch.ones(2)])
    assert all_of(found) == pytest.approx([0.927678, 0.5, 0.5, 0.927678], abs=1e-6)


def test_advantages_weigh_the_centroids_and_not_the_spread_by_hand():
    """v = 3 with A = 2, 0 with 1; -1 and -3 with -1. The centroids are 6/3 = 2 and -2, m = 8v: 24, 0 | 8, 24, so gamma
    is 12 and 8, and q = sigmoid(2), 1/2 | sigmoid(1), sigmoid(3) = 0.880797, 0.5 | 0.731059, 0.952574.
    mu+ = 2 . 0.880797 . 3 / (2 . 0.880797 + 0.5) = 2.336751, mu- = -(0.731059 + 3 . 0.952574) / 1.683633 = -2.131570.
    They are 4.468321 apart with 0.102591 in the middle: m = 2 . 4.468321 (v - 0.102591) = 25.8931, -0.9168 on the one
    side and 9.8535, 27.7268 on the other."""
    vectors, advantages = [column(3), column(0), column(-1, -3)], [[2.0], [1.0], [-1.0, -1.0]]
    found = all_of(coefficients(vectors, [torch.tensor(one) for one in advantages]))
    expected = [25.8931 / 12, -0.9168 / 12, 9.8535 / 8, 27.7268 / 8]
    assert found == pytest.approx([1 / (1 + exp(-x)) for x in expected], abs=1e-5)


def test_tokens_that_are_all_alike_on_their_side_are_surely_of_it():
    """(+-1, 0) and (+-1, 2): the centroids are (+-1, 1) and every margin is 4, so gamma is zero."""
    vectors = [torch.tensor([[sign, 0.0], [sign, 2.0]]) for sign in (1, -1)]
    assert all_of(coefficients(vectors, [torch.ones(2), -torch.ones(2)])) == [1.0] * 4


def test_sides_that_cannot_be_told_apart_get_a_half():
    vectors_TD = torch.rand(3, 4)
    same = coefficients([vectors_TD, vectors_TD.flip(0)], [torch.ones(3), -torch.ones(3)])
    assert all_of(same) == pytest.approx([0.5] * 6, abs=1e-6)
    for advantages in ([1.0, 2.0], [-1.0, -2.0], [0.0, 0.0]):  # one side is empty, or both
        assert all_of(coefficients([vectors_TD] * 2, [torch.full((3,), one) for one in advantages])) == [0.5] * 6


def response(id, tokens):
    """Of so many tokens, the last of which is the answer segment."""
    ends = torch.arange(1, tokens + 1)
    trace = TokenisedTrace(
        id=id,
        problem="",
        response="x" * tokens,
        prompt_ids=torch.tensor([0]),
        response_ids=ends,
        offsets_T=torch.stack([ends - 1, ends], 1),
        trainable_T=torch.ones(tokens, dtype=torch.bool),
        prompt_hash="p",
    )
    return trace, Segments((0, tokens - 1, tokens), ("thought", "answer"))


def test_the_weights_of_a_batch_are_the_papers_by_hand():
    """lambda = 0.8 + 0.4 c = 1.171071, 1, 1, 1.171071, whose mean is 1.085536. An answer segment weighs one."""
    found = coefficients([column(2, 0), column(0, -2)], [torch.ones(2), -torch.ones(2)])
    pool = []
    for id, coefficients_T, advantage in zip("ab", found, (1.0, -1.0), strict=True):
        trace, segments = response(id, 3)
        evidence = Evidence(trace, coefficient_T=torch.cat([coefficients_T, torch.tensor([0.5])]))
        pool.append(Weighable(segrl.score(evidence, segments, "delta"), segments, advantage=advantage))
    lambdas = [score for one in pool for score in one.scores.strength_S.tolist()]
    assert lambdas == pytest.approx([1.171071, 1, 0, 1, 1.171071, 0], abs=1e-6)
    weights = weigh_together(pool, "linear", sign="both")
    assert all_of(weights) == pytest.approx([1.078796, 0.921204, 1, 0.921204, 1.078796, 1], abs=1e-6)


def test_the_range_is_an_option():
    trace, segments = response("a", 4)
    evidence = Evidence(trace, coefficient_T=torch.tensor([0.0, 0.25, 1.0, 1.0]))
    assert segrl.score(evidence, segments, "delta", low=0.5, high=1.5).strength_S.tolist() == [0.5, 0.75, 1.5, 0.0]


# --- against an oracle that goes token by token ----------------------------------------------------------------------


def slow(vectors, advantages):
    """The equations, token by token; a token stands with its vector as a list of numbers, and its advantage."""
    tokens = [
        (vector, advantage)
        for vectors_TD, advantages_T in zip(vectors, advantages, strict=True)
        for vector, advantage in zip(vectors_TD.tolist(), advantages_T.tolist(), strict=True)
    ]

    def centroid(sign, q):
        held = [(v, abs(a) * q[i]) for i, (v, a) in enumerate(tokens) if a * sign > 0]
        weight = sum(w for _, w in held)
        return [sum(v[d] * w for v, w in held) / weight for d in range(len(tokens[0][0]))]

    def distance(v, mu):
        return sum((x - y) ** 2 for x, y in zip(v, mu, strict=True))

    def margins(q):
        mu = {sign: centroid(sign, q) for sign in (1, -1)}
        return [
            distance(v, mu[-1 if a > 0 else 1]) - distance(v, mu[1 if a > 0 else -1]) if a else 0.0 for v, a in tokens
        ]

    def share(m):
        return [1 / (1 + exp(-m[i] / gamma[a > 0])) for i, (_, a) in enumerate(tokens)]

    first = margins([1.0] * len(tokens))
    gamma = {
        side: pstdev(m for m, (_, a) in zip(first, tokens, strict=True) if a and (a > 0) == side)
        for side in (True, False)
    }
    return share(margins(share(first)))


def batch(seed, width=5):
    """Responses of one to six tokens: some of each side, one of none, one with a token that is not trained."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 7, (6,), generator=generator).tolist()
    vectors = [torch.randn(length, width, generator=generator, dtype=torch.float64) for length in [*lengths, 3, 3]]
    signs = [1, -1, 1, -1, 1, -1]
    sizes = torch.rand(6, generator=generator).add(0.1).tolist()
    advantages = [torch.full((n,), s * a) for n, s, a in zip(lengths, signs, sizes, strict=True)]
    return vectors, [*advantages, torch.zeros(3), torch.tensor([0.5, 0.0, 0.5])]


@pytest.mark.parametrize("seed", range(5))
def test_the_equations_token_by_token_give_the_same(seed):
    vectors, advantages = batch(seed)
    found = all_of(coefficients(vectors, advantages))
    assert found == pytest.approx(slow(vectors, [one.double() for one in advantages]), abs=1e-9)
    assert max(found) - min(found) > 0.3


@given(st.integers(0, 1000), st.floats(-6, 6), st.floats(-3, 3), st.floats(0.01, 100))
def test_turned_moved_and_scaled_vectors_and_larger_advantages_give_the_same(seed, power, shift, factor):
    vectors, advantages = batch(seed)
    generator = torch.Generator().manual_seed(seed)
    turn_DD, _ = torch.linalg.qr(torch.randn(5, 5, generator=generator, dtype=torch.float64))
    moved = [10**power * (vectors_TD @ turn_DD + shift) for vectors_TD in vectors]
    found = coefficients(moved, [factor * advantages_T.double() for advantages_T in advantages])
    assert all_of(found) == pytest.approx(all_of(coefficients(vectors, advantages)), abs=1e-6)


def test_negated_advantages_change_the_sides_and_nothing_else():
    vectors, advantages = batch(3)
    turned = coefficients(vectors, [-advantages_T for advantages_T in advantages])
    assert all_of(turned) == pytest.approx(all_of(coefficients(vectors, advantages)), abs=1e-12)


def test_two_that_add_up_what_they_hold_find_what_one_does():
    """The first holds the positive side alone. Each adds in its own thread, and waits for the other's tensor."""
    vectors, advantages = batch(1)
    parts = [[i for i in range(8) if advantages[i].sum() > 0], [i for i in range(8) if advantages[i].sum() <= 0]]
    expected, barrier, given, found = coefficients(vectors, advantages), Barrier(2), [None, None], {}

    def rank(number):
        def summed(values):
            given[number] = values
            barrier.wait(10)
            total = given[0] + given[1]
            barrier.wait(10)
            return total

        part = parts[number]
        pair = [vectors[i] for i in part], [advantages[i] for i in part]
        found.update(zip(part, coefficients(*pair, summed), strict=True))

    threads = [Thread(target=rank, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    for i, wanted in enumerate(expected):
        torch.testing.assert_close(found[i], wanted, rtol=1e-9, atol=1e-12)


# --- the vectors of a model ------------------------------------------------------------------------------------------

TEXTS = ["Okay, 3 + 4.\n\nWait, it is 7.", "Okay, 3.\n\nWait, 4 and so 7.\n\nHowever, 7 it is.", "Okay,\n\nWait, 7"]


@pytest.fixture(scope="module")
def traces():
    tokenizer = byte_level_tokenizer()
    return [segrl.tokenize(Trace(f"t{i}", "3 + 4?", text, "7"), tokenizer) for i, text in enumerate(TEXTS)]


def logps_of(model, traces):
    return [token_streams(model, trace)[0] for trace in traces]


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3", "llama", "gpt_neox"])
def test_a_vector_is_the_gradient_in_the_tokens_own_row_of_the_output_layer(architecture, traces):
    """By autograd, of a forward over one sequence without padding."""
    model = tiny_model(architecture)
    weight = model.get_output_embeddings().weight
    assert weight is not model.get_input_embeddings().weight
    found = vectors_of(model, traces, logps_of(model, traces))
    for trace, vectors_TD in zip(traces, found, strict=True):
        ids = torch.cat([trace.prompt_ids, trace.response_ids])
        logp_TV = torch.log_softmax(model(input_ids=ids[None]).logits[0, len(trace.prompt_ids) - 1 : -1], -1)
        rows = [
            torch.autograd.grad(logp_TV[t, id], weight, retain_graph=True)[0][id]
            for t, id in enumerate(trace.response_ids.tolist())
        ]
        torch.testing.assert_close(vectors_TD, torch.stack(rows), rtol=1e-4, atol=1e-6)


def test_one_position_goes_on_to_the_output_layer_and_the_model_stays_as_it_was(traces):
    model, widths = tiny_model().train(), []
    logps = logps_of(model, traces)
    handle = model.get_output_embeddings().register_forward_hook(lambda *call: widths.append(call[1][0].shape[1]))
    vectors_of(model, traces, logps)
    handle.remove()
    assert widths == [1]
    assert model.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert not model.base_model._forward_hooks


def test_half_precision_stays_half_precision(traces):
    model = tiny_model().bfloat16()
    assert {vectors_TD.dtype for vectors_TD in vectors_of(model, traces, logps_of(model, traces))} == {torch.bfloat16}


def test_an_adapter_counts_as_if_merged(traces):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    config = peft.LoraConfig(target_modules=["q_proj", "v_proj"], r=4, init_lora_weights=False)
    adapted = peft.get_peft_model(tiny_model(), config).eval()
    logps = logps_of(tiny_model(), traces)
    live = vectors_of(adapted, traces, logps)
    for vectors_TD, wanted in zip(live, vectors_of(adapted.merge_and_unload(), traces, logps), strict=True):
        torch.testing.assert_close(vectors_TD, wanted, rtol=1e-4, atol=1e-5)


# --- in a fixed number of forwards -----------------------------------------------------------------------------------

ADVANTAGES = [0.5, -0.7, 0.2]


def test_parts_change_no_coefficient_and_say_how_many_forwards(traces):
    model, forwards = tiny_model(), []
    logps = logps_of(model, traces)
    vectors = vectors_of(model, traces, logps)
    expected = coefficients(vectors, [torch.full((one.tokens,), a) for one, a in zip(traces, ADVANTAGES, strict=True)])
    model.register_forward_hook(lambda *_: forwards.append(1))
    for tokens, number in ((1, 3), (10_000, 1)):
        forwards.clear()
        request = Request(need=NEED, tokens=tokens)
        streams = compare_in_lockstep(model, traces, logps, ADVANTAGES, request)
        assert len(forwards) == number
        for stream, wanted in zip(streams, expected, strict=True):
            torch.testing.assert_close(stream.scores_T, wanted.float(), rtol=1e-3, atol=1e-4)
            assert float(stream.scores_T.max() - stream.scores_T.min()) > 0.1


def test_what_is_not_trained_takes_no_part(traces):
    """Its coefficient is a half, and the others' are as if its vectors were not there."""
    model = tiny_model()
    logps = logps_of(model, traces)
    trained_T = torch.arange(traces[0].tokens) >= 4
    masked = [replace(traces[0], trainable_T=trained_T), *traces[1:]]
    streams = compare_in_lockstep(model, masked, logps, ADVANTAGES, Request(need=NEED))
    vectors = vectors_of(model, traces, logps)
    shorter = [vectors[0][4:], *vectors[1:]]
    expected = coefficients(shorter, [torch.full((len(v),), a) for v, a in zip(shorter, ADVANTAGES, strict=True)])
    assert streams[0].scores_T[:4].tolist() == [0.5] * 4
    torch.testing.assert_close(streams[0].scores_T[4:], expected[0].float(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(streams[1].scores_T, expected[1].float(), rtol=1e-4, atol=1e-5)


def test_an_overflow_in_one_trace_costs_the_others_nothing(traces):
    """ "However", which only the second trace holds, has an embedding of NaN; the fourth is the second side instead."""
    model, four = tiny_model(), [*traces, replace(traces[0], id="t3")]
    advantages = [0.5, -0.7, 0.2, -0.4]
    logps = logps_of(model, four)
    without = [0, 2, 3]
    expected = compare_in_lockstep(
        model, [four[i] for i in without], [logps[i] for i in without], [0.5, 0.2, -0.4], Request(need=NEED)
    )
    first, second, third = (set(trace.response_ids.tolist()) for trace in traces)
    with torch.no_grad():
        model.get_input_embeddings().weight[max(second - first - third)] = torch.nan
    streams = compare_in_lockstep(model, four, logps, advantages, Request(need=NEED))
    assert bool(streams[1].scores_T.isnan().all())
    for i, wanted in zip(without, expected, strict=True):
        torch.testing.assert_close(streams[i].scores_T, wanted.scores_T, rtol=1e-4, atol=1e-5)


def test_there_is_no_coefficient_of_finished_traces(traces):
    with pytest.raises(ValueError, match=r"compares the responses of a batch by their advantages, so it exists only"):
        segrl.gather(tiny_model(), traces, byte_level_tokenizer(), needs=("coefficient",))

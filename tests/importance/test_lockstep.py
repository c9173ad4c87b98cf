"""Attribution in a fixed number of forwards, on one process and on the pieces of several."""

import warnings
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from testkit import paper
from testkit.tiny import byte_level_tokenizer, tiny_model

import segrl
from segrl import Trace
from segrl.attribution.calibration import masses_on_grid
from segrl.attribution.target import explain
from segrl.importance.lockstep import (
    FILLER_ANSWER,
    Request,
    attribute_in_lockstep,
    explained,
    parts,
    split_until,
    together,
)
from segrl.importance.streams import token_streams

TEXTS = ["Okay, 3 + 4.\n\nWait, it is 7.", "Okay, 3.\n\nWait, 4 and so 7.\n\nHowever, 7 it is.", "Okay,\n\nWait, 7"]


@pytest.fixture(scope="module")
def traces():
    tokenizer = byte_level_tokenizer()
    return [segrl.tokenize(Trace(f"t{i}", "3 + 4?", text, "7"), tokenizer) for i, text in enumerate(TEXTS)]


def test_parts_and_batches_do_not_change_a_score(traces):
    model, tokenizer = tiny_model(), byte_level_tokenizer()
    rule = (torch.tensor([0.3, 0.8]), torch.tensor([0.4, 0.6]))
    expected = paper.attribute(model, traces, tokenizer, quadrature=rule, tolerance=None, interpolate="response")
    for tokens in (1, 100, 10_000):
        request = Request(alphas=(0.3, 0.8), weights=(0.4, 0.6), tokens=tokens, certificate=True)
        for stream, wanted in zip(attribute_in_lockstep(model, traces, tokenizer, request), expected, strict=True):
            torch.testing.assert_close(stream.scores_T, wanted.scores_T, rtol=1e-4, atol=1e-6)
            assert stream.gap == pytest.approx(wanted.gap, rel=1e-3)


def test_an_overflow_in_one_trace_costs_the_others_nothing(traces):
    """ "However", which only the second trace holds, has an embedding of NaN; all three share a forward."""
    model, tokenizer = tiny_model(), byte_level_tokenizer()
    assert not model.config.tie_word_embeddings
    expected = attribute_in_lockstep(model, traces, tokenizer, Request())
    first, second, third = (set(trace.response_ids.tolist()) for trace in traces)
    with torch.no_grad():
        model.get_input_embeddings().weight[max(second - first - third)] = torch.nan
    streams = attribute_in_lockstep(model, traces, tokenizer, Request())
    assert [bool(stream.scores_T.isnan().all()) for stream in streams] == [False, True, False]
    for i in (0, 2):
        torch.testing.assert_close(streams[i].scores_T, expected[i].scores_T)
    with pytest.raises(ValueError, match="not finite"):
        paper.attribute(model, traces, tokenizer, tolerance=None, interpolate="response")


def test_fused_kernels_change_no_score(traces, monkeypatch):
    """verl's fused forward answers log-probs and no logits; it patches the class, which is put back."""
    pytest.importorskip("verl")
    from verl.models.transformers.monkey_patch import patch_forward_with_backends

    model, tokenizer, request = tiny_model(), byte_level_tokenizer(), Request(certificate=True)
    expected = attribute_in_lockstep(model, traces, tokenizer, request)
    monkeypatch.setattr(type(model), "forward", type(model).forward)
    patch_forward_with_backends(model, use_fused_kernels=True, fused_kernels_backend="torch")
    fused = model(input_ids=traces[0].response_ids[None], return_dict=True)
    assert fused.logits is None
    for stream, wanted in zip(attribute_in_lockstep(model, traces, tokenizer, request), expected, strict=True):
        torch.testing.assert_close(stream.scores_T, wanted.scores_T, rtol=1e-4, atol=1e-6)
        assert stream.gap == pytest.approx(wanted.gap, rel=1e-3)


def test_the_number_of_forwards_is_parts_times_nodes_and_two_for_the_certificate(traces):
    model, tokenizer = tiny_model(), byte_level_tokenizer()
    forwards = []
    model.register_forward_hook(lambda *_: forwards.append(1))
    for certificate, expected in ((False, 2), (True, 4)):
        forwards.clear()
        request = Request(alphas=(0.3, 0.8), weights=(0.4, 0.6), tokens=10_000, certificate=certificate)
        attribute_in_lockstep(model, traces, tokenizer, request)
        assert len(forwards) == expected
    forwards.clear()
    attribute_in_lockstep(model, traces, tokenizer, Request(tokens=1))
    assert len(forwards) == 3


@pytest.mark.parametrize("need", ["gradient_T", "gradnorm_T"])
def test_what_is_read_at_the_input_in_parts_is_what_is_gathered(traces, need):
    model, tokenizer = tiny_model(), byte_level_tokenizer()
    expected = segrl.gather(model, traces, tokenizer, needs=(need,))
    for tokens in (10_000, 1):
        streams = attribute_in_lockstep(model, traces, tokenizer, Request(need=need, tokens=tokens))
        for stream, wanted in zip(streams, expected, strict=True):
            torch.testing.assert_close(stream.scores_T, getattr(wanted, need), rtol=1e-4, atol=1e-6)
            assert bool(stream.scores_T.any())


@pytest.mark.parametrize("output", ["logp", "log_odds"])
def test_the_answer_after_each_prefix_comes_from_one_forward_a_trace(traces, output):
    """As gathered prefix by prefix; a row that fills up gives what it is asked."""
    model, tokenizer = tiny_model(), byte_level_tokenizer()
    segments = [segrl.segment(trace) for trace in traces]
    expected = segrl.gather(model, traces, tokenizer, needs=("prefix_logp",), segments=segments, output=output)
    forwards = []
    model.register_forward_hook(lambda *_: forwards.append(1))
    request = Request(need="prefix_logp_S", output=output)
    boundaries = [one.boundaries for one in segments[:-1]] + [(0,)]
    streams = attribute_in_lockstep(model, traces, tokenizer, request, boundaries)
    assert len(forwards) == len(traces)
    for stream, wanted in zip(streams[:-1], expected[:-1], strict=True):
        values = [wanted.empty_logp, *wanted.prefix_logp_S.tolist()]
        assert stream.scores_T.tolist() == pytest.approx(values, rel=1e-4, abs=1e-5)
    assert streams[-1].scores_T.tolist() == pytest.approx([expected[-1].empty_logp], rel=1e-4, abs=1e-5)


@pytest.mark.parametrize(("tokens", "forwards"), [(10_000, 64), (1, 2)])
def test_supports_in_parts_are_what_is_gathered(traces, tokens, forwards):
    """Whether whole responses are read or their log-probabilities come with them, which spares a row each."""
    model, tokenizer = tiny_model(), byte_level_tokenizer()
    segments = [segrl.segment(trace) for trace in traces]
    expected = segrl.gather(model, traces, tokenizer, needs=("support",), segments=segments, forwards=forwards)
    boundaries = [one.boundaries for one in segments[:-1]] + [(0,)]
    request = Request(need="support_S", tokens=tokens, forwards=forwards)
    whole, rows = [token_streams(model, trace)[0] for trace in traces], []
    model.register_forward_hook(lambda *seen: rows.append(len(seen[-1].logits)))
    counts = []
    for logps in (None, whole):
        rows.clear()
        streams = attribute_in_lockstep(model, traces, tokenizer, request, boundaries, logps)
        counts.append(sum(rows))
        for stream, wanted in zip(streams[:-1], expected, strict=False):
            assert stream.scores_T.tolist() == pytest.approx([0, *wanted.support_S.tolist()], rel=1e-3, abs=1e-4)
            assert bool(stream.scores_T.any())
        assert not streams[-1].scores_T.any()  # a row that only fills up the ranks has no segment
    assert counts[0] - counts[1] == len(traces) - 1


def test_gradient_times_embedding_is_one_node_at_the_input_of_a_path_from_zero(traces):
    model, tokenizer = tiny_model(), byte_level_tokenizer()
    streams = attribute_in_lockstep(model, traces, tokenizer, Request(need="gradient_T"))
    ends = torch.ones(1, dtype=torch.float64)
    options = {"quadrature": (ends, ends), "baseline": "zero", "interpolate": "response", "tolerance": None}
    for stream, trace in zip(streams, traces, strict=True):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="the baseline is all zero")
            [expected] = paper.attribute(model, [trace], tokenizer, certificate=False, **options)
        torch.testing.assert_close(stream.scores_T, expected.scores_T, rtol=1e-4, atol=1e-6)


def test_masses_in_parts_are_the_calibrations_masses(traces):
    model, tokenizer = tiny_model(), byte_level_tokenizer()
    alphas = [0.125, 0.375, 0.625, 0.875]
    expected = masses_on_grid(model, traces, tokenizer, alphas, interpolate="response")
    in_parts = masses_on_grid(
        model, traces, tokenizer, alphas, parts=parts(traces, 60, True), checkpointing=False, interpolate="response"
    )
    for masses_JL, wanted in zip(in_parts, expected, strict=True):
        torch.testing.assert_close(masses_JL.float(), wanted.float(), rtol=1e-4, atol=1e-6)


def test_the_rollouts_own_answer_or_the_gold_one_is_explained(traces):
    silent = replace(traces[0], answer=None)
    pair, tokenizer = [traces[0], silent], byte_level_tokenizer()
    assert [trace.answer for trace in explained(pair, "own", [], tokenizer)] == ["7", FILLER_ANSWER]
    assert [trace.answer for trace in explained(pair, "gold", ["8", "9"], tokenizer)] == ["8", "9"]
    assert [trace.answer for trace in explained(pair, "gold", ["8", ""], tokenizer)] == ["8", FILLER_ANSWER]


# Own answers that part from the gold one in a digit, at the closing brace, and in form alone; and none.
OWN, GOLD = ["7", "7", "0.5", None], ["8", "75", "1/2", "8"]


@pytest.fixture
def answered(traces):
    """Traces whose answer is the response's own, as rollouts have it."""
    texts = [*TEXTS, TEXTS[0] + " Wait."]
    made = [Trace(f"t{i}", "3 + 4?", text, own) for i, (text, own) in enumerate(zip(texts, OWN, strict=True))]
    return [segrl.tokenize(trace, byte_level_tokenizer()) for trace in made]


def test_a_contrast_holds_both_answers_and_a_right_one_explains_gold(answered):
    tokenizer = byte_level_tokenizer()
    pairs = explained(answered, "contrast", GOLD, tokenizer)
    assert [(trace.answer, trace.own_answer) for trace in pairs] == [*zip(GOLD[:3], OWN[:3], strict=True), ("8", "0")]
    sequences = [explain(trace, tokenizer, "contrast") for trace in pairs]
    assert [sequence.rival is None for sequence in sequences] == [False, False, True, False]
    assert tokenizer.decode([sequences[1].rival, sequences[1].input_ids[-1]]) == "5}"
    assert sequences[2].answer == "1/2"


def test_answers_that_no_token_parts_explain_gold(answered):
    """Of ``7}`` and ``7}}`` the first is the beginning of the second; a blank gold answer becomes a filler."""
    first, second = explained(answered[:2], "contrast", ["7}", " "], byte_level_tokenizer())
    assert (first.answer, first.own_answer) == ("7}", "7}")
    assert explain(first, byte_level_tokenizer(), "contrast").rival is None
    assert (second.answer, second.own_answer) == (FILLER_ANSWER, "7")


@pytest.mark.parametrize("target", ["own", "gold", "contrast"])
@pytest.mark.parametrize(
    "path",
    [
        {"path": "values", "output": "log_odds", "interpolate": None},
        {"path": "values", "begin": 0.5, "interpolate": "all"},
        {"path": "embeddings", "output": "log_odds", "interpolate": "response"},
    ],
    ids=["values, log-odds", "values from a half on", "embeddings, log-odds"],
)
def test_every_path_and_target_is_that_of_attribute(answered, target, path):
    """Whatever the parts; the traces for attribute() are written out, the lockstep has them from explained()."""
    model, tokenizer = tiny_model(), byte_level_tokenizer()
    golds = GOLD if target != "own" else []
    rollouts = explained(answered, target, golds, tokenizer)
    owns = [own or FILLER_ANSWER for own in OWN]
    written = [
        replace(trace, answer=gold, meta={"own_answer": own})
        for trace, gold, own in zip(answered, GOLD, owns, strict=True)
    ]
    nodes = (torch.tensor([0.25, 0.75]), torch.tensor([0.5, 0.5]))
    expected = paper.attribute(model, written, tokenizer, quadrature=nodes, tolerance=None, target=target, **path)
    for tokens in (1, 10_000):
        request = Request(
            target=target, alphas=(0.25, 0.75), weights=(0.5, 0.5), tokens=tokens, certificate=True, **path
        )
        for stream, wanted in zip(attribute_in_lockstep(model, rollouts, tokenizer, request), expected, strict=True):
            torch.testing.assert_close(stream.scores_T, wanted.scores_T, rtol=1e-4, atol=1e-5)
            assert stream.gap == pytest.approx(wanted.gap, rel=1e-3, abs=1e-4)
            assert stream.path == path["path"]
    masses = masses_on_grid(model, rollouts, tokenizer, [0.25, 0.75], parts=[[0, 1], [2, 3]], **request.about)
    for masses_JL, wanted in zip(masses, expected, strict=True):
        inside = slice(len(wanted.input_ids) - masses_JL.shape[1], None)
        start = len(answered[0].prompt_ids)
        thinking_T = masses_JL.mean(0)[inside][start : start + len(wanted.scores_T)]
        torch.testing.assert_close(thinking_T.float(), wanted.scores_T, rtol=1e-4, atol=1e-5)


def test_a_measure_of_contrasts_asks_for_one_whatever_its_need_is_called(answered):
    model, tokenizer = tiny_model(), byte_level_tokenizer()
    rollouts = explained(answered, "contrast", GOLD, tokenizer)
    pair = [
        attribute_in_lockstep(model, rollouts, tokenizer, Request(need, target="contrast"))
        for need in ("ig", "contrast")
    ]
    for stream, wanted in zip(*pair, strict=True):
        assert torch.equal(stream.scores_T, wanted.scores_T)


def test_adapters_on_value_projections_are_gated_as_if_merged(answered):
    """Live as the merged model, with the adapter off as the base: the reference under LoRA."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    config = peft.LoraConfig(target_modules=["q_proj", "v_proj"], r=4, lora_dropout=0.5, init_lora_weights=False)
    adapted, tokenizer = peft.get_peft_model(tiny_model(), config).train(), byte_level_tokenizer()
    rollouts = explained(answered, "contrast", GOLD, tokenizer)
    request = Request(path="values", output="log_odds", target="contrast", checkpointing=True)
    live = attribute_in_lockstep(adapted, rollouts, tokenizer, request)
    with adapted.disable_adapter():
        bare = attribute_in_lockstep(adapted, rollouts, tokenizer, request)
    assert adapted.training
    for streams, model in ((bare, tiny_model()), (live, adapted.merge_and_unload())):
        expected = attribute_in_lockstep(model, rollouts, tokenizer, request)
        for stream, wanted in zip(streams, expected, strict=True):
            torch.testing.assert_close(stream.scores_T, wanted.scores_T, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(live[0].scores_T, bare[0].scores_T, rtol=0.1)


@pytest.mark.parametrize("options", [{"output": "log_odds"}, {"target": "contrast"}])
def test_fused_kernels_have_no_logits_to_read(answered, options, monkeypatch):
    pytest.importorskip("verl")
    from verl.models.transformers.monkey_patch import patch_forward_with_backends

    model, tokenizer = tiny_model(), byte_level_tokenizer()
    monkeypatch.setattr(type(model), "forward", type(model).forward)
    patch_forward_with_backends(model, use_fused_kernels=True, fused_kernels_backend="torch")
    rollouts = explained(answered, options.get("target", "gold"), GOLD, tokenizer)
    with pytest.raises(ValueError, match="use_fused_kernels=false"):
        attribute_in_lockstep(model, rollouts, tokenizer, Request(**{"target": "gold"} | options))


@given(st.lists(st.integers(1, 500), min_size=1, max_size=40), st.integers(1, 2000), st.integers(0, 10))
def test_parts_hold_every_rollout_once_and_no_more_than_fits(lengths, tokens, more):
    groups = together(lengths, tokens)
    for group in groups:
        assert len(group) == 1 or len(group) * max(lengths[i] for i in group) <= tokens
    count = min(len(lengths), len(groups) + more)
    finer = split_until(groups, count)
    assert len(finer) == count
    assert all(finer)
    for partition in (groups, finer):
        assert sorted(i for group in partition for i in group) == list(range(len(lengths)))


def test_without_other_ranks_the_number_of_parts_is_ones_own(traces):
    assert parts(traces, 10_000, agree=True) == parts(traces, 10_000, agree=False)
    assert len(parts(traces, 1, agree=True)) == 3

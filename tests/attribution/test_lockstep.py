"""Attribution in a fixed number of forwards, on one process and on the pieces of several."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from testkit.tiny import byte_level_tokenizer, tiny_model

import segrl
from segrl import Trace
from segrl.attribution.calibration import masses_on_grid
from segrl.attribution.lockstep import (
    FILLER_ANSWER,
    Request,
    attribute_in_lockstep,
    explained,
    parts,
    split_until,
    together,
)

TEXTS = ["Okay, 3 + 4.\n\nWait, it is 7.", "Okay, 3.\n\nWait, 4 and so 7.\n\nHowever, 7 it is.", "Okay,\n\nWait, 7"]


@pytest.fixture(scope="module")
def traces():
    tokenizer = byte_level_tokenizer()
    return [segrl.tokenize(Trace(f"t{i}", "3 + 4?", text, "7"), tokenizer) for i, text in enumerate(TEXTS)]


def test_parts_and_batches_do_not_change_a_score(traces):
    model, tokenizer = tiny_model(), byte_level_tokenizer()
    rule = (torch.tensor([0.3, 0.8]), torch.tensor([0.4, 0.6]))
    expected = segrl.attribute(model, traces, tokenizer, quadrature=rule, tolerance=None, interpolate="response")
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
        segrl.attribute(model, traces, tokenizer, tolerance=None, interpolate="response")


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


def test_gradient_times_embedding_is_one_node_at_the_input_of_a_path_from_zero(traces):
    model, tokenizer = tiny_model(), byte_level_tokenizer()
    expected = segrl.gather(model, traces, tokenizer, needs=("gradient_T",))
    with_warnings = attribute_in_lockstep(model, traces, tokenizer, Request(need="gradient_T"))
    for stream, wanted in zip(with_warnings, expected, strict=True):
        torch.testing.assert_close(stream.scores_T, wanted.gradient_T, rtol=1e-4, atol=1e-6)


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
    from dataclasses import replace

    silent = replace(traces[0], answer=None)
    pair, tokenizer = [traces[0], silent], byte_level_tokenizer()
    assert [trace.answer for trace in explained(pair, "own", [], tokenizer)] == ["7", FILLER_ANSWER]
    assert [trace.answer for trace in explained(pair, "gold", ["8", "9"], tokenizer)] == ["8", "9"]


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

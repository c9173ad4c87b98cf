"""How one rollout's advantage is spread over its tokens, without verl, Ray or a model."""

import json
from dataclasses import replace
from functools import partial

import pytest
import torch
from testkit.tiny import byte_level_tokenizer

from segrl import Evidence, Segments
from segrl.credit.rollout import Rollout, evidence_of, make_rollout, record, rollout_trace, weigh_rollout
from segrl.credit.settings import CreditSettings
from segrl.credit.spreading import spread
from segrl.types import Stream, TokenisedTrace

ranked = partial(CreditSettings, rule="rank")

# Three thoughts of 2, 3 and 1 tokens, and the answer of 2.
SEGMENTS = Segments((0, 2, 5, 6, 8), ("thought", "thought", "thought", "answer"))
SCORES_T = torch.tensor([1.0, -1.0, 3.0, 3.0, 3.0, 0.5, 9.0, 9.0])


def rollout(advantage: float = 0.5, answer: str | None = "7", trainable_T=None) -> Rollout:
    trace = TokenisedTrace(
        id="r",
        problem="",
        response="abcdefgh",
        answer=answer,
        prompt_ids=torch.tensor([1]),
        response_ids=torch.arange(8),
        offsets_T=torch.stack([torch.arange(8), torch.arange(1, 9)], 1),
        trainable_T=torch.ones(8, dtype=torch.bool) if trainable_T is None else trainable_T,
        prompt_hash="p",
    )
    return Rollout("p_0_0", trace, SEGMENTS, torch.full((8,), advantage))


def weighed(response: Rollout, scores_T=SCORES_T, **settings):
    credit = ranked(**{"measure": "ig", **settings})
    return weigh_rollout(
        response, evidence_of(response, Stream(scores_T, gap=0.1, copy_share=0.2), credit), credit, step=1
    )


def advantages(response):
    return spread([response.rollout], [response], ranked())[response.rollout.key]


def test_rank_weights_times_advantage_by_hand():
    # strength = sum|s| / sqrt(n): 2/1.41, 9/1.73, 0.5/1 -> ranks 2, 3, 1 -> 1.0, 1.2, 0.8
    # mean over the 6 thinking tokens: (2 * 1.0 + 3 * 1.2 + 1 * 0.8) / 6 = 6.4 / 6
    mean = 6.4 / 6
    expected = torch.tensor([1.0, 1.0, 1.2, 1.2, 1.2, 0.8, mean, mean]) / mean
    torch.testing.assert_close(advantages(weighed(rollout())), 0.5 * expected)


def test_options_reach_the_rule_and_the_measure():
    # ranks 2, 3, 1 over [0, 1] -> 0.5, 1, 0: (2 * 0.5 + 3 * 1) / 6 = 4 / 6
    expected = torch.tensor([0.5, 0.5, 1, 1, 1, 0, 4 / 6, 4 / 6]) * 6 / 4
    response = weighed(rollout(), rule_options={"low": 0.0, "high": 1.0})
    torch.testing.assert_close(response.weights_T, expected)
    # sums of |s|: 2, 9 and 0.5
    response = weighed(rollout(), rule="linear", measure_options={"aggregate": "sum"})
    share = torch.tensor([2.0, 2, 9, 9, 9, 0.5]) / 11.5
    torch.testing.assert_close(response.weights_T[:6], share / share.mean())


def test_the_default_measure_ranks_by_signed_sums():
    """Sums of 0, 9 and 0.5: ranks 1, 3, 2 are weights 0.8, 1.2, 1.0, of mean (2 * 0.8 + 3 * 1.2 + 1.0) / 6."""
    expected = torch.tensor([0.8, 0.8, 1.2, 1.2, 1.2, 1.0]) / (6.2 / 6)
    response, credit = rollout(), ranked()
    evidence = evidence_of(response, Stream(SCORES_T, path="values"), credit)
    torch.testing.assert_close(weigh_rollout(response, evidence, credit, step=1).weights_T[:6], expected)


@pytest.mark.parametrize("measure", ["contribution", "mistake"])
def test_signed_sums_rank_the_thoughts_of_a_wrong_response(measure):
    """Sums of 0, -3 and 0.5: ranks 2, 1, 3 are weights 1.0, 0.8, 1.2, of mean (2 * 1.0 + 3 * 0.8 + 1.2) / 6."""
    scores_T = torch.tensor([1.0, -1.0, -1.0, -1.0, -1.0, 0.5, 9.0, 9.0])
    response = weighed(rollout(-0.5), scores_T, measure=measure, sign="both", target="contrast")
    expected = torch.tensor([1.0, 1.0, 0.8, 0.8, 0.8, 1.2]) / (5.6 / 6)
    torch.testing.assert_close(response.weights_T[:6], expected)
    assert (response.stream.gap, response.scores.strength_S.tolist()) == (0.1, [0, -3, 0.5, 0])


def test_each_sign_of_the_advantage_has_its_measure():
    """Sums of 0, 9 and 0.5 rank a right response 1, 3, 2; lengths of 2, 3 and 1 a wrong one 2, 3, 1."""
    how = {"measure": "contribution", "negative_measure": "length", "sign": "both"}
    for advantage, weights in ((0.5, [0.8, 0.8, 1.2, 1.2, 1.2, 1.0]), (-0.5, [1.0, 1.0, 1.2, 1.2, 1.2, 0.8])):
        expected = torch.tensor(weights)
        torch.testing.assert_close(weighed(rollout(advantage), **how).weights_T[:6], expected / expected.mean())


def test_the_permuted_control_has_the_same_weights_at_other_thoughts():
    plain = weighed(rollout()).scores.strength_S
    dealt = {
        tuple(weighed(replace(rollout(), key=f"p_{i}_0"), permuted=True).scores.strength_S.tolist()) for i in range(20)
    }
    assert all(sorted(strengths[:3]) == sorted(plain.tolist()[:3]) and strengths[3] == 0 for strengths in dealt)
    assert len(dealt) > 3
    tokens = weighed(rollout(), measure="ig_tokens", permuted=True).scores.strength_S
    assert sorted(tokens.tolist()[:6]) == sorted(SCORES_T.tolist()[:6])


def test_each_response_keeps_its_mean_advantage():
    response = weighed(rollout(0.5))
    assert response.weights_T[response.rollout.weighted_T].mean() == pytest.approx(1.0)
    assert advantages(response).mean() == pytest.approx(0.5)


def test_hard_keeps_the_selected_tokens_alone():
    # Four thoughts: 1.41, 5.20, 0.50 and 0.50 of 7.61, so the second alone has the 0.6; first and last are forced.
    four = Segments((0, 2, 5, 6, 7, 8), ("thought", "thought", "thought", "thought", "answer"))
    scores_T = torch.tensor([1.0, -1.0, 3.0, 3.0, 3.0, 0.5, 0.5, 9.0])
    response = weighed(replace(rollout(), segments=four), scores_T, rule="hard", tau=0.6)
    assert response.selection.reason_S == ("forced", "strength", "dropped", "forced", "forced")
    kept = 7 / 6  # of seven tokens of thinking, six are left
    torch.testing.assert_close(response.weights_T, torch.tensor([kept, kept, kept, kept, kept, 0, kept, 1]))


def test_tokens_of_a_tool_or_beyond_rollout_correction_weigh_one_and_do_not_count():
    trainable_T = torch.tensor([1, 1, 0, 0, 0, 1, 1, 1], dtype=torch.bool)
    response = weighed(rollout(trainable_T=trainable_T))
    # left in the thinking: two tokens of rank weight 1.0 and one of 0.8, mean 2.8 / 3
    torch.testing.assert_close(response.weights_T, torch.tensor([3 / 2.8, 3 / 2.8, 1, 1, 1, 2.4 / 2.8, 1, 1]))


def test_signed_weighs_what_supports_the_wrong_answer_alone():
    response = weighed(rollout(-0.5), sign="signed", rule="linear", measure_options={"aggregate": "sum"})
    assert response.weights_T[1] == 0  # the one token whose attribution is negative
    assert bool((response.weights_T[[0, 2, 3, 4, 5]] > 0).all())
    assert advantages(response)[:6].mean() == pytest.approx(-0.5)


def test_scores_that_say_nothing_leave_the_advantages_as_they_were():
    response = weighed(rollout(), torch.zeros(8))
    assert response.uniform
    assert torch.equal(advantages(response), response.rollout.advantages_T)
    assert not weighed(rollout()).uniform


def test_the_evidence_holds_what_the_measure_reads_and_nothing_else():
    response = rollout()
    assert evidence_of(response, None, ranked(measure="length")).ig is None
    entropy = evidence_of(response, Stream(SCORES_T.abs()), ranked(measure="entropy"))
    assert torch.equal(entropy.entropy_T, SCORES_T.abs())
    assert entropy.ig is None
    assert evidence_of(response, Stream(SCORES_T, gap=0.3), ranked()).ig.gap == 0.3
    contrast = evidence_of(response, Stream(SCORES_T, gap=0.3), ranked(measure="mistake"))
    assert (contrast.contrast.gap, contrast.ig) == (0.3, None)
    assert isinstance(entropy, Evidence)


def test_the_answer_of_a_rollout_is_read_after_its_thinking():
    tokenizer = byte_level_tokenizer()

    def answer(prompt: str, response: str, end: str = ""):
        ids = [torch.tensor(tokenizer(text)["input_ids"]) for text in (prompt, response + end)]
        trace = rollout_trace("r", *ids, torch.ones(len(ids[1])), tokenizer, {tokenizer.eos_token_id})
        assert trace.own_answer == trace.answer
        return trace.answer

    assert answer("Q", "so \\boxed{7}") == "7"
    assert answer("Q", "try \\boxed{7}</think> so \\boxed{8}") == "8"
    assert answer("Q<think>\n", "try \\boxed{7} and") is None  # cut off while thinking: a draft is no answer
    assert answer("Q<think>\n", "so \\boxed{7}.", tokenizer.eos_token) == "7"  # it ended by itself
    assert answer("Q", "so \\boxed{ }") is None  # nothing to explain


def test_the_dump_says_how_a_rollout_ended():
    tokenizer = byte_level_tokenizer()
    for end, finish in (("", "length"), (tokenizer.eos_token, "stop")):
        ids = [torch.tensor(tokenizer(text)["input_ids"]) for text in ("Q", f"so \\boxed{{7}}{end}")]
        trace = rollout_trace("r", *ids, torch.ones(len(ids[1])), tokenizer, {tokenizer.eos_token_id})
        line = record(make_rollout("p_0_0", trace, torch.ones(trace.tokens), ranked()), None, None, trace.trainable_T)
        assert line["finish"] == finish


def test_a_record_holds_what_a_report_draws():
    response = weighed(rollout())
    line = json.loads(json.dumps(record(response.rollout, None, response, advantages(response)), allow_nan=False))
    assert line["boundaries"] == [0, 2, 5, 6, 8]
    assert line["group"] == "p"
    assert (line["answer"], line["gold"]) == ("7", None)
    assert record(replace(response.rollout, gold="8"), None, None, advantages(response))["gold"] == "8"
    assert line["advantages"] == [a * w for a, w in zip([0.5] * 8, line["weights"], strict=True)]


def test_a_record_of_a_rollout_that_was_not_attributed_says_why():
    response = replace(rollout(), reward=1.0)
    line = json.loads(json.dumps(record(response, "equal_rewards", None, response.advantages_T), allow_nan=False))
    assert (line["uniform"], line["strength"], line["gap"], line["reward"]) == ("equal_rewards", [], None, 1.0)
    assert line["weights"] == [1.0] * 8

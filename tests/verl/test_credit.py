"""How one rollout's advantage is spread over its tokens, without verl, Ray or a model."""

from dataclasses import replace

import pytest
import torch
from omegaconf import OmegaConf
from tiny import byte_level_tokenizer

from segrl import Segments, Trace
from segrl.verl.credit import (
    Credit,
    Rollout,
    credit_from,
    credit_metrics,
    effective_share,
    record,
    rollout_trace,
    selected_ratio,
    weigh_rollout,
    worth_attributing,
)

# Three thoughts of 2, 3 and 1 tokens, and the answer of 2.
SEGMENTS = Segments((0, 2, 5, 6, 8), ("thought", "thought", "thought", "answer"))
SCORES_T = torch.tensor([1.0, -1.0, 3.0, 3.0, 3.0, 0.5, 9.0, 9.0])


def rollout(advantage: float = 0.5, answer: str | None = "7", trainable_T=None) -> Rollout:
    trace = Trace(
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
    return Rollout("r", trace, SEGMENTS, torch.full((8,), advantage))


def weighed(one: Rollout, **settings):
    return weigh_rollout(one, SCORES_T, gap=0.1, copy_share=0.2, credit=Credit(**settings), step=1)


def test_rank_weights_times_advantage_by_hand():
    # strength = sum|s| / sqrt(n): 2/1.41, 9/1.73, 0.5/1 -> ranks 2, 3, 1 -> 1.0, 1.2, 0.8
    # mean over the 6 thinking tokens: (2 * 1.0 + 3 * 1.2 + 1 * 0.8) / 6 = 6.4 / 6
    mean = 6.4 / 6
    expected = torch.tensor([1.0, 1.0, 1.2, 1.2, 1.2, 0.8, mean, mean]) / mean
    torch.testing.assert_close(weighed(rollout()).advantages_T, 0.5 * expected)


def test_each_response_keeps_its_mean_advantage():
    one = weighed(rollout(0.5))
    assert one.weights_T[one.weighted_T].mean() == pytest.approx(1.0)
    assert one.advantages_T.mean() == pytest.approx(0.5)


def test_hard_keeps_the_selected_tokens_alone():
    # shares: 1.41, 5.20, 0.50 of 7.11 -> 0.73 for the second alone reaches 0.7; first and last thought are forced
    one = weighed(rollout(), rule="hard", tau=0.7)
    assert one.selection.reason_S == ("forced", "strength", "forced", "forced")
    assert selected_ratio(one) == 1.0


def test_tokens_of_a_tool_or_beyond_rollout_correction_weigh_one_and_do_not_count():
    trainable_T = torch.tensor([1, 1, 0, 0, 0, 1, 1, 1], dtype=torch.bool)
    one = weighed(rollout(trainable_T=trainable_T))
    # left in the thinking: two tokens of rank weight 1.0 and one of 0.8, mean 2.8 / 3
    torch.testing.assert_close(one.weights_T, torch.tensor([3 / 2.8, 3 / 2.8, 1, 1, 1, 2.4 / 2.8, 1, 1]))


@pytest.mark.parametrize(
    ("one", "sign", "worth"),
    [
        (rollout(0.5), "positive", True),
        (rollout(-0.5), "positive", False),
        (rollout(-0.5), "both", True),
        (rollout(-0.5), "negative", True),
        (rollout(0.0), "both", False),  # a group with equal rewards
        (rollout(0.5, answer=None), "positive", False),
        (replace(rollout(0.5), segments=Segments((0, 6, 8), ("thought", "answer"))), "positive", False),
    ],
)
def test_attribution_is_spent_where_it_can_change_something(one, sign, worth):
    assert worth_attributing(one, Credit(sign=sign)) is worth


def test_scores_that_say_nothing_leave_the_advantages_as_they_were():
    one = weigh_rollout(rollout(), torch.zeros(8), 0.0, 0.0, Credit(), step=1)
    assert torch.equal(one.advantages_T, one.rollout.advantages_T)


def test_the_answer_of_a_rollout_is_read_after_its_thinking():
    tokenizer = byte_level_tokenizer()

    def answer(prompt: str, response: str):
        ids = [torch.tensor(tokenizer(text)["input_ids"]) for text in (prompt, response)]
        return rollout_trace("r", *ids, torch.ones(len(ids[1])), tokenizer).answer

    assert answer("Q", "so \\boxed{7}") == "7"
    assert answer("Q", "try \\boxed{7}</think> so \\boxed{8}") == "8"
    assert answer("Q<think>\n", "try \\boxed{7} and") is None  # cut off while thinking: a draft is no answer


def test_metrics_of_a_step():
    metrics = credit_metrics([rollout(0.5), rollout(-0.5)], [weighed(rollout(0.5))])
    assert metrics["segrl/attributed_share"] == 0.5
    assert metrics["segrl/segments_per_response"] == 3.0
    # weights 1.0 1.0 1.2 1.2 1.2 0.8: 6.4^2 / (6 * 6.96)
    assert metrics["segrl/weight_ess"] == pytest.approx(6.4**2 / (6 * 6.96))
    assert credit_metrics([rollout()], []) == {"segrl/attributed_share": 0.0, "segrl/segments_per_response": 3.0}


def test_effective_share_by_hand():
    assert effective_share(torch.tensor([1.0, 1.0])) == 1.0
    assert effective_share(torch.tensor([2.0, 0.0])) == 0.5


def test_a_record_holds_what_a_report_draws():
    one = weighed(rollout())
    line = record(one, one.advantages_T)
    assert line["boundaries"] == [0, 2, 5, 6, 8]
    assert line["advantages"] == [a * w for a, w in zip([0.5] * 8, line["weights"], strict=True)]


@pytest.mark.parametrize(
    ("section", "sentence"),
    [
        ({"rul": "rank"}, "segrl.rul is not a setting, did you mean 'rule'?"),
        ({"rule": "rnk"}, "no weighting rule is called 'rnk', did you mean 'rank'?"),
        ({"sign": "plus"}, "segrl.sign='plus', expected one of"),
        ({"nodes": 0}, "segrl.nodes=0, expected 1 or more"),
    ],
)
def test_a_wrong_setting_is_named_with_its_neighbour(section, sentence):
    with pytest.raises(ValueError, match=sentence.replace("?", r"\?")):
        credit_from(OmegaConf.create({"segrl": section}))


def test_settings_that_are_not_given_keep_their_defaults():
    assert credit_from(OmegaConf.create({"segrl": {"rule": "hard"}})) == Credit(rule="hard")
    assert credit_from(OmegaConf.create({})) == Credit()

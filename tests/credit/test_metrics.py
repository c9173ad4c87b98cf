"""What is logged of a step, by hand."""

import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

import segrl
from segrl import Segments
from segrl.credit.choosing import REASONS
from segrl.credit.metrics import (
    agreement,
    check_finite,
    credit_metrics,
    effective_share,
    keywords,
    selected_ratio,
    time_metrics,
    too_short,
)
from segrl.credit.rollout import Rollout, evidence_of, weigh_rollout
from segrl.credit.settings import CreditSettings
from segrl.types import Stream, TokenisedTrace

ranked = partial(CreditSettings, rule="rank")

SCORES_T = torch.tensor([1.0, -1.0, 3.0, 3.0, 3.0, 0.5, 9.0, 9.0])


def rollout(key: str = "a_0_0", boundaries=(0, 2, 5, 6, 8)) -> Rollout:
    ends = torch.arange(1, 9)
    trace = TokenisedTrace(
        id=key,
        problem="",
        response="abcWait,",
        answer="7",
        prompt_ids=torch.tensor([1]),
        response_ids=ends,
        offsets_T=torch.stack([ends - 1, ends], 1),
        trainable_T=torch.ones(8, dtype=torch.bool),
        prompt_hash="p",
    )
    kinds = ("thought",) * (len(boundaries) - 2) + ("answer",)
    return Rollout(key, trace, Segments(boundaries, kinds), torch.full((8,), 0.5))


def weighed(scores_T=SCORES_T, gap: float = 0.1, **settings):
    response, credit = rollout(), ranked(**{"measure": "ig", **settings})
    return weigh_rollout(response, evidence_of(response, Stream(scores_T, gap, 0.2), credit), credit, step=1)


def test_metrics_of_a_step():
    plain = rollout("a_1_0")
    metrics = credit_metrics([rollout(), plain], {"a_0_0": None, "a_1_0": "other_sign"}, [weighed()])
    assert metrics["segrl/attributed_share"] == metrics["segrl/attributed_token_share"] == 0.5
    assert metrics["segrl/segments_per_response"] == 3.0
    assert metrics["segrl/segment_length"] == 2.0  # six tokens in three thoughts
    assert metrics["segrl/uniform/other_sign"] == 1.0
    assert sum(metrics[f"segrl/uniform/{reason}"] for reason in REASONS) == 1.0
    # weights 1.0 1.0 1.2 1.2 1.2 0.8: 6.4^2 / (6 * 6.96)
    assert metrics["segrl/weight_ess"] == pytest.approx(6.4**2 / (6 * 6.96))
    assert (metrics["segrl/gap"], metrics["segrl/copy_share"]) == pytest.approx((0.1, 0.2))


def test_without_a_certificate_there_is_no_gap_and_without_attribution_no_weights():
    assert "segrl/gap" not in credit_metrics([rollout()], {"a_0_0": None}, [weighed(gap=float("nan"))])
    metrics = credit_metrics([rollout()], {"a_0_0": "no_answer"}, [])
    assert "segrl/weight_ess" not in metrics
    assert metrics["segrl/attributed_share"] == 0.0


def test_scores_that_tell_nothing_apart_are_counted():
    metrics = credit_metrics([rollout()], {"a_0_0": None}, [weighed(torch.zeros(8))])
    assert metrics["segrl/uniform/no_scores"] == 1.0


def test_agreement_is_the_mean_rank_correlation_of_the_thoughts_strengths():
    credit = ranked(measure="ig")
    response = weighed()  # strengths 1.41, 5.20, 0.5: ranks 2, 3, 1

    def other(*scores):
        return evidence_of(response.rollout, Stream(torch.tensor(scores)), credit)

    same = other(1.0, 1.0, 9.0, 9.0, 9.0, 0.1, 0.0, 0.0)
    shifted = other(0.0, 0.1, 1.0, 1.0, 1.0, 0.5, 9.0, 9.0)  # 0.07, 1.73, 0.5: ranks 1, 3, 2; 1 - 6 * 2 / (3 * 8) = 0.5
    assert agreement([response], [same], credit) == pytest.approx(1.0)
    assert agreement([response, response, response], [same, shifted, None], credit) == pytest.approx(0.75)
    assert agreement([response], [other(*[0.0] * 8)], credit) is None


def test_effective_share_by_hand():
    assert effective_share(torch.tensor([1.0, 1.0])) == 1.0
    assert effective_share(torch.tensor([2.0, 0.0])) == 0.5


def test_selected_ratio_by_hand():
    # forced: first and last thought, 2 + 1 tokens; by strength the second, 3 tokens
    assert selected_ratio(weighed()) == 1.0
    response = weighed()
    dropped = replace(
        response.selection,
        keep_S=torch.tensor([True, False, False, True]),
        reason_S=("forced", "dropped", "dropped", "forced"),
    )
    assert selected_ratio(replace(response, selection=dropped)) == pytest.approx(2 / 6)


def test_selected_ratio_of_a_token_measure():
    response = weighed(measure="abs_ig_tokens")
    assert len(response.selection) == 8
    assert 0 < selected_ratio(response) <= 1


def test_keywords_are_counted_wherever_they_stand():
    assert keywords("Wait, but Waiting. But wait. However; alternatively\n\nAnother") == 4


def test_times_of_a_step():
    metrics = time_metrics({"attribution": 1.0, "step": 10.0, "update_actor": 4.0})
    assert metrics == {"segrl/seconds": 1.0, "segrl/time_share": 0.1, "segrl/cost": 0.25}
    assert time_metrics({"step": 10.0}) == {"segrl/seconds": 0.0, "segrl/time_share": 0.0}


def test_a_loss_that_is_not_a_number_ends_the_run_with_its_name():
    check_finite({"actor/pg_loss": 0.1, "actor/grad_norm": float("inf")}, step=3)  # verl skips such an update itself
    with pytest.raises(FloatingPointError, match=r"step 3: actor/pg_loss is nan; take the last checkpoint"):
        check_finite({"actor/pg_loss": float("nan")}, step=3)


def test_mostly_short_responses_are_a_warning():
    few, many = rollout(boundaries=(0, 4, 6, 8)), rollout()
    assert too_short([few, many]) is None
    assert "2 of the first 3 responses have fewer than 3 segments" in too_short([few, few, many])


def test_every_metric_is_explained_and_none_is_taken_for_a_sum_by_verl():
    page = (Path(segrl.__file__).parents[1] / "docs" / "metrics.md").read_text()
    metrics = credit_metrics([rollout()], {"a_0_0": None}, [weighed()])
    metrics |= time_metrics({"attribution": 1.0, "step": 1.0, "update_actor": 1.0})
    metrics |= {"segrl/fidelity": 1.0, "segrl/agreement": 1.0}  # of some steps alone
    for name in metrics:
        assert f"`{name}`" in page, name
        assert not re.search("max|min|sum|total", name), name  # verl would not average it over updates

"""The segrl section of verl's config."""

import re
from functools import partial

import pytest
from omegaconf import OmegaConf

from segrl.credit.settings import CreditSettings, credit_from

ranked = partial(CreditSettings, rule="rank")


@pytest.mark.parametrize(
    ("section", "sentence"),
    [
        ({"rul": "rank"}, "segrl.rul is not a setting, did you mean 'rule'?"),
        (
            {"budget": 0.25},
            "segrl.budget is no longer a setting: set segrl.nodes, the points on each path, and segrl.share",
        ),
        ({"rule": "rnk"}, "no weighting rule is called 'rnk', did you mean 'rank'?"),
        ({"segmenter": "keyword"}, "no segmenter is called 'keyword', did you mean 'keywords'?"),
        ({"sign": "plus"}, "segrl.sign='plus', expected one of"),
        ({"path": "value"}, "segrl.path='value', did you mean 'values'?"),
        ({"output": "margin"}, "segrl.output='margin', expected one of"),
        ({"target": "contrasts"}, "segrl.target='contrasts', did you mean 'contrast'?"),
        ({"interpolate": "prompt"}, "segrl.interpolate='prompt', expected one of all, response"),
        ({"begin": 1.0}, "segrl.begin=1.0, expected a point of the path from 0 to below 1"),
        ({"begin": -0.5}, "segrl.begin=-0.5, expected a point of the path from 0 to below 1"),
        ({"nodes": 0}, "segrl.nodes=0, expected 1 or more"),
        ({"forwards": 1}, "segrl.forwards=1, expected 2 or more"),
        ({"every": 0}, "segrl.every=0, expected 1 or more"),
        ({"step_timeout": 0}, "segrl.step_timeout=0.0, expected seconds, or null"),
        ({"share": 0.0}, "segrl.share=0.0, expected a part of one"),
        ({"share": 1.5}, "segrl.share=1.5, expected a part of one"),
        ({"measure": "attention"}, "segrl.measure=attention reads attention_T, which is not gathered while training"),
        (
            {"negative_measure": "attention", "sign": "both"},
            "segrl.negative_measure=attention reads attention_T, which is not gathered while training",
        ),
        (
            {"negative_measure": "mistake"},
            "segrl.negative_measure=mistake measures responses with negative advantage, but segrl.sign=positive gives",
        ),
        ({"quadrature": "calibratd"}, "no quadrature rule is called 'calibratd', did you mean 'calibrated'?"),
        ({"attributor": "frozen"}, "a frozen attributor needs a path"),
        ({"attributor_path": "here"}, "segrl.attributor=live with attributor_path=here"),
    ],
)
def test_a_wrong_setting_is_named_with_its_neighbour(section, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        credit_from(OmegaConf.create({"segrl": section}))


def test_settings_that_are_not_given_keep_their_defaults():
    assert credit_from(OmegaConf.create({"segrl": {"rule": "hard"}})) == CreditSettings(rule="hard")
    assert credit_from(OmegaConf.create({})) == CreditSettings()
    assert credit_from(OmegaConf.create({"segrl": {"interpolate": None}})).interpolate is None


def test_without_keys_nothing_is_weighed():
    credit = CreditSettings()
    assert (credit.rule, credit.attributes, credit.follows_a_path, credit.reads_gold) == ("uniform", *[False] * 3)


@pytest.mark.parametrize(
    ("section", "given"),
    [
        ({"measure": "length"}, "segrl.measure=length"),
        ({"rule": "uniform", "permuted": True}, "segrl.permuted=True"),
        ({"rule_options": {"low": 0.0}, "sign": "both"}, "segrl.rule_options={'low': 0.0} segrl.sign=both"),
        ({"sign": "both", "negative_measure": "mistake"}, "segrl.negative_measure=mistake segrl.sign=both"),
        ({"attributor": "frozen", "attributor_path": "x"}, "segrl.attributor=frozen"),
        ({"regulation": {"entropy_weight": 0.1}}, "segrl.regulation"),
    ],
)
def test_what_says_how_to_weigh_is_refused_without_a_rule(section, given):
    sentence = f"{given} would change nothing: segrl.rule=uniform weighs no token; give segrl.rule=rank"
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}"):
        credit_from(OmegaConf.create({"segrl": section}))
    credit_from(OmegaConf.create({"segrl": section | {"rule": "rank"}}))


def test_keys_that_the_arms_of_a_comparison_share_are_no_sign_of_weighing():
    shared = {"segmenter": "paragraphs", "dump_dir": "d", "every": 2, "share": 0.5, "curriculum": {"order": "gaussian"}}
    assert credit_from(OmegaConf.create({"segrl": shared})).rule == "uniform"


def test_weights_read_a_rollout_at_one_gate_by_default():
    credit = ranked()
    assert (credit.measure, credit.path, credit.output) == ("contribution", "values", "log_odds")
    assert (credit.quadrature, credit.nodes, credit.begin, credit.interpolate) == ("midpoint", 1, 0.0, "response")


@pytest.mark.parametrize(
    ("settings", "need", "attributes"),
    [
        ({}, "ig", True),
        ({"rule": "uniform"}, "ig", False),
        ({"measure": "permuted_ig"}, "ig", True),
        ({"measure": "contribution"}, "ig", True),
        ({"measure": "mistake"}, "contrast", True),
        ({"measure": "oar"}, "gradient_T", True),
        ({"measure": "grail"}, "gradnorm_T", True),
        ({"measure": "delta"}, "coefficient_T", True),
        ({"measure": "entropy"}, "entropy_T", False),
        ({"measure": "length"}, None, False),
    ],
)
def test_a_model_runs_only_for_measures_that_read_gradients_or_its_last_layer(settings, need, attributes):
    credit = ranked(**settings)
    assert ([side.need for side in credit.sides], credit.attributes) == ([need], attributes)


def test_a_measure_of_contrasts_has_its_own_target():
    def explains(**settings):
        credit = ranked(**settings)
        return [side.explains for side in credit.sides], credit.reads_gold

    assert explains(measure="mistake") == explains(measure="mistake", target="contrast") == (["contrast"], True)
    with pytest.raises(ValueError, match=r"target=gold would change nothing, since segrl.measure=mistake does"):
        explains(measure="mistake", target="gold")
    assert explains(target="gold") == (["gold"], True)
    assert explains(measure="entropy") == (["own"], False)  # which reads nothing of an answer
    assert explains(measure="length", sign="both", negative_measure="mistake")[1]
    assert explains(sign="both") == (["own"], False)
    assert explains(sign="both", negative_measure="mistake") == (["own", "contrast"], True)
    assert explains(sign="negative", negative_measure="mistake") == (["contrast"], True)
    assert explains(sign="both", negative_measure="contribution") == (["own"], False)

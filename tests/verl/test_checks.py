"""What is refused before Ray starts, each with the way out."""

import re
import warnings
from functools import partial

import pytest
import torch
from omegaconf import OmegaConf
from testkit.composed import changed
from testkit.tiny import OPENS_THINK, byte_level_tokenizer

from segrl import toy
from segrl.commands import grpo
from segrl.credit.checks import check_reads_text, check_supported
from segrl.credit.settings import CreditSettings
from segrl.data import write_rows, write_verl_parquet
from segrl.loading import position_limit
from segrl.verl import checks

pytestmark = pytest.mark.skipif(not (toy.MODEL_PATH / "model.safetensors").exists(), reason="no model is bundled")


def grpo_config(*overrides):
    return changed("grpo", "toy_cpu", *overrides)


ranked = partial(CreditSettings, rule="rank")


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["algorithm.adv_estimator=gae"], "algorithm.adv_estimator=gae has a critic; take grpo or rloo"),
        (["critic.enable=true"], "has a critic; take grpo or rloo"),
        (
            ["actor_rollout_ref.actor.strategy=fsdp"],
            "attribution runs on fsdp2; plain GRPO works there (method=uniform), and so does a frozen attributor",
        ),
        (["actor_rollout_ref.actor.strategy=megatron"], "actor.strategy=megatron; attribution runs on fsdp2"),
        (
            ["segrl.measure=support", "actor_rollout_ref.actor.strategy=megatron"],
            "attribution runs on fsdp2; plain GRPO works there (method=uniform), and so does a frozen attributor",
        ),
        (["actor_rollout_ref.actor.strategy=veomni"], "actor.strategy=veomni; attribution runs on fsdp2"),
        (
            ["actor_rollout_ref.model.tiled_mlp.enabled=true"],
            "tiled_mlp.enabled=true; attribution gives the last layer slices that verl's tiles do not take; plain",
        ),
        (["segrl.attributor=ref"], "segrl.attributor=ref without a reference: set actor.use_kl_loss=true"),
        (["segrl.sign=signed", "segrl.measure=length"], "take segrl.measure=contribution with it"),
        (["segrl.sign=signed", "segrl.measure=mistake"], "take segrl.measure=contribution with it"),
        (
            ["actor_rollout_ref.model.use_fused_kernels=true", "segrl.measure=mistake", "segrl.output=logp"],
            "which a contrast read; set it",
        ),
        (["segrl.sign=signed", "segrl.target=gold"], "segrl.target=gold explains the gold one; take segrl.target"),
        (
            ["actor_rollout_ref.model.use_fused_kernels=true"],
            "model.use_fused_kernels=true gives log-probabilities and no logits, which segrl.output=log_odds read; set "
            "it to false, or take segrl.output=logp; plain GRPO works there (method=uniform), and so does a frozen",
        ),
        (
            ["actor_rollout_ref.model.use_fused_kernels=true", "segrl.measure=support"],
            "which segrl.measure=support read; set it to false; plain GRPO works there (method=uniform)",
        ),
        (
            ["actor_rollout_ref.model.use_fused_kernels=true", "segrl.target=contrast", "segrl.output=logp"],
            "no logits, which a contrast read; set it to false; plain GRPO works there (method=uniform), and",
        ),
        (
            ["segrl.measure=oar", "segrl.begin=0.5"],
            "segrl.begin=0.5 would change nothing, since segrl.measure=oar does",
        ),
        (
            ["segrl.measure=pmi", "segrl.nodes=4"],
            "segrl.nodes=4 would change nothing, since segrl.measure=pmi does not",
        ),
        (
            ["segrl.quadrature=trapezoid", "segrl.measure=contribution"],
            "the trapezoid rule needs both ends of the path",
        ),
        (["segrl.rule=onward", "segrl.scope=batch"], "segrl.rule=onward looks for the strongest thought of a response"),
        (
            ["segrl.measure=pmi", "segrl.target=contrast", "+segrl.regulation.confidence=true"],
            "segrl.regulation.confidence is the probability of one answer, which segrl.target=contrast does not give",
        ),
        (
            ["segrl.measure=delta", "segrl.sign=both", "trainer.v1.trainer_mode=segrl_separate_async"],
            "last synchronisation; take trainer.v1.separate_async.parameter_sync_step=1",
        ),
        (["segrl.measure=ig"], "take segrl.path=embeddings segrl.output=logp segrl.quadrature=calibrated with it"),
        (["segrl.rule=uniform", "segrl.measure=length"], "segrl.measure=length would change nothing"),
        (["segrl.path=valeus"], "segrl.path='valeus', did you mean 'values'?"),
        (
            ["actor_rollout_ref.actor.policy_loss.loss_mode=geo_mean"],
            "loss_mode=geo_mean takes each response's mean advantage, which weights of mean one leave as it was",
        ),
        (
            ["segrl.nodes=50", "segrl.quadrature=calibrated"],
            "segrl.nodes=50 are to be chosen among segrl.calibration_nodes=48",
        ),
        (["segrl.measure=entropy", "algorithm.rollout_correction.bypass_mode=true"], "bypass_mode leaves out"),
        (
            ["segrl.measure=delta"],
            "segrl.measure=delta tells responses of positive from those of negative advantage, but with segrl.sign="
            "positive and one side alone it does not read both; take segrl.sign=both",
        ),
        (
            ["segrl.measure=contribution", "segrl.negative_measure=delta", "segrl.sign=both"],
            "segrl.negative_measure=delta tells responses of positive from those of negative advantage, but",
        ),
        (
            ["segrl.measure=delta", "segrl.sign=both", "algorithm.rollout_correction.bypass_mode=true"],
            "segrl.measure=delta reads what verl computes with the old log-probs",
        ),
        (
            ["segrl.measure=delta", "segrl.sign=both", "segrl.attributor=frozen", "segrl.attributor_path=x"],
            "segrl.measure=delta reads the actor's own last layer beside its log-probs, not segrl.attributor=frozen",
        ),
        (
            [
                *("segrl.measure=delta", "segrl.sign=both", "segrl.attributor=ref"),
                "actor_rollout_ref.actor.use_kl_loss=true",
            ],
            "not segrl.attributor=ref; take segrl.attributor=live",
        ),
        (["segrl.measure=delta", "segrl.sign=both", "algorithm.adv_estimator=gae"], "has a critic; take grpo or rloo"),
        (
            ["segrl.measure=delta", "segrl.sign=both", "actor_rollout_ref.actor.strategy=megatron"],
            "cannot run this: actor.strategy=megatron; attribution runs on fsdp2",
        ),
        (["segrl.measure=delta", "segrl.sign=both", "+segrl.measure_options.lo=1"], "with the options {'lo': 1}"),
        (["+segrl.rule_options.lo=1"], "the weighting rule 'rank' with the options {'lo': 1}: got an unexpected"),
        (["+segrl.segmentation.min_token=3"], "segmenter='auto' with the options {'min_token': 3}: got an unexpected"),
        (["segrl.measure=strength", "+segrl.measure_options.aggregate=men"], "aggregate='men', expected one of"),
    ],
)
def test_what_cannot_be_done_is_refused(overrides, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        check_supported(grpo_config("segrl.rule=rank", *overrides))


@pytest.mark.parametrize(
    "overrides",
    [
        ["actor_rollout_ref.actor.strategy=megatron", "segrl.attributor=frozen", "segrl.attributor_path=x"],
        ["actor_rollout_ref.model.use_fused_kernels=true", "segrl.output=logp"],
        ["actor_rollout_ref.model.use_fused_kernels=true", "segrl.output=logp", "segrl.path=embeddings"],
        ["actor_rollout_ref.model.use_fused_kernels=true", "segrl.measure=length"],
        [
            "actor_rollout_ref.model.use_fused_kernels=true",
            "segrl.attributor=frozen",
            "segrl.attributor_path=x",
        ],
        ["segrl.target=contrast", "segrl.begin=0.5", "segrl.sign=both"],
        ["segrl.measure=ig", "segrl.path=embeddings", "segrl.output=logp", "segrl.quadrature=calibrated"],
        ["segrl.measure=strength"],
        ["segrl.sign=signed", "segrl.target=contrast"],
        ["segrl.measure=mistake", "segrl.sign=both", "segrl.path=embeddings"],
        ["segrl.measure=oar", "segrl.target=contrast"],
        ["actor_rollout_ref.actor.ulysses_sequence_parallel_size=2"],
        ["segrl.attributor=ref", "actor_rollout_ref.actor.use_kl_loss=true"],
        ["segrl.attributor=ref", "actor_rollout_ref.model.lora_rank=8"],
        ["algorithm.adv_estimator=rloo"],
        ["segrl.sign=signed"],
        ["segrl.nodes=50"],
        ["segrl.nodes=50", "segrl.quadrature=calibrated", "segrl.attributor=frozen", "segrl.attributor_path=x"],
        ["segrl.rule=uniform", "actor_rollout_ref.actor.policy_loss.loss_mode=geo_mean"],
        ["segrl.rule=uniform", "actor_rollout_ref.actor.strategy=megatron"],
        ["segrl.measure=oracle", "+segrl.measure_options.inverted=true"],
        ["segrl.measure=delta", "segrl.sign=both", "segrl.rule=linear", "segrl.scope=batch"],
        ["segrl.measure=delta", "segrl.negative_measure=delta", "segrl.sign=both"],
        ["segrl.measure=delta", "segrl.sign=both", "actor_rollout_ref.model.use_fused_kernels=true"],
        ["segrl.measure=delta", "segrl.sign=both", "actor_rollout_ref.model.tiled_mlp.enabled=true"],
        ["segrl.rule=top", "segrl.measure=entropy", "+segrl.measure_options.aggregate=token"],
    ],
)
def test_what_can_be_done_is_let_through(overrides):
    check_supported(grpo_config("segrl.rule=rank", *overrides))


def test_keys_of_an_answer_are_refused_where_none_is_read():
    for given in ("segrl.target=contrast", "segrl.path=embeddings", "segrl.nodes=4"):
        with pytest.raises(ValueError, match=f"{given} would change nothing, since segrl.measure=support does not"):
            check_supported(grpo_config(given))
    check_supported(grpo_config("segrl.negative_measure=mistake", "segrl.sign=both", "segrl.nodes=4"))


@pytest.mark.parametrize("loss", ["clip_cov", "kl_cov"])
def test_a_loss_that_picks_tokens_by_advantage_is_a_warning(loss):
    with pytest.warns(UserWarning, match="picks tokens by their advantage"):
        check_supported(grpo_config("segrl.rule=rank", f"actor_rollout_ref.actor.policy_loss.loss_mode={loss}"))


@pytest.mark.parametrize("cut", ["top_p=0.95", "top_k=20"])
def test_rollouts_from_a_part_of_the_distribution_are_a_warning(cut):
    with pytest.warns(UserWarning, match=rf"rollout.{cut}: rollouts come from a part of the distribution"):
        check_supported(grpo_config(f"actor_rollout_ref.rollout.{cut}"))


def test_the_loss_of_gmpo_is_the_same_with_any_weights_of_mean_one():
    """(0.5 + 1.5) / 2 = 1, and the mean is all that verl's function reads."""
    pytest.importorskip("verl")
    from types import SimpleNamespace

    from verl.trainer.ppo.core_algos import compute_policy_loss_geo_mean

    logp_T, weights_T, ones_T = torch.tensor([[-1.0, -0.1]]), torch.tensor([[0.5, 1.5]]), torch.ones(1, 2)
    config = SimpleNamespace(clip_ratio=0.2, clip_ratio_low=None, clip_ratio_high=None)
    gradients = []
    for advantages_T in (ones_T, weights_T):
        logp_T = logp_T.detach().requires_grad_()
        loss, _ = compute_policy_loss_geo_mean(logp_T.detach(), logp_T, advantages_T, ones_T, config=config)
        gradients.append(torch.autograd.grad(loss, logp_T)[0])
    assert torch.equal(*gradients)


def test_a_frozen_attributor_of_another_vocabulary_is_refused_before_it_is_loaded(monkeypatch):
    from testkit.tiny import byte_level_tokenizer

    read = []
    found = {"there": byte_level_tokenizer(vocab=400), "alike": byte_level_tokenizer()}
    monkeypatch.setattr(checks, "load_tokenizer", lambda path: read.append(path) or found.get(path, found["alike"]))
    config = grpo_config()
    checks.check_vocabularies(config, CreditSettings())
    assert read == []
    checks.check_vocabularies(config, ranked(attributor="frozen", attributor_path="alike"))
    with pytest.raises(ValueError, match="the attributor there has another vocabulary than the policy"):
        checks.check_vocabularies(config, ranked(attributor="frozen", attributor_path="there"))
    assert read == [str(toy.MODEL_PATH), "alike", str(toy.MODEL_PATH), "there"]


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["actor_rollout_ref.actor.ppo_mini_batch_size=12"], "train_batch_size=16 prompts do not divide into"),
        (
            ["trainer.n_gpus_per_node=3"],
            "a mini-batch of 16 prompts x 4 rollouts = 64 does not divide over 3 data-parallel ranks",
        ),
        (["actor_rollout_ref.rollout.n=1"], "rollout.n=1: grpo compares the rollouts of a prompt"),
        (["data.max_response_length=600"], "rollout.max_model_len=640, but max_prompt_length=192"),
        (
            ["actor_rollout_ref.actor.ppo_max_token_len_per_gpu=512"],
            "a micro-batch holds 512 tokens, but max_prompt_length=192 and max_response_length=384 come to 576",
        ),
        (
            ["data.max_response_length=900", "actor_rollout_ref.rollout.max_model_len=2000"],
            "come to 1092 tokens, the model",
        ),
        (
            ["actor_rollout_ref.actor.ulysses_sequence_parallel_size=2"],
            "ulysses_sequence_parallel_size=2 does not divide the 1 processes; give a divisor, or 1",
        ),
    ],
)
def test_sizes_that_do_not_fit_are_refused(overrides, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        checks.check_sizes(grpo_config(*overrides))


def test_sizes_that_fit_pass_and_a_tight_one_is_a_warning():
    checks.check_sizes(grpo_config())
    split = ["trainer.n_gpus_per_node=128", "actor_rollout_ref.actor.ulysses_sequence_parallel_size=2"]
    checks.check_sizes(grpo_config(*split))  # 64 rollouts over 64 data-parallel ranks
    tight = ["data.max_response_length=830", "actor_rollout_ref.rollout.max_model_len=1024"]
    with pytest.warns(UserWarning, match="leaves no room for the answer"):
        checks.check_sizes(grpo_config("segrl.rule=rank", *tight))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        checks.check_sizes(grpo_config(*tight))  # support appends no answer


def test_the_models_config_is_the_one_that_verls_workers_read(tmp_path):
    """Not the tokenizer's folder, and with what is overridden, as verl's own class has it."""
    pytest.importorskip("verl")
    from testkit.tiny import byte_level_tokenizer
    from verl.utils.config import omega_conf_to_dataclass

    byte_level_tokenizer().save_pretrained(tmp_path)
    model = grpo_config().actor_rollout_ref.model
    assert position_limit(checks.model_config(model)) == 1024
    model.tokenizer_path = str(tmp_path)
    OmegaConf.update(model, "override_config.max_position_embeddings", 300, force_add=True)
    OmegaConf.update(model, "override_config.attn_implementation", "sdpa", force_add=True)
    verls = omega_conf_to_dataclass(model)
    assert position_limit(checks.model_config(model)) == position_limit(verls.hf_config) == 300


def test_a_model_that_sees_images_is_refused_where_it_would_be_attributed():
    from transformers import LlavaConfig

    with pytest.raises(ValueError, match="a LlavaConfig with a vision_config, but attribution feeds token ids alone"):
        check_reads_text(LlavaConfig(), ranked())
    check_reads_text(LlavaConfig(), ranked(measure="length"))
    check_reads_text(LlavaConfig(), CreditSettings())
    check_reads_text(LlavaConfig().text_config, ranked())


def test_a_model_without_value_vectors_to_gate_is_refused_by_its_layer():
    from transformers import FalconConfig, Qwen2Config

    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 8}
    gated = ranked(path="values")
    with pytest.raises(ValueError, match="layer 0, a FalconDecoderLayer, has none that segrl knows"):
        checks.check_gates(FalconConfig(**small), gated)
    for others in ({"path": "embeddings"}, {"path": "values", "measure": "length"}, {"measure": "oar"}):
        checks.check_gates(FalconConfig(**small), ranked(**others))
    checks.check_gates(FalconConfig(**small), ranked(attributor="frozen", attributor_path="x"))
    checks.check_gates(FalconConfig(**small), CreditSettings())
    checks.check_gates(Qwen2Config(num_key_value_heads=1, **small), gated)


def test_fewer_rows_than_a_batch_are_refused(tmp_path):
    config = grpo_config()
    config.data.train_files = str(tmp_path / "rows.parquet")
    write_verl_parquet(toy.sample_problems(15, seed=1), config.data.train_files, "toy", "train")
    with pytest.raises(ValueError, match=r"has 15 rows, data\.train_batch_size=16"):
        checks.check_rows(config)


# --- the reward ------------------------------------------------------------------------------------------------------

REWARDS = """
def right(data_source, solution_str, ground_truth, extra_info=None, **kwargs): return {"score": 1.0}
def number(data_source, solution_str, ground_truth, extra_info=None): return 0.5
async def later(data_source, solution_str, ground_truth, extra_info=None): return 1.0
def narrow(solution_str, ground_truth): return 1.0
def raises(data_source, solution_str, ground_truth, extra_info=None): raise KeyError("level")
def nothing(data_source, solution_str, ground_truth, extra_info=None): return None
def nan(data_source, solution_str, ground_truth, extra_info=None): return float("nan")
"""


@pytest.fixture
def own_reward(tmp_path):
    (tmp_path / "mine.py").write_text(REWARDS)
    config = grpo_config()
    config.data.train_files = str(tmp_path / "rows.parquet")
    write_rows(config.data.train_files, [{"data_source": "toy", "reward_model": {"ground_truth": "7"}}])

    def own_reward(name, **kwargs):
        reward = config.reward.custom_reward_function
        assert reward.reward_kwargs == grpo.SEGRL_REWARD_KEYS
        reward.path, reward.name = str(tmp_path / "mine.py"), name
        reward.reward_kwargs.update(kwargs)
        grpo.complete(config)
        return config

    return own_reward


@pytest.mark.parametrize("name", ["right", "number", "later"])
def test_a_reward_of_ones_own_is_called_once(own_reward, name):
    pytest.importorskip("verl")
    checks.check_reward(own_reward(name))


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("narrow", "cannot be called as verl does, with data_source, solution_str, ground_truth, extra_info"),
        ("raises", "raised KeyError: 'level', for the first row's gold answer in a box"),
        ("nothing", "gave {'score': None}; expected a number"),
        ("nan", "gave {'score': nan}; expected a number"),
        ("absent", "cannot be loaded"),
    ],
)
def test_a_reward_that_cannot_work_is_refused(own_reward, name, sentence):
    pytest.importorskip("verl")
    with pytest.raises(ValueError, match=re.escape(sentence)):
        checks.check_reward(own_reward(name))


def test_a_reward_of_ones_own_gets_the_keys_that_were_changed_alone(own_reward):
    pytest.importorskip("verl")
    config = own_reward("number", thinking="required")
    assert config.reward.custom_reward_function.reward_kwargs == {"thinking": "required"}
    with pytest.raises(ValueError, match="unexpected keyword argument 'thinking'"):
        checks.check_reward(config)


def test_a_gold_answer_that_cannot_be_right_is_found_before_training(tmp_path):
    pytest.importorskip("verl")
    config = grpo_config()
    config.data.train_files = str(tmp_path / "rows.parquet")
    for gold in ("7", 0):
        write_rows(config.data.train_files, [{"reward_model": {"ground_truth": gold}}])
        checks.check_reward(config)
    for row, says in (
        ({"reward_model": {"ground_truth": "}"}}, "the gold answer '}' of the first row is not right by itself"),
        ({"reward_model": {"ground_truth": " "}}, "the first row has no reward_model.ground_truth"),
        ({"reward_model": {"style": "rule"}}, "the first row has no reward_model.ground_truth"),
    ):
        write_rows(config.data.train_files, [row])
        with pytest.raises(ValueError, match=says):
            checks.check_reward(config)


def test_a_weight_that_the_reward_does_not_have_is_found_before_training(tmp_path):
    pytest.importorskip("verl")
    config = grpo_config("+reward.custom_reward_function.reward_kwargs.lenght_weight=1")
    config.data.train_files = str(tmp_path / "rows.parquet")
    write_rows(config.data.train_files, [{"reward_model": {"ground_truth": "7"}}])
    with pytest.raises(ValueError, match=r"no reward_kwargs\.lenght_weight, did you mean 'length_weight'"):
        checks.check_reward(config)


def test_a_reward_without_think_end_is_graded_as_the_rollouts_will_be(tmp_path, monkeypatch):
    """The template opens the thought, and the model need not close it."""
    pytest.importorskip("verl")
    config = grpo_config()
    config.data.train_files = str(tmp_path / "rows.parquet")
    write_verl_parquet(toy.sample_problems(1, seed=1), config.data.train_files, "toy", "train")
    monkeypatch.setattr(checks, "load_tokenizer", lambda path: byte_level_tokenizer(chat_template=OPENS_THINK))
    checks.check_reward(config)
    row = checks.read_rows(config.data.train_files)[0]
    said = checks.call_reward(config, row, f"so \\boxed{{{row['reward_model']['ground_truth']}}}.")
    assert (said["acc"], said["finish"]) == (1.0, "stop")
    config.reward.custom_reward_function.reward_kwargs.thinking = "required"
    checks.check_reward(config)  # which a model that never says </think> will not earn, as was asked for


def test_a_reward_manager_that_cannot_be_loaded_is_refused(tmp_path):
    pytest.importorskip("verl")
    config = grpo_config()
    config.data.train_files = str(tmp_path / "rows.parquet")
    write_rows(config.data.train_files, [{"reward_model": {"ground_truth": "7"}}])
    config.reward.reward_manager.name = "dapo"
    with pytest.raises(ValueError, match=r"name=dapo with source=importlib cannot be loaded.*source=register too"):
        checks.check_reward(config)
    config.reward.reward_manager.source = "register"
    checks.check_reward(config)


@pytest.mark.parametrize(("mode", "ours"), [("sync", "segrl"), ("colocate_async", "segrl_colocate_async")])
def test_a_trainer_of_verls_own_is_refused_with_weights(mode, ours):
    with pytest.raises(ValueError, match=f"trainer_mode={mode} is a trainer of verl's own.*trainer_mode={ours}, or"):
        grpo.check_mode(mode, ranked())
    grpo.check_mode(mode, CreditSettings())  # weighs nothing
    grpo.check_mode(ours, ranked())

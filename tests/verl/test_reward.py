import asyncio
import inspect
import re
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor

import pytest
from testkit.runs import bounded

from segrl.verl.reward import compute_score, compute_score_async, length_term, score

KEYS = ["score", "acc", "status", "pred", "format", "length", "finish"]
CASES = {
    "exact": ("7", "so \\boxed{7}", 1.0),
    "symbolic": ("x^2-1", "so \\boxed{(x-1)(x+1)}", 1.0),
    "no_answer": ("7", "it is 7", 0.0),
}


def test_every_verdict_has_the_same_keys_off_the_main_thread():
    """verl calls the reward in an executor and makes a column of each key."""
    with ThreadPoolExecutor(1) as executor:
        for status, (gold, response, value) in CASES.items():
            verdict = executor.submit(compute_score, "toy", response, gold, {"index": 0}, num_turns=2).result()
            assert list(verdict) == KEYS
            assert (verdict["score"], verdict["acc"], verdict["status"]) == (value, value, status)
            assert isinstance(verdict["pred"], str)
            assert asyncio.run(compute_score_async("toy", response, gold, num_turns=2)) == verdict
            assert score("toy", response, gold) == value


def test_verl_takes_the_one_for_a_coroutine_and_the_other_not():
    assert inspect.iscoroutinefunction(compute_score_async)
    assert not inspect.iscoroutinefunction(compute_score)


def test_a_draft_is_no_answer_where_thinking_is_required():
    cut_off = "I try \\boxed{7} and"
    assert compute_score("toy", cut_off, "7")["score"] == 1.0
    assert compute_score("toy", cut_off, "7", thinking="required")["status"] == "no_answer"


def test_a_term_changes_the_score_and_never_acc():
    twice = "<think> a </think> b </think> \\boxed{8}"
    plain = compute_score("toy", twice, "7")
    assert (plain["score"], plain["acc"], plain["format"]) == (0.0, 0.0, 0.0)
    once = "<think> a </think> \\boxed{8}"
    shaped = compute_score("toy", once, "7", format_weight=0.25)
    assert (shaped["score"], shaped["acc"], shaped["format"]) == (0.25, 0.0, 1.0)
    # 10 + 9 characters, half of the way from 9 to 29, so half of the penalty: 1 - 0.5 * 0.5.
    long = compute_score("toy", "x" * 10 + "\\boxed{7}", "7", length_weight=0.5, length_from=9, length_to=29)
    assert (long["score"], long["acc"], long["length"]) == (0.75, 1.0, -0.5)


@pytest.mark.parametrize(("characters", "term"), [(0, 0), (100, 0), (125, -0.25), (200, -1), (10_000, -1)])
def test_the_length_term_falls_evenly_to_minus_one(characters, term):
    assert length_term(characters, 100, 200) == term


def test_a_length_term_without_its_bounds_is_a_sentence():
    with pytest.raises(ValueError, match=r"length_weight=1\.0 with length_from=0 and length_to=0"):
        compute_score("toy", "\\boxed{7}", "7", length_weight=1.0)


@pytest.mark.e2e
@pytest.mark.parametrize("name", ["compute_score", "compute_score_async"])
def test_verls_reward_loop_runs_it(name):
    """verl's own worker: it finds the function, decodes the rollout, and collects each key."""
    pytest.importorskip("verl")
    import numpy as np
    import torch
    from omegaconf import OmegaConf
    from verl import DataProto
    from verl.experimental.reward_loop.reward_loop import RewardLoopWorker

    from segrl import toy

    folder, (_, tokenizer) = str(toy.MODEL_PATH), toy.load_model()
    function = {"path": "pkg://segrl.verl.reward", "name": name, "reward_kwargs": {"thinking": "auto"}}
    module = {"path": "pkg://segrl.verl.reward_manager"}
    manager = {"source": "importlib", "name": "EndingRewardManager", "module": module}
    reward = {"custom_reward_function": function, "reward_manager": manager, "reward_model": {"enable": False}}
    model = {"path": folder, "tokenizer_path": None}
    worker_config = OmegaConf.create({"actor_rollout_ref": {"model": model}, "reward": reward})
    end = tokenizer.eos_token
    texts = ["1 + 2 = 3</think> \\boxed{3}" + end, "1 + 2 = 3</think> \\boxed{4}", "\\boxed{3}" + end, "\\boxed{3}"]
    prompt = tokenizer("1 + 2 = ?<think>\n", add_special_tokens=False).input_ids
    rows = [tokenizer(text, add_special_tokens=False).input_ids for text in texts]
    width = max(map(len, rows))
    mask = [[0] + [1] * len(prompt + row) + [0] * (width - len(row)) for row in rows]
    data = DataProto.from_dict(
        tensors={
            "prompts": torch.tensor([[tokenizer.eos_token_id, *prompt]] * 4),  # padded on the left
            "responses": torch.tensor([row + [tokenizer.eos_token_id] * (width - len(row)) for row in rows]),
            "attention_mask": torch.tensor(mask),
        },
        non_tensors={
            "data_source": np.array(["toy"] * 4, dtype=object),
            "reward_model": np.array([{"ground_truth": "3"}] * 4, dtype=object),
            "extra_info": np.array([{} for _ in range(4)], dtype=object),
        },
    )

    async def run():
        return await RewardLoopWorker(worker_config).compute_score_batch(data)

    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)  # verl's worker asks for the current one
    try:
        found = loop.run_until_complete(run())
    finally:
        asyncio.set_event_loop(None)
        loop.close()
    # The third ended without </think>, the fourth was cut off in the thought that its prompt opened.
    assert [one["reward_score"] for one in found] == [1.0, 0.0, 1.0, 0.0]
    assert [one["reward_extra_info"]["finish"] for one in found] == ["stop", "length", "stop", "length"]
    assert [one["reward_extra_info"]["status"] for one in found][3] == "no_answer"
    assert [one["reward_extra_info"]["pred"] for one in found] == ["3", "4", "3", ""]
    assert all(list(one["reward_extra_info"]) == KEYS for one in found)


@pytest.mark.e2e
def test_verls_offline_evaluation_runs_it(tmp_path, plain_environment):
    pytest.importorskip("verl")
    import pyarrow as pa
    import pyarrow.parquet as pq

    answers = [
        ("a", ["\\boxed{7}", "\\boxed{8}"], "7"),
        ("a", ["\\boxed{x(x+1)}", "x"], "x^2+x"),
        ("b", ["\\boxed{9^{9^{9^9}}}", "\\boxed{1.0}"], "1"),
    ]
    rows = [{"data_source": a, "responses": b, "reward_model": {"ground_truth": c}} for a, b, c in answers]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "answers.parquet")
    function = "+reward.custom_reward_function"
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as ray_folder:
        command = [
            *(sys.executable, "-m", "verl.trainer.main_eval", f"data.path={tmp_path}/answers.parquet"),
            *(f"{function}.path=pkg://segrl.verl.reward", f"{function}.name=score", f"hydra.run.dir={tmp_path}"),
            *("ray_kwargs.ray_init.num_cpus=1", f"+ray_kwargs.ray_init._temp_dir={ray_folder}"),
            "+ray_kwargs.ray_init.include_dashboard=false",
        ]
        log = bounded(command, plain_environment, 200, tmp_path / "log")
    # Each source has half of its responses right.
    assert sorted(re.findall(r"'test_score/(\w)': (?:np.float64\()?([\d.]+)", log)) == [("a", "0.5"), ("b", "0.5")]

import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("verl")

from testkit.runs import bounded
from testkit.tiny import byte_level_tokenizer, tiny_model

import segrl
from segrl.launch import CPU_ENVIRONMENT


@pytest.mark.e2e
@pytest.mark.parametrize("architecture", ["qwen2", "qwen2_tied"])
def test_scores_on_the_actor_verl_has_sharded_are_the_plain_models(architecture, plain_environment, tmp_path):
    """verl shards the embedding by itself unless it is tied; what is compared stands in sharded.py."""
    folders = [Path(segrl.__file__).parents[1], Path(__file__).parents[1] / "support"]
    environment = plain_environment | CPU_ENVIRONMENT | {"ARCHITECTURE": architecture}
    environment |= {"VERL_USE_EXTERNAL_MODULES": "segrl.verl", "PYTHONPATH": ":".join(map(str, folders))}
    here = ["--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "--local-addr=127.0.0.1"]
    torchrun = ["torch.distributed.run", "--nproc-per-node=2", *here]
    command = [sys.executable, "-m", *torchrun, str(Path(__file__).with_name("sharded.py"))]
    assert bounded(command, environment, 240, tmp_path / "log").count("equal") == 2


def test_the_worker_compares_rollouts_by_their_columns():
    """One of three rows only fills up; in the first, the first tokens are a tool's. As compared without verl."""
    from verl.utils import tensordict_utils as tu

    from segrl.credit.rollout import rollout_trace
    from segrl.importance.lockstep import Request, compare_in_lockstep
    from segrl.verl.worker import SCORES, AttributingWorker

    tokenizer, model = byte_level_tokenizer(), tiny_model()
    texts = ["3 + 4 = 7.\n\nWait, so 7.", "3 + 4 = 8.\n\nHowever, 8 it is. </think> 8", "7"]
    prompts = [torch.tensor(tokenizer("Q")["input_ids"])] * 3
    responses = [torch.tensor(tokenizer(text)["input_ids"]) for text in texts]
    masks = [torch.ones(len(ids)) for ids in responses]
    masks[0][:4] = 0
    logps = [-torch.rand(len(ids), generator=torch.Generator().manual_seed(0)) for ids in responses]
    rows = {"prompts": prompts, "responses": responses, "response_mask": masks, "old_log_probs": logps}
    rows["segrl_advantage"] = [torch.tensor([value]) for value in (0.5, -0.5, 0.0)]
    columns = {name: torch.nested.as_nested_tensor(row, layout=torch.jagged) for name, row in rows.items()}
    request = Request(need="coefficient_T")
    data = tu.get_tensordict({**columns, "reward_model": [{"ground_truth": "7"}] * 3}, {"segrl": request})

    worker = AttributingWorker()
    config = SimpleNamespace(tokenizer=tokenizer, generation_config=None)
    engine = SimpleNamespace(eval_mode=nullcontext, module=model)
    worker.actor = SimpleNamespace(model_config=config, engine=engine)
    found = worker.compute_segrl_scores(data)
    assert set(SCORES) <= set(found.keys())

    ends = {tokenizer.eos_token_id}
    traces = [rollout_trace("r", *row, tokenizer, ends) for row in zip(prompts, responses, masks, strict=True)]
    expected = compare_in_lockstep(model, traces, logps, [0.5, -0.5, 0.0], request)
    for scores_T, stream in zip(found["segrl_scores"].unbind(), expected, strict=True):
        assert torch.equal(scores_T, stream.scores_T)
    first, second, filler = (stream.scores_T for stream in expected)
    assert first[:4].tolist() == [0.5] * 4
    assert len(first[4:].unique()) > 3
    assert len(second.unique()) > 3
    assert set(filler.tolist()) == {0.5}


def test_attribution_leaves_the_ulysses_group_and_comes_back():
    from verl.utils import ulysses

    from segrl.verl.worker import unsplit

    group = object()
    ulysses.set_ulysses_sequence_parallel_group(group)
    try:
        with unsplit():
            assert ulysses.get_ulysses_sequence_parallel_world_size() == 1
        assert ulysses.get_ulysses_sequence_parallel_group() is group
    finally:
        ulysses.set_ulysses_sequence_parallel_group(None)

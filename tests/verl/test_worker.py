import sys
from pathlib import Path

import pytest

pytest.importorskip("verl")

from testkit.runs import bounded

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

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.e2e
@pytest.mark.parametrize(("ranks", "architecture"), [(1, "qwen2"), (2, "qwen2"), (2, "qwen2_tied")])
def test_sharded_attribution_is_the_plain_one(ranks, architecture):
    """FSDP2 over gloo; what is compared stands in ranks.py."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={ranks}"]
    local = ["--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "--local-addr=127.0.0.1"]
    environment = {**os.environ, "ARCHITECTURE": architecture, "GLOO_SOCKET_IFNAME": "lo"}
    command = [*torchrun, *local, str(Path(__file__).with_name("ranks.py"))]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.count("equal") == ranks

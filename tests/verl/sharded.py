"""Run by torchrun from test_worker.py: attribution on a model that verl itself has sharded is the plain model's."""

import os

import torch.distributed as dist
from tiny import byte_level_tokenizer, tiny_model
from torch.distributed.device_mesh import init_device_mesh
from verl.utils.distributed import initialize_global_process_group
from verl.utils.fsdp_utils import apply_fsdp2

import segrl
from segrl import Trace

rank, _, world = initialize_global_process_group()
tokenizer = byte_level_tokenizer()
plain, sharded = tiny_model(os.environ["ARCHITECTURE"]), tiny_model(os.environ["ARCHITECTURE"])
apply_fsdp2(sharded, {"mesh": init_device_mesh("cpu", (world,)), "reshard_after_forward": True}, {})

texts = [f"Okay, 3 + 4.\n\nWait,{' 1' * i} it is 7." for i in range(4)]
traces = [segrl.tokenize(Trace(f"t{i}", "3 + 4?", text, "7"), tokenizer) for i, text in enumerate(texts)][rank::world]
options = {"nodes": 3, "tolerance": None, "batch_rows": 2, "interpolate": "response"}
found = segrl.attribute(sharded, traces, tokenizer, **options)
for one, expected in zip(found, segrl.attribute(plain, traces, tokenizer, **options), strict=True):
    error = float((one.scores_T - expected.scores_T).abs().max() / expected.scores_T.abs().max())
    assert error < 1e-5, f"rank {rank}, {one.trace_id}: {error}"
assert all(parameter.grad is None for parameter in sharded.parameters())
print("equal", flush=True)
dist.destroy_process_group()

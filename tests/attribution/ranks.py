"""Run under torchrun: attribution on an FSDP2-sharded model is that of the plain one, and training goes on after it,
bit for bit."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
from testkit import paper
from testkit.tiny import byte_level_tokenizer, tiny_model

import segrl
from segrl import Trace
from segrl.attribution.evaluator import computing_device

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
tokenizer = byte_level_tokenizer()
texts = [f"Okay, 3 + 4.\n\nWait,{' 1' * i} it is 7." for i in range(4)]
owns = ["78", "77", "9", "77"]  # on two ranks the first parts from gold at two positions, the second never
traces = [
    segrl.tokenize(Trace(f"t{i}", "3+4?", text, "77", {"own_answer": own}), tokenizer)
    for i, (text, own) in enumerate(zip(texts, owns, strict=True))
]

plain, sharded = tiny_model(os.environ["ARCHITECTURE"]), tiny_model(os.environ["ARCHITECTURE"])
mesh = init_device_mesh("cpu", (world,))
for name, module in list(sharded.named_modules()):
    if name.endswith((".layers.0", ".layers.1")):
        fully_shard(module, mesh=mesh)
fully_shard(sharded, mesh=mesh)


def trained(model):
    """The gradients of a training step."""
    ids = traces[0].response_ids[None]
    model.zero_grad()
    model.train()(input_ids=ids, labels=ids).loss.backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    model.zero_grad()
    return [gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient for gradient in gradients]


before = trained(sharded)
options = {"nodes": 5, "tolerance": None, "batch_rows": 3, "baseline": 7}
paths = [{}, {"path": "values", "output": "log_odds"}, {"path": "values", "target": "contrast", "begin": 0.25}]
paths += [{"target": "contrast", "interpolate": "response"}]
mine = traces[rank::world]  # the ranks hold different traces of different lengths
for path in paths:
    for checkpointing in (False, True):
        expected = paper.attribute(plain, mine, tokenizer, **options, **path)
        found = paper.attribute(sharded, mine, tokenizer, checkpointing=checkpointing, **options, **path)
        for a, b in zip(found, expected, strict=True):
            error = float((a.scores_T - b.scores_T).abs().max() / b.scores_T.abs().max())
            assert error < 1e-5, f"rank {rank}, {path}, checkpointing {checkpointing}: {error}"
    for a, b in zip(trained(sharded), before, strict=True):
        assert torch.equal(a, b), f"rank {rank}, {path}: another gradient than before"
gradients = [paper.gather(model, mine, tokenizer, ("gradient",), batch_rows=3) for model in (sharded, plain)]
for a, b in zip(*gradients, strict=True):
    torch.testing.assert_close(a.gradient_T, b.gradient_T, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(a.gradnorm_T, b.gradnorm_T, rtol=1e-4, atol=1e-5)
assert all(parameter.grad is None for parameter in sharded.parameters())

for a, b in zip(trained(sharded), trained(plain), strict=True):
    torch.testing.assert_close(a, b)
weight = DTensor.from_local(torch.empty(4, 2, device="meta"), mesh)  # kept elsewhere than it is gathered
offloaded = SimpleNamespace(get_input_embeddings=lambda: SimpleNamespace(weight=weight))
assert [computing_device(model).type for model in (offloaded, sharded, plain)] == ["cpu"] * 3
print(f"rank {rank} of {world}: equal", flush=True)
dist.destroy_process_group()
os._exit(0)  # a thread of gloo that still holds a tensor when the interpreter ends would abort this process

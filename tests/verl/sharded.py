"""Run by torchrun from test_worker.py: attribution on a model that verl itself has sharded is the plain model's."""

import os
from dataclasses import replace

import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model
from testkit.tiny import byte_level_tokenizer, tiny_model
from torch.distributed.device_mesh import init_device_mesh
from verl.utils.distributed import initialize_global_process_group
from verl.utils.fsdp_utils import apply_fsdp2

import segrl
from segrl import Trace
from segrl.attribution.calibration import masses_on_grid
from segrl.attribution.quadrature import midpoint
from segrl.importance.gathering import token_streams
from segrl.importance.lockstep import Request, attribute_in_lockstep, compare_in_lockstep, parts

rank, _, world = initialize_global_process_group()
tokenizer = byte_level_tokenizer()
plain, sharded = tiny_model(os.environ["ARCHITECTURE"]), tiny_model(os.environ["ARCHITECTURE"])
apply_fsdp2(sharded, {"mesh": init_device_mesh("cpu", (world,)), "reshard_after_forward": True}, {})


# The second rank's traces are so much longer that by itself it would take more forwards than the first.
def traces_of(rank):
    texts = [f"Okay, 3 + 4.\n\nWait,{' 1' * (i + 40 * rank)} it is 7." for i in range(4)]
    owns = ["7", "8", "75", "1/2"] if rank else ["7"] * 4  # a rank of right responses has no contrast
    pairs = zip(texts, owns, strict=True)
    made = [Trace(f"t{i}", "3 + 4?", text, "7", {"own_answer": own}) for i, (text, own) in enumerate(pairs)]
    return [segrl.tokenize(trace, tokenizer) for trace in made]


traces = traces_of(rank)
request = Request(alphas=(0.3, 0.8), weights=(0.5, 0.5), tokens=200, certificate=True)
alone = len(parts(traces, request.tokens, agree=False))
agreed = len(parts(traces, request.tokens, agree=True))
counts = [None] * world
dist.all_gather_object(counts, (alone, agreed))
assert len({one for one, _ in counts}) == world, f"the ranks alone would take {counts}: nothing to agree on"
assert {one for _, one in counts} == {max(one for one, _ in counts)}, counts


def close(found, expected, what, most=1e-5):
    error = float((found - expected).abs().max() / expected.abs().max())
    assert error < most, f"rank {rank}, {what}: {error}"


def masses(model, request):
    together = parts(traces, request.tokens, request.agree)
    return masses_on_grid(model, traces, tokenizer, midpoint(3)[0].tolist(), parts=together, **request.about)


paths = [{}, {"path": "values", "output": "log_odds"}, {"path": "values", "target": "contrast", "begin": 0.25}]
for path in paths:
    asked = replace(request, **path)
    alone_request = replace(asked, agree=False)
    found = attribute_in_lockstep(sharded, traces, tokenizer, asked)
    expected = attribute_in_lockstep(plain, traces, tokenizer, alone_request)
    for i, (stream, wanted) in enumerate(zip(found, expected, strict=True)):
        close(stream.scores_T, wanted.scores_T, f"{path}, scores of {i}")
        assert abs(stream.gap - wanted.gap) < 1e-3 * max(wanted.gap, 0.1), f"{path}, {stream.gap}, {wanted.gap}"
    pairs = zip(masses(sharded, asked), masses(plain, alone_request), strict=True)
    for i, (masses_JL, wanted_JL) in enumerate(pairs):
        close(masses_JL, wanted_JL, f"{path}, masses of {i}")


def adapted():
    torch.manual_seed(0)
    model = tiny_model(os.environ["ARCHITECTURE"])
    return get_peft_model(model, LoraConfig(target_modules=["q_proj", "v_proj"], r=4, init_lora_weights=False)).eval()


bare, wrapped = adapted(), adapted()
apply_fsdp2(wrapped, {"mesh": init_device_mesh("cpu", (world,)), "reshard_after_forward": True}, {})
for need in ("gradnorm_T", "prefix_logp_S", "support_S"):
    asked = replace(request, need=need, target="own")
    boundaries = [segrl.segment(trace).boundaries for trace in traces]
    for what, whole, parted in (("plain", plain, sharded), ("LoRA", bare, wrapped)):
        logps = [token_streams(whole, trace)[0] for trace in traces] if (need, what) == ("support_S", "LoRA") else None
        found = attribute_in_lockstep(parted, traces, tokenizer, asked, boundaries, logps)
        expected = attribute_in_lockstep(whole, traces, tokenizer, replace(asked, agree=False), boundaries)
        for i, (stream, wanted) in enumerate(zip(found, expected, strict=True)):
            most = 1e-4 if need == "support_S" else 1e-5  # sums of tens of log-probabilities, less one another
            close(stream.scores_T, wanted.scores_T, f"{what}, {need} of {i}", most)

# Coefficients compare the responses of all ranks: here each rank holds one side of the advantage.
asked = replace(request, need="coefficient_T")
every = [trace for other in range(world) for trace in traces_of(other)]
logps = [token_streams(plain, trace)[0] for trace in every]
advantages = [1.0, 0.5, 0.25, 0.0, -0.25, -0.5, 0.0, -1.0]
expected = compare_in_lockstep(plain, every, logps, advantages, replace(asked, agree=False))
mine = slice(4 * rank, 4 * rank + 4)
found = compare_in_lockstep(sharded, traces, logps[mine], advantages[mine], asked)
for i, (stream, wanted) in enumerate(zip(found, expected[mine], strict=True)):
    close(stream.scores_T, wanted.scores_T, f"coefficients of {i}")
    assert (len(wanted.scores_T.unique()) > 3) == (advantages[mine][i] != 0)
assert all(parameter.grad is None for parameter in sharded.parameters())
print("equal", flush=True)
dist.destroy_process_group()

"""The plan of a run: a command's config unpacked for segrl.cost, said at the start, and refused where it cannot fit."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig

from segrl.commands.common import attributor_path, loaded_dtype, model_path, say
from segrl.commands.doctor import memory as machine_memory
from segrl.commands.training_plans import grpo_plan, sft_plan
from segrl.cost import memory
from segrl.cost.hardware import NAMES, Hardware, named, recognised
from segrl.cost.hours import attribution_flops, hours, training_flops
from segrl.cost.memory import Phase, Serving, bytes_of
from segrl.cost.plan import Plan, hours_said
from segrl.cost.shape import Shape, shape_of
from segrl.launch import fit_attention
from segrl.resolving import near

VLLM_SHARE = 0.9  # vLLM's own default of gpu_memory_utilization
PROMPT = 1024  # tokens, where no key bounds them


def announce(command: str, config: DictConfig, **known: Any) -> None:
    """Say the plan and refuse what does not fit. Without hardware to fit, or without a config.json, there is none."""
    hardware = hardware_of(config)
    if hardware is None:
        return
    try:
        details = read_config(planned_model(command, config))
        shape = shape_of(details)
    except (OSError, ValueError) as error:
        print(f"no plan: {str(error).splitlines()[0]}", flush=True)
        return
    plan = PLANS[command](config, shape, hardware, details, **known)
    if plan is not None:
        print(plan.lines(), flush=True)
        plan.check()


def say_attention(model: DictConfig, sequence_parallel: int) -> None:
    """Give verl an attention that is installed, and say so where it is not the one that it asks for."""
    if sentence := fit_attention(model, sequence_parallel):
        say(sentence)


def planned_model(command: str, config: DictConfig) -> str:
    """The path of the model that a command trains or asks."""
    if command == "grpo":
        return config.actor_rollout_ref.model.path
    if command == "sft":
        return config.model.path
    return attributor_path(config) if command in ("attribute", "select") else model_path(config)


def hardware_of(config: DictConfig) -> Hardware | None:
    """The machine's CPU where the run is to stay on it, else its GPUs, else those that ``gpu`` names."""
    import torch

    device = config.trainer.device if "trainer" in config else config.device
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return named("cpu", machine_memory())
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        return recognised(properties.name, properties.total_memory)
    return gpu_named(config.gpu) if config.gpu else None


def gpu_named(name: str | int) -> Hardware:
    if str(name) not in NAMES:  # 4090 is a number in yaml
        raise ValueError(f"gpu={name!r}{near(str(name), NAMES)}")
    return named(str(name), machine_memory())


def read_config(path: str) -> dict[str, Any]:
    """config.json of a folder, or of a hub id, of which that one small file is fetched."""
    from segrl.loading import local_folder

    local = local_folder(path)
    if local is None:
        from transformers import AutoConfig

        return AutoConfig.from_pretrained(path).to_dict()
    file = local / "config.json"
    if not file.is_file():
        raise FileNotFoundError(f"{local} holds no config.json")
    return json.loads(file.read_text(encoding="utf-8"))


def hours_of_stage(config: DictConfig, lengths: Sequence[int], steps: int) -> str:
    """How long the steps of a stage of SFT take by flops, as the end of a line; empty where that cannot be known."""
    hardware = hardware_of(config)
    try:
        shape = shape_of(read_config(config.model.path))
    except (OSError, ValueError):
        return ""
    if hardware is None or not hardware.tflops:
        return ""
    mean = sum(lengths) // len(lengths)
    tokens = steps * config.data.train_batch_size * mean
    flops = training_flops(shape, tokens, mean, config.model.enable_gradient_checkpointing)
    return f", {hours_said(hours(flops, (config.nproc or 1) * config.trainer.nnodes, hardware.tflops))} by flops"


# --- inference -------------------------------------------------------------------------------------------------------

ATTRIBUTE_REMEDIES = {
    "weights": "set dtype=bfloat16",
    "attribution": "lower attribution.batch_tokens (longer traces are checkpointed), or set dtype=bfloat16",
}
EVALUATE_REMEDIES = {
    "weights": "set dtype=bfloat16, or take backend=vllm with generation.vllm.engine={tensor_parallel_size: 2}",
    "cache": "lower generation.batch or generation.max_tokens, or take backend=vllm",
    "KV cache": "lower gpu_memory_utilization in generation.vllm.engine",
    "vLLM's weights": "raise tensor_parallel_size in generation.vllm.engine",
}


def attribute_plan(
    config: DictConfig, shape: Shape, hardware: Hardware, details: Mapping[str, Any], lengths: Sequence[int] = ()
) -> Plan:
    """What `segrl attribute` takes for traces of these lengths."""
    from segrl.attribution.evaluator import CPU_TOKENS, TOKENS, Batching
    from segrl.commands.attributing import workers_of

    options, precision = config.attribution, dtype_bytes(config.dtype, details)
    batch = options.batch_tokens or (TOKENS if hardware.is_gpu else CPU_TOKENS)
    batching = Batching(options.batch_tokens, checkpointing=options.checkpointing)

    def work(length: int) -> float:  # of a batch of such traces; a batch of several is halved where it does not fit
        return memory.attribution(shape, length, batching.checkpoints(length), precision, options.path)

    peak = max(map(work, lengths or (batch,)))
    parts = {"weights": float(precision * shape.parameters), "attribution": peak}
    workers = workers_of(config.executor, config.workers)
    spent = None
    if lengths and hardware.tflops:
        tokens, mean = sum(lengths), sum(lengths) // len(lengths)
        flops = attribution_flops(shape, tokens, mean, options.nodes, batching.checkpoints(mean))
        spent = hours(flops, workers, hardware.tflops)
    if not hardware.is_gpu:
        parts = {"processes": memory.PROCESS * workers, **{part: size * workers for part, size in parts.items()}}
    of = f"{len(lengths)} traces at {options.nodes} node{'s' * (options.nodes > 1)}"
    of += f"; steep ones take up to {options.max_nodes}" if options.tolerance is not None else ""
    phases = (Phase("attribution", parts),)
    return Plan(shape, hardware, workers, phases, ATTRIBUTE_REMEDIES, hours=spent, of=of)


SELECT_REMEDIES = {"weights": "set dtype=bfloat16", "forward": "leave the longest traces out, or set dtype=bfloat16"}
# Measure -> about how many forwards over a trace of so many thoughts. Without a thought it is read from there on;
# whole, which is twice as much, by models with a window that it outgrows or with layers that do not attend.
FORWARDS: dict[str, Callable[[int, DictConfig], int]] = {
    "alone": lambda thoughts, evidence: 2,  # one, and each thought's own with the answer
    "first_and_last": lambda thoughts, evidence: thoughts // 2 + 3,
    "leave_one_out": lambda thoughts, evidence: thoughts // 2 + 1,
    "shapley": lambda thoughts, evidence: min(evidence.forwards, 2**thoughts),
}


def select_plan(
    config: DictConfig,
    shape: Shape,
    hardware: Hardware,
    details: Mapping[str, Any],
    lengths: Sequence[int] = (),
    thoughts: Sequence[int] = (),
) -> Plan | None:
    """The plan of a measure that only reads the answer after parts of the thinking; None for another."""
    from segrl.commands.attributing import workers_of
    from segrl.importance.keeping import CPU_NODES, NODES

    if config.measure not in FORWARDS:
        return None
    precision, workers = dtype_bytes(config.dtype, details), workers_of(config.executor, config.workers)
    longest = max(lengths, default=PROMPT)
    read = min(longest, NODES if hardware.is_gpu else CPU_NODES)  # at once; the mask is of them and all before
    work = longest * shape.cached() + read * (shape.layer_activations() + longest)
    parts = {"weights": float(precision * shape.parameters), "forward": float(precision * work)}
    if not hardware.is_gpu:
        parts = {"processes": memory.PROCESS * workers, **{part: size * workers for part, size in parts.items()}}
    counts = [FORWARDS[config.measure](count, config.evidence) for count in thoughts]
    flops = sum(n * length * shape.forward_flops(length) for n, length in zip(counts, lengths, strict=True))
    spent = hours(flops, workers, hardware.tflops) if counts and hardware.tflops else None
    of = f"{len(lengths)} trace{'s' * (len(lengths) != 1)}, about {sum(counts)} forwards"
    return Plan(shape, hardware, workers, (Phase("scoring", parts),), SELECT_REMEDIES, hours=spent, of=of)


def evaluate_plan(
    config: DictConfig, shape: Shape, hardware: Hardware, details: Mapping[str, Any], samples: int = 0
) -> Plan | None:
    """The plan of sampling; None where a server answers."""
    generation = config.generation
    if config.backend not in ("transformers", "vllm"):
        return None
    length, gpus = PROMPT + generation.max_tokens, 1
    if config.backend == "vllm" and hardware.is_gpu:
        engine = generation.vllm.engine
        gpus, share = engine.get("tensor_parallel_size", 1), engine.get("gpu_memory_utilization", VLLM_SHARE)
        serving = Serving(gpus, share, length, dtype_bytes(generation.vllm.dtype, details))
        phase = memory.generation(shape, serving, hardware.memory)
        memory.check_cache(shape, serving, phase, "gpu_memory_utilization in generation.vllm.engine")
    else:
        dtype = generation[config.backend].dtype
        precision = dtype_bytes(dtype if config.backend == "vllm" else loaded_dtype(dtype), details)
        rows = min(samples or generation.batch, generation.batch)
        cache = rows * length * shape.cached() * precision if config.backend == "transformers" else memory.CPU_CACHE
        parts = {"weights": float(precision * shape.parameters), "cache": cache}
        phase = Phase("generation", parts if hardware.is_gpu else {"processes": memory.PROCESS, **parts})
    spent = None
    if samples and hardware.tflops:
        flops = samples * generation.max_tokens * shape.forward_flops(length)
        spent = hours(flops, gpus, hardware.tflops)
    of = f"if all {samples} responses take {generation.max_tokens} tokens"
    return Plan(shape, hardware, gpus, (phase,), EVALUATE_REMEDIES, hours=spent, of=of)


def dtype_bytes(dtype: str, details: Mapping[str, Any]) -> int:
    """Bytes of a number of ``dtype``; of ``auto`` the dtype is the one in config.json."""
    if dtype == "auto":
        dtype = str(details.get("dtype") or details.get("torch_dtype") or "bfloat16")
    return bytes_of(dtype)


PLANS: dict[str, Callable[..., Plan | None]] = {
    "sft": sft_plan,
    "grpo": grpo_plan,
    "attribute": attribute_plan,
    "select": select_plan,
    "evaluate": evaluate_plan,
}

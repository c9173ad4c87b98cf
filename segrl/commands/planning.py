"""The plan of a run: a command's config unpacked for segrl.cost, said at the start, and refused where it cannot fit."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig

from segrl.commands.common import attributor_path, model_path, say
from segrl.commands.doctor import memory as machine_memory
from segrl.cost import memory
from segrl.cost.disk import checkpoint_bytes
from segrl.cost.hardware import NAMES, Hardware, named, recognised
from segrl.cost.hours import attribution_flops, hours
from segrl.cost.memory import Phase, Serving, Training
from segrl.cost.plan import Plan
from segrl.cost.shape import Shape, shape_of
from segrl.resolving import near

PRECISION = {"fp32": 4, "float32": 4}  # bytes; of any other dtype 2
VLLM_SHARE = 0.9  # vLLM's own default of gpu_memory_utilization
PROMPT = 1024  # tokens, where no key bounds them


def announce(command: str, config: DictConfig, **known: Any) -> None:
    """Say the plan and refuse what does not fit. Without hardware to fit, or without a config.json, there is none."""
    hardware = hardware_of(config)
    path = attributor_path(config) if command == "attribute" else model_path(config)
    if hardware is None:
        return
    try:
        details = read_config(path)
        shape = shape_of(details)
    except (OSError, ValueError) as error:
        say(f"no plan: the config of {path} says no shape ({str(error).splitlines()[0]})")
        return
    plan = PLANS[command](config, shape, hardware, details, **known)
    if plan is not None:
        say(plan.lines())
        plan.check()


def hardware_of(config: DictConfig) -> Hardware | None:
    """The machine's CPU where the run is to stay on it, else its GPUs, else those that ``gpu`` names."""
    import torch

    device = config.trainer.device if "trainer" in config else config.device
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return named("cpu", machine_memory())
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        return recognised(properties.name, properties.total_memory)
    return gpu_named(config.gpu) if config.get("gpu") else None


def gpu_named(name: str) -> Hardware:
    if name not in NAMES:
        raise ValueError(f"gpu={name!r}{near(name, NAMES)}")
    return named(name, machine_memory())


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


# --- training --------------------------------------------------------------------------------------------------------

SFT_REMEDIES = {
    **dict.fromkeys(
        ("weights", "gradients", "optimiser", "Adam's work"),
        "raise nproc, the GPUs that share them, or train an adapter with model.lora_rank=32",
    ),
    **dict.fromkeys(
        ("activations", "logits"), "lower data.max_token_len_per_gpu, and data.max_length, which may not be longer"
    ),
}
GRPO_REMEDIES = {
    **dict.fromkeys(
        ("weights", "gradients", "optimiser", "Adam's work"),
        "raise trainer.n_gpus_per_node, the GPUs that share them, or train an adapter with "
        "actor_rollout_ref.model.lora_rank=32",
    ),
    **dict.fromkeys(("activations", "logits"), "lower actor_rollout_ref.actor.ppo_max_token_len_per_gpu"),
    "attribution": "lower segrl.tokens_per_forward",
    "vLLM's weights": "raise actor_rollout_ref.rollout.tensor_model_parallel_size",
    "KV cache": "lower actor_rollout_ref.rollout.gpu_memory_utilization",
    "policy": "set actor_rollout_ref.actor.fsdp_config.param_offload=true and optimizer_offload=true",
}


def sft_plan(config: DictConfig, shape: Shape, hardware: Hardware, details: Mapping[str, Any]) -> Plan:
    data, gpus = config.data, (config.nproc or 1) * config.trainer.nnodes
    tokens = data.max_token_len_per_gpu
    if not data.use_dynamic_bsz:
        tokens = data.micro_batch_size_per_gpu * data.max_length
    training = _training(config.model, config.engine, gpus, tokens, scaled=False)
    phases: tuple[Phase, ...] = (memory.update(shape, training), memory.step(shape, training))
    if not hardware.is_gpu:
        phases = (memory.on_cpu(phases[0], gpus, memory.SFT_PROCESSES, gpus),)
    return Plan(
        shape,
        hardware,
        gpus,
        phases,
        SFT_REMEDIES,
        checkpoint_bytes(shape.parameters, config.checkpoint.save_contents, bool(config.model.lora_rank)),
        config.trainer.max_ckpt_to_keep,
    )


def grpo_plan(config: DictConfig, shape: Shape, hardware: Hardware, details: Mapping[str, Any]) -> Plan:
    roles, trainer = config.actor_rollout_ref, config.trainer
    gpus, contents = trainer.n_gpus_per_node * trainer.nnodes, roles.actor.checkpoint.save_contents
    return Plan(
        shape,
        hardware,
        gpus,
        _grpo_on_gpu(config, shape, hardware) if hardware.is_gpu else (_grpo_on_cpu(config, shape),),
        GRPO_REMEDIES,
        checkpoint_bytes(shape.parameters, contents, bool(roles.model.lora_rank)),
        trainer.max_actor_ckpt_to_keep,
    )


def _grpo_on_gpu(config: DictConfig, shape: Shape, hardware: Hardware) -> tuple[Phase, ...]:
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    training, before = _actor(config, "update"), _actor(config, "log-probs")
    chunk = actor.entropy_from_logits_chunk_size if actor.entropy_from_logits_with_chunking else None
    phases = [memory.log_probs(shape, before, chunk), memory.update(shape, training), memory.step(shape, training)]
    if config.segrl.rule != "uniform":
        phases.insert(1, _attribution_beside(config, shape, training))
    if actor.fsdp_config.optimizer_offload:  # verl brings it back for the update alone
        phases = [p if "gradients" in p.parts else p.without("optimiser") for p in phases]
    serving = Serving(rollout.tensor_model_parallel_size, rollout.gpu_memory_utilization, _context(config))
    served = memory.generation(shape, serving, hardware.memory)
    memory.check_cache(shape, serving, served, "actor_rollout_ref.rollout.gpu_memory_utilization")
    if not rollout.free_cache_engine:  # vLLM keeps what it has while the others work
        phases = [Phase(p.name, {**p.parts, **served.parts}) for p in phases]
    held = memory.held(shape, training)
    offloaded = {"weights": actor.fsdp_config.param_offload, "optimiser": actor.fsdp_config.optimizer_offload}
    stays = sum(size for part, size in held.items() if not offloaded[part])
    return (Phase("generation", {**served.parts, "policy": stays}), *phases)


def _attribution_beside(config: DictConfig, shape: Shape, training: Training) -> Phase:
    """Attribution on the actor's own weights."""
    settings, roles = config.segrl, config.actor_rollout_ref
    checkpointing = settings.checkpointing
    checkpointing = roles.model.enable_gradient_checkpointing if checkpointing is None else checkpointing
    tokens = settings.tokens_per_forward or roles.actor.ppo_max_token_len_per_gpu
    work = memory.attribution(shape, tokens, bool(checkpointing), training.precision)
    gathered = memory.passing(shape, training)["gathered"]
    return Phase("attribution", {**memory.held(shape, training), "gathered": gathered, "attribution": work})


def _grpo_on_cpu(config: DictConfig, shape: Shape) -> Phase:
    from segrl.credit.checks import has_reference

    roles, gpus = config.actor_rollout_ref, config.trainer.n_gpus_per_node
    trained = memory.update(shape, _actor(config, "update"))
    phase = memory.on_cpu(trained, gpus, memory.GRPO_PROCESSES, gpus)
    served = PRECISION.get(roles.rollout.dtype, 2) * shape.parameters * gpus
    reference = 4 * shape.parameters if has_reference(config) and not roles.model.lora_rank else 0
    cache = memory.CPU_CACHE * gpus / roles.rollout.tensor_model_parallel_size
    return Phase(phase.name, {**phase.parts, "reference": reference, "vLLM's weights": served, "KV cache": cache})


def _actor(config: DictConfig, phase: str) -> Training:
    """How verl's actor trains, or computes log-probs."""
    roles, trainer = config.actor_rollout_ref, config.trainer
    lengths = config.data.max_prompt_length + config.data.max_response_length
    names = ("ppo_micro_batch_size_per_gpu", "ppo_max_token_len_per_gpu")
    node = roles.actor
    if phase == "log-probs":
        node, names = roles.rollout, ("log_prob_micro_batch_size_per_gpu", "log_prob_max_token_len_per_gpu")
    tokens = node[names[1]] if roles.actor.use_dynamic_bsz else (node[names[0]] or 1) * lengths
    gpus = trainer.n_gpus_per_node * trainer.nnodes
    return _training(roles.model, roles.actor.fsdp_config, gpus, tokens, scaled=roles.rollout.temperature != 1)


def _training(model: DictConfig, engine: DictConfig, gpus: int, tokens: int, scaled: bool) -> Training:
    precision = (engine.get("mixed_precision") or {}).get("param_dtype", "bf16")
    return Training(
        ranks=engine.fsdp_size if engine.fsdp_size > 0 else gpus,
        tokens=tokens,
        precision=PRECISION.get(precision, 2),
        stored=PRECISION.get(engine.model_dtype, 2),
        checkpointing=model.enable_gradient_checkpointing,
        lora_rank=model.lora_rank,
        packed=model.use_remove_padding,
        scaled=scaled,
        on_cpu=engine.offload_policy,
    )


def _context(config: DictConfig) -> int:
    length = config.data.max_prompt_length + config.data.max_response_length
    return config.actor_rollout_ref.rollout.max_model_len or length


# --- inference -------------------------------------------------------------------------------------------------------

ATTRIBUTE_REMEDIES = {
    "weights": "set dtype=bfloat16",
    "attribution": "lower attribution.batch_tokens, or set attribution.checkpointing=true",
}
EVALUATE_REMEDIES = {
    "weights": "set dtype=bfloat16, or take backend=vllm with generation.vllm.engine={tensor_parallel_size: 2}",
    "cache": "lower generation.batch or generation.max_tokens",
    "KV cache": "lower gpu_memory_utilization in generation.vllm.engine",
    "vLLM's weights": "raise tensor_parallel_size in generation.vllm.engine",
}


def attribute_plan(
    config: DictConfig, shape: Shape, hardware: Hardware, details: Mapping[str, Any], lengths: Sequence[int] = ()
) -> Plan:
    from segrl.attribution.evaluator import CPU_TOKENS, TOKENS

    options, precision = config.attribution, bytes_of(config.dtype, details)
    batch = options.batch_tokens or (TOKENS if hardware.is_gpu else CPU_TOKENS)
    longest = max(lengths, default=batch)
    checkpointing = options.checkpointing
    checkpointing = longest > (options.batch_tokens or TOKENS) if checkpointing is None else checkpointing
    work = memory.attribution(shape, max(batch, longest), bool(checkpointing), precision)
    parts = {"weights": float(precision * shape.parameters), "attribution": work}
    workers = max(config.workers, 1) if config.executor == "ray" else 1
    spent = None
    if lengths and hardware.tflops:
        flops = attribution_flops(shape, sum(lengths), sum(lengths) // len(lengths), options.nodes, bool(checkpointing))
        spent = hours(flops, workers, hardware.tflops)
    if not hardware.is_gpu:
        parts = {"processes": memory.PROCESS * workers, **{part: size * workers for part, size in parts.items()}}
    of = f"{len(lengths)} traces at {options.nodes} nodes; steep ones take up to {options.max_nodes}"
    phases = (Phase("attribution", parts),)
    return Plan(shape, hardware, workers, phases, ATTRIBUTE_REMEDIES, hours=spent, of=of)


def evaluate_plan(
    config: DictConfig, shape: Shape, hardware: Hardware, details: Mapping[str, Any], samples: int = 0
) -> Plan | None:
    """None where a server answers."""
    generation = config.generation
    if config.backend not in ("transformers", "vllm"):
        return None
    length, gpus = PROMPT + generation.max_tokens, 1
    if config.backend == "vllm" and hardware.is_gpu:
        engine = generation.vllm.engine
        gpus, share = engine.get("tensor_parallel_size", 1), engine.get("gpu_memory_utilization", VLLM_SHARE)
        serving = Serving(gpus, share, length, bytes_of(generation.vllm.dtype, details))
        phase = memory.generation(shape, serving, hardware.memory)
        memory.check_cache(shape, serving, phase, "gpu_memory_utilization in generation.vllm.engine")
    else:
        precision = bytes_of(generation[config.backend].dtype, details)
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


def bytes_of(dtype: str, details: Mapping[str, Any]) -> int:
    """Bytes of a number of ``dtype``; of ``auto`` the dtype is the one in config.json."""
    if dtype == "auto":
        dtype = str(details.get("dtype") or details.get("torch_dtype") or "bfloat16")
    return PRECISION.get(dtype, 2)


PLANS: dict[str, Callable[..., Plan | None]] = {
    "sft": sft_plan,
    "grpo": grpo_plan,
    "attribute": attribute_plan,
    "evaluate": evaluate_plan,
}

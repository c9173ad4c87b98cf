"""The plans of `segrl sft` and `segrl grpo`: verl's keys unpacked for segrl.cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig

from segrl.cost import memory
from segrl.cost.disk import checkpoint_bytes
from segrl.cost.hardware import Hardware
from segrl.cost.hours import EVALUATION, FORWARDS_OF_UPDATE, hours, training_flops, units
from segrl.cost.memory import Phase, Serving, Training, bytes_of
from segrl.cost.plan import Plan
from segrl.cost.shape import Shape
from segrl.credit.checks import has_reference, logps_serve
from segrl.credit.settings import ALONG_A_PATH, CreditSettings, Side, credit_from
from segrl.importance.discriminating import ACROSS_RESPONSES
from segrl.importance.lockstep import AFTER_PREFIXES, AT_THE_INPUT, SUPPORT

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
    """What `segrl sft` takes; raises where ranks would share a row that they cannot."""
    data, gpus = config.data, (config.nproc or 1) * config.trainer.nnodes
    shared = config.engine.ulysses_sequence_parallel_size  # ranks that share a row
    if shape.heads % shared or (shape.kv_heads % shared and shared % shape.kv_heads):
        raise ValueError(
            f"engine.ulysses_sequence_parallel_size={shared}, which data.train_batch_size={data.train_batch_size} on "
            f"{gpus} ranks sets by itself, lets {shared} of them share a row, but they cannot share the model's "
            f"{shape.heads} heads ({shape.kv_heads} of keys); take "
            f"data.train_batch_size={gpus}, or another nproc"
        )
    rows = max(1, data.train_batch_size * shared // gpus)  # of a step, on such ranks together
    tokens = data.max_token_len_per_gpu * shared
    if not data.use_dynamic_bsz:
        tokens = data.micro_batch_size_per_gpu * data.max_length
    tokens = min(tokens, rows * data.max_length) // shared
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
    """What `segrl grpo` takes, phase by phase."""
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
        _hours_of_step(config, shape, hardware, gpus),
        "at most for a step, without its generation",
    )


def _hours_of_step(config: DictConfig, shape: Shape, hardware: Hardware, gpus: int) -> float | None:
    """Hours of a step's update, log-probs and attribution, where every rollout takes its full length."""
    if not hardware.tflops:
        return None
    roles, settings = config.actor_rollout_ref, credit_from(config)
    length = config.data.max_prompt_length + config.data.max_response_length
    tokens = config.data.train_batch_size * roles.rollout.n * length
    update = training_flops(shape, tokens, length, roles.model.enable_gradient_checkpointing)
    forwards = 1 + has_reference(config)
    flops = update * (1 + attribution_units(config, settings)) + forwards * tokens * shape.forward_flops(length)
    return hours(flops, gpus, hardware.tflops)


def attribution_units(config: DictConfig, settings: CreditSettings) -> float:
    """What attribution costs, in units of verl's own update on the same rollouts, at most: as much as that of the
    measure that costs more."""
    if not settings.attributes:
        return 0.0
    checkpointing, whole = attribution_checkpoints(config), not logps_serve(config, settings)
    dearest = max(_units_of(side, settings, checkpointing, whole) for side in settings.sides)
    return settings.share * dearest / settings.every


def _units_of(side: Side, settings: CreditSettings, checkpointing: bool, whole: bool) -> float:
    """The cost of the side's measure, in units of the update on the same rollouts. ``whole``: whether `support` reads
    whole responses too."""
    if side.need in ALONG_A_PATH:
        return units(settings.nodes, 1.0, checkpointing, settings.certificate_every)
    if side.need in AT_THE_INPUT:
        return EVALUATION[checkpointing]
    once = side.need in (AFTER_PREFIXES, *ACROSS_RESPONSES)
    forwards = settings.forwards + whole if side.need == SUPPORT else int(once)
    return forwards / FORWARDS_OF_UPDATE[checkpointing]


def attribution_checkpoints(config: DictConfig) -> bool:
    """Whether attribution checkpoints activations."""
    own = config.segrl.checkpointing
    return bool(config.actor_rollout_ref.model.enable_gradient_checkpointing if own is None else own)


def _grpo_on_gpu(config: DictConfig, shape: Shape, hardware: Hardware) -> tuple[Phase, ...]:
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    training, before = _actor(config, "update"), _actor(config, "log-probs")
    chunk = actor.entropy_from_logits_chunk_size if actor.entropy_from_logits_with_chunking else None
    phases = [memory.log_probs(shape, before, chunk), memory.update(shape, training), memory.step(shape, training)]
    settings = credit_from(config)
    if settings.attributes and settings.attributor != "frozen":  # whose actors have GPUs of their own
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
    settings, roles = credit_from(config), config.actor_rollout_ref
    longest = config.data.max_prompt_length + config.data.max_response_length  # a rank reads a row whole
    tokens = max(settings.tokens_per_forward or roles.actor.ppo_max_token_len_per_gpu, longest)
    path = settings.path if settings.follows_a_path else "embeddings"
    checkpointing, needs = attribution_checkpoints(config), {side.need for side in settings.sides}
    works = [memory.reading(shape, tokens, training.precision)] if SUPPORT in needs else []
    if settings.reads_answers or not works:
        works += [memory.attribution(shape, tokens, checkpointing, training.precision, path)]
    gathered = memory.passing(shape, training)["gathered"]
    return Phase("attribution", {**memory.held(shape, training), "gathered": gathered, "attribution": max(works)})


def _grpo_on_cpu(config: DictConfig, shape: Shape) -> Phase:
    roles, gpus = config.actor_rollout_ref, config.trainer.n_gpus_per_node
    trained = memory.update(shape, _actor(config, "update"))
    phase = memory.on_cpu(trained, gpus, memory.GRPO_PROCESSES, gpus)
    served = bytes_of(roles.rollout.dtype) * shape.parameters * gpus
    reference = 4 * shape.parameters if has_reference(config) and not roles.model.lora_rank else 0
    cache = memory.CPU_CACHE * gpus / roles.rollout.tensor_model_parallel_size
    return Phase(phase.name, {**phase.parts, "reference": reference, "vLLM's weights": served, "cache": cache})


def _actor(config: DictConfig, phase: str) -> Training:
    """The sizes with which verl's actor trains, or computes log-probs."""
    roles, trainer = config.actor_rollout_ref, config.trainer
    lengths = config.data.max_prompt_length + config.data.max_response_length
    names = ("ppo_micro_batch_size_per_gpu", "ppo_max_token_len_per_gpu")
    node = roles.actor
    if phase == "log-probs":
        node, names = roles.rollout, ("log_prob_micro_batch_size_per_gpu", "log_prob_max_token_len_per_gpu")
    gpus = trainer.n_gpus_per_node * trainer.nnodes
    prompts = roles.actor.ppo_mini_batch_size if phase == "update" else config.data.train_batch_size
    rows = max(1, prompts * roles.rollout.n // gpus)  # of a rank
    tokens = min(node[names[1]], rows * lengths) if roles.actor.use_dynamic_bsz else (node[names[0]] or 1) * lengths
    return _training(roles.model, roles.actor.fsdp_config, gpus, tokens, scaled=roles.rollout.temperature != 1)


def _training(model: DictConfig, engine: DictConfig, gpus: int, tokens: int, scaled: bool) -> Training:
    precision = (engine.get("mixed_precision") or {}).get("param_dtype", "bf16")
    return Training(
        ranks=engine.fsdp_size if engine.fsdp_size > 0 else gpus,
        tokens=tokens,
        precision=bytes_of(precision),
        stored=bytes_of(engine.model_dtype),
        checkpointing=model.enable_gradient_checkpointing,
        lora_rank=model.lora_rank,
        packed=model.use_remove_padding,
        scaled=scaled,
        on_cpu=engine.offload_policy,
    )


def _context(config: DictConfig) -> int:
    length = config.data.max_prompt_length + config.data.max_response_length
    return config.actor_rollout_ref.rollout.max_model_len or length

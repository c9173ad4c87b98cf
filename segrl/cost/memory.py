"""How much memory each phase of a run holds on one GPU, part by part, in bytes.

Counted is what verl's FSDP2 engine and vLLM hold at the peak of a phase; ``OVERHEAD`` stands for what no formula gives:
CUDA's context, NCCL's buffers and fragments.
"""

from __future__ import annotations

from dataclasses import dataclass

from segrl.cost.hardware import GIB
from segrl.cost.shape import Shape

OVERHEAD = 3 * GIB  # of a GPU, for what is not counted
VLLM_WORK = 3 * GIB  # what vLLM keeps for its forward, its graphs and its sampler beside weights and cache
ENTROPY_COPIES = 3  # softmax, the logits in float32, and their exponentials in logsumexp


def bytes_of(dtype: str) -> int:
    """Bytes of a number of a dtype, by transformers' name or verl's."""
    return 4 if dtype in ("float32", "fp32") else 2


@dataclass(frozen=True)
class Phase:
    """What a phase holds at its peak: part -> bytes."""

    name: str
    parts: dict[str, float]

    @property
    def total(self) -> float:
        return sum(self.parts.values())

    def without(self, part: str) -> Phase:
        return Phase(self.name, {name: size for name, size in self.parts.items() if name != part})


@dataclass(frozen=True)
class Training:
    """How a model is trained: over how many ranks it is sharded, in which precision, on how many tokens at once."""

    ranks: int = 1
    tokens: int = 16_384  # of a micro-batch on one rank
    precision: int = 2  # bytes of a number in forward and backward
    stored: int = 4  # bytes of a weight that is trained
    checkpointing: bool = True
    lora_rank: int = 0
    packed: bool = True  # without padding, which needs flash attention; its kernel for the loss comes with it
    scaled: bool = False  # are the logits divided by a temperature, into a second copy?
    on_cpu: bool = False  # are weights and optimiser kept in the machine's memory (FSDP2's offload_policy)?


def update(shape: Shape, training: Training) -> Phase:
    """The peak of a forward and backward, whose logits are the largest tensor where the vocabulary is large."""
    logits = training.tokens * shape.vocabulary * training.precision * _copies_of_logits(training)
    layer = training.tokens * shape.layer_activations() * training.precision
    if training.checkpointing:  # a layer is recomputed after the logits are freed, in their room
        kept = training.tokens * shape.layers * shape.hidden * training.precision
        activations = kept + max(0, layer - logits)
    else:
        activations = shape.layers * layer
    return Phase("update", {**held(shape, training), **passing(shape, training), **_sizes(activations, logits)})


def step(shape: Shape, training: Training) -> Phase:
    """The peak of Adam's step, which makes one more tensor of each weight's size."""
    gradients, shard = passing(shape, training)["gradients"], training.stored * trained(shape, training)
    work = 0 if training.on_cpu else shard / training.ranks
    return Phase("step", {**held(shape, training), "gradients": gradients, "Adam's work": work})


def log_probs(shape: Shape, training: Training, chunk: int | None) -> Phase:
    """The peak of a forward that computes log-probabilities, and the entropy of ``chunk`` tokens at once. On padded
    rows verl computes that of all tokens at once. Autocast has it in float32."""
    logits = training.tokens * shape.vocabulary * training.precision * (1 + training.scaled)
    at_once = min(chunk, training.tokens) if chunk and training.packed else training.tokens
    logits += at_once * shape.vocabulary * 4 * ENTROPY_COPIES
    layer = training.tokens * shape.layer_activations() * training.precision
    parts = {**held(shape, training), "gathered": _gathered(shape, training), **_sizes(max(0, layer - logits), logits)}
    return Phase("log-probs", parts)


def _sizes(activations: float, logits: float) -> dict[str, float]:
    return {"activations": activations, "logits": logits}


def held(shape: Shape, training: Training) -> dict[str, float]:
    """What a rank holds between steps: its shard of the weights and of Adam's two moments."""
    if training.on_cpu:
        return {}
    shard = training.stored / training.ranks
    return {"weights": shard * _all(shape, training), "optimiser": 2 * shard * trained(shape, training)}


def passing(shape: Shape, training: Training) -> dict[str, float]:
    """What a rank holds in addition during a step: gradients, and weights gathered from all ranks."""
    gradients = training.stored * trained(shape, training) / training.ranks
    if not training.lora_rank:  # the output layer's stays whole until the backward has ended
        gradients += training.precision * shape.embedding
    return {"gradients": gradients, "gathered": _gathered(shape, training)}


def _gathered(shape: Shape, training: Training) -> float:
    """The output layer, which FSDP2 gathers once a step, the layer at work and the next one."""
    return training.precision * (shape.embedding + 2 * shape.layer)


def trained(shape: Shape, training: Training) -> int:
    """How many weights have a gradient."""
    return shape.adapter(training.lora_rank) if training.lora_rank else shape.parameters


def _all(shape: Shape, training: Training) -> int:
    return shape.parameters + (shape.adapter(training.lora_rank) if training.lora_rank else 0)


def _copies_of_logits(training: Training) -> int:
    """How often the logits are held at the peak of verl's loss.

    flash-attn's cross entropy writes the gradient over them. Without it verl's ``logprobs_from_logits_v2`` copies the
    rows out of their padding and works row by row. Its backward holds the gradient of each row, and that of all rows as
    one tensor. In float32 it also holds the logits, and the gradient of those that the labels pick.
    """
    if training.packed:
        return 1 + training.scaled
    return 3 + training.scaled if training.precision == 2 else 5


# --- other phases ----------------------------------------------------------------------------------------------------


def attribution(shape: Shape, tokens: int, checkpointing: bool, precision: int = 2, path: str = "embeddings") -> float:
    """Bytes of the activations of one forward and backward of ``tokens`` tokens; the weights are not counted.

    Either path adds its input and the gradient. The path over embeddings adds its reach (float32), the path over values
    each layer's value vectors before their gates. Only the answer's tokens have logits.
    """
    reach, gated = (0, shape.kv_heads * shape.head_dim) if path == "values" else (4 * shape.hidden, 0)
    layer = shape.layer_activations() + gated
    kept = shape.layers * shape.hidden + layer if checkpointing else shape.layers * layer
    return tokens * ((kept + 2 * shape.hidden) * precision + reach)


def reading(shape: Shape, tokens: int, precision: int = 2) -> float:
    """Bytes of one forward of ``tokens`` tokens without a gradient, all of which have logits; a layer's activations are
    freed before these are made."""
    return tokens * max(shape.vocabulary, shape.layer_activations()) * precision


@dataclass(frozen=True)
class Serving:
    """How vLLM serves a model: on how many GPUs, with which share of a GPU's memory, to which length."""

    gpus: int = 1  # that share the weights
    share: float = 0.9  # gpu_memory_utilization
    length: int = 16_384  # max_model_len
    precision: int = 2


def generation(shape: Shape, serving: Serving, memory: int) -> Phase:
    """What vLLM takes of a GPU with ``memory`` bytes: all of its share, which the cache fills."""
    weights = serving.precision * shape.parameters / serving.gpus
    room = serving.share * memory - weights - VLLM_WORK
    return Phase("generation", {"vLLM's weights": weights, "vLLM's work": VLLM_WORK, "KV cache": max(room, 0.0)})


def least_cache(shape: Shape, serving: Serving) -> float:
    """Bytes of the cache that one sequence of full length fills on a GPU."""
    on_gpu = max(1, shape.kv_heads // serving.gpus) / shape.kv_heads
    return serving.length * shape.cached() * on_gpu * serving.precision


def check_cache(shape: Shape, serving: Serving, served: Phase, key: str) -> None:
    """Refuse a share of the GPU whose cache cannot hold one sequence of full length."""
    needs, has = least_cache(shape, serving), served.parts["KV cache"]
    if has < needs:
        raise ValueError(
            f"vLLM's share of {serving.share:g} leaves {has / GIB:.3g} GiB of a GPU for its cache, a sequence of "
            f"{serving.length} tokens needs {needs / GIB:.3g}: raise {key}, or spread the model over more GPUs with "
            "tensor parallelism"
        )


# --- without a GPU ---------------------------------------------------------------------------------------------------

# Measured with scripts/bench_memory.py, before a process has a model.
PROCESS = 7 * GIB // 10  # a command with torch and transformers loaded
SFT_PROCESSES = (6 * GIB // 10, PROCESS)  # the command and torchrun together, and each rank
GRPO_PROCESSES = (72 * GIB // 10, PROCESS)  # Ray, verl's workers and vLLM together, and each rank
CPU_CACHE = GIB  # VLLM_CPU_KVCACHE_SPACE, as segrl.launch sets it


def on_cpu(phase: Phase, ranks: int, processes: tuple[int, int], count: int) -> Phase:
    """The phase on one machine: what each rank holds, for all ranks, and the processes themselves."""
    common, each = processes
    parts = {part: size * ranks for part, size in phase.parts.items()}
    return Phase(phase.name, {"processes": common + each * count, **parts})

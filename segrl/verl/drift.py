"""What segrl uses of verl: a version, and functions with their parameters.

When verl changes, a warning names the functions that changed, before a run fails somewhere else.
"""

from __future__ import annotations

import importlib
import inspect
import warnings

import verl

VERL = "0.9.1"
V1 = "verl.trainer.ppo.v1.trainer_base"
# module and name -> the parameters that segrl passes, or that its override takes; None: the name alone is checked
USED: dict[str, tuple[str, ...] | None] = {
    f"{V1}:PPOTrainer._compute_advantage": ("self", "batch", "metrics"),
    f"{V1}:PPOTrainer._update_actor": ("self", "batch", "metrics"),
    f"{V1}:PPOTrainer._init_dataloader": ("self",),
    f"{V1}:PPOTrainer._init_resource_pool_mgr": ("self",),
    f"{V1}:PPOTrainer._setup": ("self",),
    f"{V1}:PPOTrainer.fit": ("self", "agent_loop_manager"),
    f"{V1}:PPOTrainer.on_validate_begin": ("self",),
    f"{V1}:PPOTrainer.on_step_begin": ("self",),
    f"{V1}:PPOTrainer.on_step_end": ("self",),
    f"{V1}:PPOTrainer._rollout_server_managers": ("self",),
    f"{V1}:PPOTrainer._compute_metrics": ("self", "batch", "metrics", "timing_raw", "global_steps", "epoch"),
    f"{V1}:register_trainer": ("name",),
    "verl.trainer.ppo.v1:PPOTrainerSync": None,
    "verl.trainer.ppo.v1:PPOTrainerColocateAsync": None,
    "verl.trainer.ppo.v1:PPOTrainerSeparateAsync": None,
    "verl.trainer.ppo.utils:Role.ActorRolloutRef": None,
    "verl.single_controller.base.decorator:make_nd_compute_dataproto_dispatch_fn": ("mesh_name",),
    "verl.utils.tensordict_utils:get_non_tensor_data": ("data", "key", "default"),
    "verl.utils.tensordict_utils:get_tensordict": ("tensor_dict", "non_tensor_dict"),
    "verl.utils.seqlen_balancing:get_seqlen_balanced_partitions": ("seqlen_list", "k_partitions", "equal_size"),
    "verl.utils.debug:marked_timer": None,
    "verl.workers.engine_workers:ActorRolloutRefWorker.init_model": ("self",),
    "verl.workers.engine.fsdp.transformer_impl:FSDPEngine.eval_mode": ("self", "kwargs"),
    "verl.workers.engine.fsdp.transformer_impl:FSDPEngine.disable_adapter": ("self",),
    "verl.utils.distributed:initialize_global_process_group_ray": ("timeout_second", "backend"),
    "verl.utils.distributed:initialize_global_process_group": ("timeout_second",),
    "verl.checkpoint_engine.base:CheckpointEngineRegistry.register": ("backend",),
    "verl.checkpoint_engine.base:CheckpointEngine.send_weights": ("self", "weights", "global_steps"),
    "verl.checkpoint_engine.base:CheckpointEngine.receive_weights": ("self", "global_steps"),
    "verl.plugin.platform:PlatformRegistry.register": None,
    "verl.utils.config:validate_config": ("config", "use_reference_policy", "use_critic"),
    "verl.utils.fs:copy_to_local": ("src",),
    "verl.utils.model:update_model_config": ("module_config", "override_config_kwargs"),
    "verl.utils.import_utils:load_extern_object": ("module_path", "object_name"),
    "transfer_queue:kv_batch_get": ("keys", "partition_id", "select_fields"),
    "transfer_queue:kv_batch_put": ("keys", "partition_id", "fields", "tags"),
    "transfer_queue:KVBatchMeta.select_keys": ("self", "keys_to_select"),
}


def drift(used: dict[str, tuple[str, ...] | None] | None = None, expected: str = VERL) -> list[str]:
    """A sentence for each difference between the installed verl and the one that segrl was written for."""
    sentences = []
    if verl.__version__ != expected:
        sentences.append(f"verl is {verl.__version__}, segrl was written for {expected}")
    for where, parameters in (USED if used is None else used).items():
        sentence = _changed(where, parameters)
        if sentence:
            sentences.append(sentence)
    return sentences


def warn_of_drift() -> None:
    sentences = drift()
    if sentences:
        warnings.warn(
            f"verl is not the one that segrl was written for; if it fails, look here first: {'; '.join(sentences)}",
            stacklevel=2,
        )


def _changed(where: str, parameters: tuple[str, ...] | None) -> str | None:
    module, _, path = where.partition(":")
    try:
        value = importlib.import_module(module)
        for name in path.split("."):
            value = getattr(value, name)
    except ImportError as error:
        return f"{module} cannot be imported ({error})"
    except AttributeError:
        return f"{module} has no {path}"
    if parameters is None:
        return None
    assert callable(value)
    have = tuple(inspect.signature(value).parameters)
    missing = [name for name in parameters if name not in have]
    if parameters[:1] == ("self",) and have != parameters:  # overridden: every parameter counts
        return f"{where} takes ({', '.join(have)}), not ({', '.join(parameters)})"
    return f"{where} takes ({', '.join(have)}), without {', '.join(missing)}" if missing else None

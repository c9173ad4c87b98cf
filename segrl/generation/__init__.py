"""Traces sampled from a model, given problems. ``BACKENDS`` names the backends; a backend is a function
(groups of samples, sampling, options of the backend) -> traces, in any order.
"""

from collections.abc import Callable, Iterator

from segrl.generation import local, server, vllm
from segrl.generation.harvesting import harvest
from segrl.generation.local import sample
from segrl.generation.sampling import Sampling, samples, whole_groups
from segrl.types import Trace

BACKENDS: dict[str, Callable[..., Iterator[Trace]]] = {
    "transformers": local.generate,
    "vllm": vllm.generate,
    "openai": server.generate,
}

__all__ = ["BACKENDS", "Sampling", "harvest", "sample", "samples", "whole_groups"]

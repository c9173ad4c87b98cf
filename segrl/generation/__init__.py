"""Problems -> traces, sampled from a model. A backend is a function (groups of asked samples, sampling, its own
options) -> traces, in any order; ``BACKENDS`` names them.
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

"""What vLLM's CPU worker needs so that verl can send it new weights."""

from __future__ import annotations

from torch.nn.functional import linear
from verl.workers.rollout.vllm_rollout.utils import vLLMColocateWorkerExtension


class PlainWeightsExtension(vLLMColocateWorkerExtension):
    """verl's worker extension, with plain linear weights.

    vLLM's CPU backend repacks each linear weight after loading and drops the original, so a later ``load_weights`` has
    nothing to write into: verl's weight sync fails and the job hangs.
    """

    def __new__(cls, **kwargs):
        import vllm.model_executor.layers.utils as layers

        layers.dispatch_cpu_unquantized_gemm = _keep_plain_weight
        return super().__new__(cls, **kwargs)


def _keep_plain_weight(layer, remove_weight: bool) -> None:
    layer.cpu_linear = linear

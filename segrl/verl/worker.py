"""One more RPC for verl's actor worker: attribute rollouts on the live, sharded actor."""

from __future__ import annotations

from dataclasses import replace

import torch
from tensordict import TensorDict
from verl.single_controller.base.decorator import make_nd_compute_dataproto_dispatch_fn, register
from verl.utils import tensordict_utils as tu
from verl.utils.profiler import DistProfiler

from segrl.attribution import attribute
from segrl.types import Trace
from segrl.verl.credit import Credit, rollout_trace

FIELDS = ("prompts", "responses", "response_mask", "reward_model")
SCORES = ("segrl_scores", "segrl_gap", "segrl_copy_share")
FILLER_ANSWER = "0"  # explained in rows that only fill up the ranks; nobody reads their scores


class Attributing:
    """Mixed over the worker class that verl's mapping holds, whichever that is."""

    @register(dispatch_mode=make_nd_compute_dataproto_dispatch_fn(mesh_name="actor"))
    @DistProfiler.annotate(color="purple", role="segrl_attribution")
    def compute_segrl_scores(self, data: TensorDict) -> TensorDict:
        """Writes the fields ``SCORES``: one score a response token, and two numbers a rollout.

        Each rank runs the same number of forwards, or FSDP's collectives would wait for each other for ever: the batch
        is divisible, a forward takes a fixed number of rows, and there is no refinement.
        """
        credit: Credit = tu.get_non_tensor_data(data, "segrl", default=None)
        engine = self.actor.engine
        tokenizer = self.actor.model_config.tokenizer
        with engine.eval_mode():
            attributions = attribute(
                engine.module,
                explained_traces(data, tokenizer, credit.target),
                tokenizer,
                rule=credit.quadrature,
                nodes=credit.nodes,
                interpolate=credit.interpolate,
                tolerance=None,
                batch_rows=credit.rows_per_forward,
            )
        columns = {
            "segrl_scores": torch.nested.as_nested_tensor([one.scores_T for one in attributions], layout=torch.jagged),
            "segrl_gap": torch.tensor([one.gap for one in attributions]),
            "segrl_copy_share": torch.tensor([one.copy_share for one in attributions]),
        }
        return tu.get_tensordict(columns, {"metrics": {}}).cpu()


def explained_traces(data: TensorDict, tokenizer, target: str) -> list[Trace]:
    """The traces of a batch, each with the answer to explain."""
    columns = [data[name].unbind() for name in ("prompts", "responses", "response_mask")]
    traces = [rollout_trace(str(i), *row, tokenizer) for i, row in enumerate(zip(*columns, strict=True))]
    if target == "gold":
        answers = [str(reward["ground_truth"]) for reward in data["reward_model"].tolist()]
    else:
        answers = [trace.answer or FILLER_ANSWER for trace in traces]
    return [replace(trace, answer=answer) for trace, answer in zip(traces, answers, strict=True)]


def attributing(worker_class: type) -> type:
    """``worker_class`` with the attribution RPC."""
    return type(f"Attributing{worker_class.__name__}", (Attributing, worker_class), {})

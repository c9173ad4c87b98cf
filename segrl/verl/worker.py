"""Two more RPCs for verl's actor worker: attribute rollouts on its own sharded model, and gather the masses on a
grid for a calibration."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager

import torch
from tensordict import TensorDict
from verl.single_controller.base.decorator import make_nd_compute_dataproto_dispatch_fn, register
from verl.utils import tensordict_utils as tu
from verl.utils.profiler import DistProfiler
from verl.utils.ulysses import get_ulysses_sequence_parallel_group, set_ulysses_sequence_parallel_group

from segrl.attribution.calibration import masses_on_grid
from segrl.attribution.quadrature import midpoint
from segrl.credit.rollout import rollout_trace
from segrl.importance.discriminating import ACROSS_RESPONSES
from segrl.importance.lockstep import Request, attribute_in_lockstep, compare_in_lockstep, explained, parts
from segrl.text.ending import end_tokens
from segrl.types import TokenisedTrace
from segrl.verl.queue import known

FIELDS = ("prompts", "responses", "response_mask", "reward_model")
SCORES = ("segrl_scores", "segrl_gap", "segrl_copy_share")
MASSES = "segrl_masses"
BOUNDARIES = "segrl_boundaries"  # of each rollout's segments
ADVANTAGE = "segrl_advantage"  # one number a rollout; zero for a row that only fills up the ranks
LOGP = "old_log_probs"  # verl's name for the actor's log-probabilities before the update


class AttributingWorker:
    """A mixin for verl's worker class."""

    @register(dispatch_mode=make_nd_compute_dataproto_dispatch_fn(mesh_name="actor"))
    @DistProfiler.annotate(color="purple", role="segrl_attribution")
    def compute_segrl_scores(self, data: TensorDict) -> TensorDict:
        """Writes the fields ``SCORES``: one score a response token, and the gap and copy share of each rollout.

        For a need of segments there is one score a boundary of the rollout's segments instead.
        """
        request: Request = tu.get_non_tensor_data(data, "segrl", default=None)
        tokenizer = self.actor.model_config.tokenizer
        traces = explained_traces(data, tokenizer, self._segrl_ends(), request.target)
        with self._segrl_model(request.model) as model:
            if request.need in ACROSS_RESPONSES:
                advantages = [float(row) for row in data[ADVANTAGE].unbind()]
                streams = compare_in_lockstep(model, traces, data[LOGP].unbind(), advantages, request)
            else:
                boundaries = [row.tolist() for row in data[BOUNDARIES].unbind()] if BOUNDARIES in data else None
                logps = data[LOGP].unbind() if LOGP in data else None
                streams = attribute_in_lockstep(model, traces, tokenizer, request, boundaries, logps)
        return _columns(
            segrl_scores=_jagged([stream.scores_T for stream in streams]),
            segrl_gap=known([stream.gap for stream in streams]),
            segrl_copy_share=known([stream.copy_share for stream in streams]),
        )

    @register(dispatch_mode=make_nd_compute_dataproto_dispatch_fn(mesh_name="actor"))
    @DistProfiler.annotate(color="purple", role="segrl_calibration")
    def compute_segrl_masses(self, data: TensorDict) -> TensorDict:
        """Writes the field ``MASSES``: the masses at every node of a grid, one node after the other."""
        request: Request = tu.get_non_tensor_data(data, "segrl", default=None)
        nodes: int = tu.get_non_tensor_data(data, "segrl_nodes", default=48)
        tokenizer = self.actor.model_config.tokenizer
        traces = explained_traces(data, tokenizer, self._segrl_ends(), request.target)
        with self._segrl_model(request.model) as model:
            masses = masses_on_grid(
                model,
                traces,
                tokenizer,
                midpoint(nodes)[0].tolist(),
                parts=parts(traces, request.tokens, request.agree),
                checkpointing=request.checkpointing,
                **request.about,
            )
        return _columns(segrl_masses=_jagged([masses_JL.float().flatten() for masses_JL in masses]))

    def _segrl_ends(self) -> frozenset[int]:
        """The tokens that end a response."""
        model = self.actor.model_config
        return end_tokens(model.tokenizer, model.generation_config)

    @contextmanager
    def _segrl_model(self, which: str) -> Iterator:
        """The live actor, or the reference: a model of its own, or the actor without its LoRA adapter."""
        separate = which == "ref" and self.ref is not None
        engine = (self.ref if separate else self.actor).engine
        with engine.eval_mode(), unsplit():
            if which == "ref" and not separate:
                with engine.disable_adapter():
                    yield engine.module
            else:
                yield engine.module


@contextmanager
def unsplit() -> Iterator[None]:
    """Leave the Ulysses group: each of its ranks holds the group's rollouts and attributes them whole."""
    group = get_ulysses_sequence_parallel_group()
    set_ulysses_sequence_parallel_group(None)
    try:
        yield
    finally:
        set_ulysses_sequence_parallel_group(group)


def explained_traces(data: TensorDict, tokenizer, ends: Collection[int], target: str) -> list[TokenisedTrace]:
    """The traces of a batch, each with the answer to explain."""
    columns = [data[name].unbind() for name in ("prompts", "responses", "response_mask")]
    traces = [rollout_trace(str(i), *row, tokenizer, ends) for i, row in enumerate(zip(*columns, strict=True))]
    golds = [str(reward["ground_truth"]) for reward in data["reward_model"]] if target != "own" else []
    return explained(traces, target, golds, tokenizer)


def with_attribution(worker_class: type) -> type:
    """``worker_class`` with the attribution RPCs."""
    return type(f"Attributing{worker_class.__name__}", (AttributingWorker, worker_class), {})


def _jagged(rows: list[torch.Tensor]) -> torch.Tensor:
    return torch.nested.as_nested_tensor(rows, layout=torch.jagged)


def _columns(**columns: torch.Tensor) -> TensorDict:
    return tu.get_tensordict(columns, {"metrics": {}}).cpu()

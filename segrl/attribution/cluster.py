"""A pool of Ray actors that each hold a model, and a function that runs a pool on a whole cluster. Only the driver
writes files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import ceil
from typing import Any

import ray

from segrl.loading import load_model


class ModelActor:
    def __init__(self, model: Mapping[str, Any]) -> None:
        self.model, self.tokenizer = load_model(**model)

    def run(self, function: Callable, *arguments) -> Any:
        return function(self.model, self.tokenizer, *arguments)


class ModelPool:
    """``workers`` Ray actors with a model each. ``model``: the arguments of :func:`load_model`; ``options``: Ray's, of
    every actor."""

    def __init__(self, model: Mapping[str, Any], workers: int, **options) -> None:
        actor_class = ray.remote(**options)(ModelActor)
        self.actors = [actor_class.remote(model) for _ in range(workers)]

    def run(self, function: Callable, calls: Mapping[int, Sequence]) -> Iterator[tuple[int, Any]]:
        """The key and the result of each call ``function(model, tokenizer, *arguments)``, in the order in which the
        calls finish. An actor holds one call at a time; the actor that has finished gets the next."""
        waiting = iter(calls.items())
        pending = {}
        for actor, (key, arguments) in zip(self.actors, waiting, strict=False):
            pending[actor.run.remote(function, *arguments)] = (actor, key)
        while pending:
            [reference], _ = ray.wait(list(pending), num_returns=1)
            actor, key = pending.pop(reference)
            yield key, ray.get(reference)
            following = next(waiting, None)
            if following is not None:
                pending[actor.run.remote(function, *following[1])] = (actor, following[0])


def run_on_ray(
    function: Callable,
    groups: Iterable[tuple[int, Sequence]],
    model: Mapping[str, Any],
    options: Mapping[str, Any],
    workers: int,
) -> Iterator[tuple[int, Any]]:
    """The number of each group and ``function(model, tokenizer, group, options)``, in the order in which the calls
    finish. An actor that dies is started again and gets its group again."""
    calls = {i: (group, options) for i, group in groups}
    if not calls:
        return
    with cluster():
        yield from ModelPool(model, **_share_of_cluster(workers, len(calls))).run(function, calls)


@contextmanager
def cluster() -> Iterator[None]:
    """A context connected to a Ray cluster: this process's own, else the one that RAY_ADDRESS names, else a new cluster
    on this machine, bound to loopback. A connection that the context made is closed at its end."""
    started = not ray.is_initialized()
    if started:
        ray.init(log_to_driver=False, include_dashboard=False, **_address())
    try:
        yield
    finally:
        if started:
            ray.shutdown()


def _address() -> dict[str, Any]:
    if os.environ.get("RAY_ADDRESS"):
        return {"address": "auto"}
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    return {"_node_ip_address": "127.0.0.1"}


def _share_of_cluster(workers: int, groups: int) -> dict[str, Any]:
    """The number of actors and what Ray gives each: a GPU if there are any, else a share of the cores."""
    gpus = ray.cluster_resources().get("GPU", 0)
    count = min(workers or int(gpus) or 1, groups)
    cores = max(1, int(ray.cluster_resources()["CPU"]) // count)
    return {
        "workers": count,
        "num_cpus": 0 if gpus else cores,
        "num_gpus": 1 / ceil(count / gpus) if gpus else 0,  # so that as many fit on each GPU
        "max_restarts": 3,
        "max_task_retries": 3,
        "runtime_env": {"env_vars": {"OMP_NUM_THREADS": str(cores)}},
    }

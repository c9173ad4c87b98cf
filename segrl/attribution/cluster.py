"""The same on Ray: a pool of actors with a model each, on as many nodes as the cluster has. Only this driver writes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import ray

from segrl.loading import load_model
from segrl.types import TokenisedTrace


class Attributor:
    def __init__(self, model: Mapping[str, Any], rows_of: Callable) -> None:
        self.loaded = load_model(**model)
        self.rows_of = rows_of

    def rows(self, group: Sequence[TokenisedTrace]) -> list[dict]:
        return self.rows_of(*self.loaded, group)


def attributed_on_ray(groups, model, rows_of: Callable, workers: int) -> Iterator[tuple[int, list[dict]]]:
    """Each group's rows as they come, in any order. An actor that dies is started again and its group given again."""
    groups = list(groups)
    if not groups:
        return
    started = not ray.is_initialized()
    if started:
        ray.init(log_to_driver=False, include_dashboard=False, **_cluster())
    try:
        gpus = ray.cluster_resources().get("GPU", 0)
        count = min(workers or int(gpus) or 1, len(groups))
        cores = max(1, int(ray.cluster_resources()["CPU"]) // count)
        remote = ray.remote(num_cpus=0 if gpus else cores, num_gpus=min(1.0, gpus / count), max_restarts=3)(Attributor)
        threads = {"env_vars": {"OMP_NUM_THREADS": str(cores)}}
        actors = [remote.options(runtime_env=threads, max_task_retries=3).remote(model, rows_of) for _ in range(count)]
        yield from _served(actors, groups)
    finally:
        if started:
            ray.shutdown()


def _served(actors: list, groups: list[tuple[int, Sequence[TokenisedTrace]]]) -> Iterator[tuple[int, list[dict]]]:
    """Every actor holds one group; whoever finishes gets the next."""
    waiting = iter(groups)
    pending = {}
    for actor, (i, group) in zip(actors, waiting, strict=False):
        pending[actor.rows.remote(group)] = (actor, i)
    while pending:
        [reference], _ = ray.wait(list(pending), num_returns=1)
        actor, i = pending.pop(reference)
        yield i, ray.get(reference)
        following = next(waiting, None)
        if following is not None:
            pending[actor.rows.remote(following[1])] = (actor, following[0])


def _cluster() -> dict[str, Any]:
    """The cluster that RAY_ADDRESS names, else one on this machine, bound to loopback."""
    if os.environ.get("RAY_ADDRESS"):
        return {"address": "auto"}
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    return {"_node_ip_address": "127.0.0.1"}

"""A worker as a Ray actor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import ray

from dipo.cluster.logs import worker_log
from dipo.cluster.messages import Job
from dipo.cluster.metrics import RayMetrics
from dipo.cluster.network import PackedNetwork
from dipo.cluster.worker import Worker


class RayWorker(Worker):
    """A worker that can be asked for its progress while it works."""

    def __init__(self, job: Job, network: PackedNetwork, rank: int) -> None:
        """Make a worker with a log and metrics of its own."""
        self.log = worker_log(rank)
        super().__init__(job, network.model())
        self.metrics = RayMetrics(run=job.run, worker=rank, device=job.device)

    @cast("Any", ray.method(concurrency_group="aside"))
    def drain_log(self) -> str:
        """Return the lines that it logged since the last call."""
        return self.log.drain()

    @cast("Any", ray.method(concurrency_group="aside"))
    def progress(self) -> int:
        """Return the number of samples or steps done in the current call."""
        return self.done

    @cast("Any", ray.method(concurrency_group="aside"))
    def node(self) -> str:
        """Return the node where it runs; answers as soon as the worker has started."""
        return str(ray.util.get_node_ip_address())


ACTOR = cast("Any", ray.remote)(concurrency_groups={"aside": 1})(RayWorker)


@dataclass(eq=False)
class WorkerSlot:
    """A place in the placement group, with the worker that fills it."""

    index: int
    actor: Any
    started: Any
    """Reference that is ready when the actor has started or failed to."""

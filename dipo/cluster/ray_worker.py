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
        """As `Worker`, with a log and metrics of its own."""
        self.log = worker_log(rank)
        super().__init__(job, network.model())
        self.metrics = RayMetrics(run=job.run, worker=rank, device=job.device)

    @cast("Any", ray.method(concurrency_group="aside"))
    def drain_log(self) -> str:
        """Return what it logged since the last time."""
        return self.log.drain()

    @cast("Any", ray.method(concurrency_group="aside"))
    def progress(self) -> int:
        """Return samples or steps done in the call under way."""
        return self.done

    @cast("Any", ray.method(concurrency_group="aside"))
    def node(self) -> str:
        """Return where it runs; answers as soon as it has started."""
        return str(ray.util.get_node_ip_address())


ACTOR = cast("Any", ray.remote)(concurrency_groups={"aside": 1})(RayWorker)


@dataclass(eq=False)
class WorkerSlot:
    """A place in the placement group, and who sits there."""

    index: int
    actor: Any
    started: Any
    """Ready when the actor is, or has failed to start."""

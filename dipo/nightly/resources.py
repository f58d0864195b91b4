"""The resources that each job needs and those that are free: jobs are packed by these figures."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dipo.config import ClusterConfig
from dipo.errors import UserError
from dipo.nightly.jobs import NightJob


@dataclass(frozen=True)
class ResourceRequest:
    """The resources that a job holds while it runs."""

    cpus: int
    gpus: int

    def __str__(self) -> str:
        gpus = f" and {_count(self.gpus, 'GPU')}" if self.gpus else ""
        return _count(self.cpus, "CPU") + gpus


class Resources:
    """The free CPUs, and the free GPUs by their ids; what is taken has to be given back."""

    def __init__(self, cpus: int, gpus: Sequence[str]) -> None:
        """Start with all of them free."""
        self.total = ResourceRequest(cpus, len(gpus))
        self._cpus = cpus
        self._gpus = list(gpus)

    def take(self, need: ResourceRequest) -> list[str] | None:
        """Take a job's resources and return the ids of its GPUs; return None, and take nothing, if too few are free."""
        if need.cpus > self._cpus or need.gpus > len(self._gpus):
            return None
        self._cpus -= need.cpus
        taken, self._gpus = self._gpus[: need.gpus], self._gpus[need.gpus :]
        return taken

    def give(self, need: ResourceRequest, gpus: Sequence[str]) -> None:
        """Return the resources that `take` gave."""
        self._cpus += need.cpus
        self._gpus += gpus


def need_of(cluster: ClusterConfig, *, gpus: int, cuda: bool, shared: bool) -> ResourceRequest:
    """Return the resources that a job holds.

    Args:
        cluster: The job's cluster section.
        gpus: Number of GPUs in all.
        cuda: The job computes on GPUs where it says `auto`.
        shared: Some of the night's jobs run on Ray. Ray does not know of a job inline, nor the job of Ray's choice of
            GPUs: beside Ray such a job has all GPUs or waits.
    """
    on_gpu = cluster.device == "cuda" or (cluster.device == "auto" and cuda)
    if cluster.kind == "inline":
        return ResourceRequest(cluster.threads, (max(1, gpus) if shared else 1) if on_gpu else 0)
    if not on_gpu:
        return ResourceRequest((cluster.workers or 2) * cluster.threads, 0)
    if cluster.gpus_per_worker is None:
        workers = cluster.workers or max(1, gpus)
        return ResourceRequest(workers * cluster.threads, max(1, min(workers, gpus)))
    # As cluster.engine shares them: a GPU is halved, or cut into thirds, but no worker has parts of two.
    on_each = math.floor(1 / cluster.gpus_per_worker + 1e-9)
    workers = cluster.workers or max(1, gpus * on_each or math.floor(gpus / cluster.gpus_per_worker))
    wanted = math.ceil(workers / on_each) if on_each else math.ceil(workers * cluster.gpus_per_worker)
    return ResourceRequest(workers * cluster.threads, wanted)


def needs_of(jobs: Sequence[NightJob], room: Resources, *, cuda: bool) -> list[ResourceRequest]:
    """Return the resources that each job holds.

    Raises:
        UserError: A job will never fit.
    """
    shared = any(job.config.cluster.kind == "ray" for job in jobs)
    needs = []
    for job in jobs:
        cluster = job.config.cluster
        need = need_of(cluster, gpus=room.total.gpus, cuda=cuda, shared=shared)
        if need.cpus > room.total.cpus or need.gpus > room.total.gpus:
            raise UserError(
                f"job '{job.name}' needs {need} (cluster.workers={cluster.workers or 'null'}, "
                f"cluster.threads={cluster.threads}), there are {room.total}: give it less, or more with cluster.cpus="
            )
        needs.append(need)
    return needs


def local_cpus() -> int:
    """Return the number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def local_gpus() -> list[str]:
    """Return the GPUs of this machine that torch can use, in the words of CUDA_VISIBLE_DEVICES."""
    if not any(Path("/dev").glob("nvidia[0-9]*")) and not Path("/dev/dxg").exists():
        return []  # torch takes seconds to say so
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    ids = visible.split(",") if visible else [str(index) for index in range(torch.cuda.device_count())]
    return ids[: torch.cuda.device_count()]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"

"""Ray itself: started for a run or joined, and the placement of workers on it."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import threading
from dataclasses import dataclass
from pathlib import Path

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from dipo.cluster.address import QUIETLY, is_private, join
from dipo.config import ClusterConfig
from dipo.errors import UserError

LOCALHOST = "127.0.0.1"
GIGABYTE = 10**9
CAPTURES_SHARE = 0.3
"""Fraction of Ray's object store that values kept for the parallel schedule may fill, where nothing else is asked."""


@dataclass(frozen=True)
class Placed:
    """The placement of the workers."""

    group: PlacementGroup
    bundle: dict[str, float]
    """CPUs and GPUs of one worker."""
    workers: int


class RayRuntime:
    """Ray as this run started or joined it."""

    def __init__(self, cfg: ClusterConfig) -> None:
        """Start Ray on this machine for this run alone, or join the one that `cluster.address` names.

        A Ray of the run's own listens on the loopback interface only (see `start_pool`). No SIGTERM reaches it: a batch
        system sends its own to all processes, and if Ray's went first, the driver would wait a minute for them.

        Raises:
            UserError: No Ray answers at the address.
        """
        before = _children()
        # Ray puts a handler of its own in the place of the process's.
        handler = signal.getsignal(signal.SIGTERM)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        try:
            _start(cfg) if is_private(cfg.address) else join(str(cfg.address))
        finally:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, handler)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        self.processes = _children() - before

    def close(self) -> None:
        """End Ray where it is this run's own, else leave it.

        Ray asks its processes to end by SIGTERM and gives each a second. They do not hear it, so each is ended as soon
        as it has been asked; not where the SIGTERM came from elsewhere, for Ray still needs them then.
        """
        over = threading.Event()
        if not any(map(_is_asked_to_end, self.processes)):
            threading.Thread(target=self._end_who_is_asked, args=(over,), daemon=True).start()
        ray.shutdown()
        over.set()

    def _end_who_is_asked(self, over: threading.Event) -> None:
        while not over.wait(0.02):
            for pid in filter(_is_asked_to_end, self.processes):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def _start(cfg: ClusterConfig) -> None:
    if ray.is_initialized():
        raise UserError(
            "cluster=ray: this process uses a Ray already, end it with ray.shutdown(), or take cluster=inline or a "
            "process of its own"
        )
    spill = None if cfg.spill_dir is None else str(Path(cfg.spill_dir).expanduser().resolve())
    ray.init(
        address="local",
        num_cpus=max(os.cpu_count() or 1, (cfg.workers or 2) * cfg.threads),
        include_dashboard=cfg.dashboard,
        dashboard_host=LOCALHOST,
        object_store_memory=None if cfg.object_store_gb is None else int(cfg.object_store_gb * GIGABYTE),
        object_spilling_directory=spill,
        **QUIETLY,
    )


def _children() -> frozenset[int]:
    """Return the process ids of this process's children; none where there is no /proc."""
    return frozenset(
        int(pid) for task in Path("/proc/self/task").glob("*/children") for pid in task.read_text().split()
    )


def _is_asked_to_end(pid: int) -> bool:
    """Return whether a SIGTERM is pending that the process has blocked."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    pending = (int(line.split()[1], 16) for line in status.splitlines() if line.startswith(("SigPnd:", "ShdPnd:")))
    return any(mask >> (signal.SIGTERM - 1) & 1 for mask in pending)


def place(cfg: ClusterConfig, *, cuda: bool) -> Placed:
    """Reserve the CPUs and GPUs of all workers at once, all or none; wait until they are free.

    Raises:
        UserError: The cluster has no such room, not even when it is empty, or it was not free in time.
    """
    resources = ray.cluster_resources()
    workers, gpu = shares(cfg, gpus=int(resources.get("GPU", 0)) if cuda else 0, cuda=cuda)
    cpus = int(resources.get("CPU", 0))
    if workers * cfg.threads > cpus:
        raise UserError(
            f"cluster.workers={workers} with cluster.threads={cfg.threads}: the Ray cluster has {cpus} CPUs, "
            "ask for fewer"
        )
    bundle = {"CPU": float(cfg.threads)} | ({"GPU": gpu} if gpu else {})
    group = placement_group([bundle] * workers, strategy=cfg.placement.upper())
    try:
        ray.get(group.ready(), timeout=cfg.start_minutes * 60)
    except ray.exceptions.GetTimeoutError as error:
        remove_placement_group(group)
        wanted = f"{workers} workers of {cfg.threads} CPUs" + (f" and {gpu:g} GPUs" if gpu else "")
        raise UserError(
            f"the Ray cluster had no room for {wanted} within {cfg.start_minutes:g} minutes, ask for fewer with "
            "cluster.workers or wait longer with cluster.start_minutes"
        ) from error
    return Placed(group, bundle, workers)


def captures_bytes(cfg: ClusterConfig) -> int:
    """Return how many bytes of the object store may be filled at a time."""
    if cfg.captures_gb is not None:
        return int(cfg.captures_gb * GIGABYTE)
    return int(CAPTURES_SHARE * float(ray.cluster_resources().get("object_store_memory", 0)))


def shares(cfg: ClusterConfig, *, gpus: int, cuda: bool) -> tuple[int, float]:
    """Return the number of workers, and the number of GPUs of each."""
    if not cuda:
        return cfg.workers or 2, 0.0
    if not gpus:
        raise UserError("cluster.device=cuda: the Ray cluster has no GPU, take cluster.device=cpu")
    if cfg.gpus_per_worker is None:
        workers = cfg.workers or gpus
        return workers, 1 / math.ceil(workers / gpus)
    # A GPU is shared by a whole number of workers; more than one belong to a worker whole.
    on_each = math.floor(1 / cfg.gpus_per_worker + 1e-9)
    room = gpus * on_each if on_each else math.floor(gpus / cfg.gpus_per_worker)
    workers = cfg.workers or room
    if workers > room:
        raise UserError(
            f"cluster.workers={workers} with cluster.gpus_per_worker={cfg.gpus_per_worker:g}: the Ray cluster has "
            f"{gpus} GPUs, ask for {room} workers at most"
        )
    return workers, cfg.gpus_per_worker

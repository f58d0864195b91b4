"""Ray itself: started for a run or joined, and the places for workers on it."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from dipo.config import ClusterConfig
from dipo.errors import UserError

LOCALHOST = "127.0.0.1"
GIGABYTE = 10**9
CAPTURES_SHARE = 0.3
"""Part of Ray's object store that values kept for the parallel schedule may fill, where nothing else is asked."""


@dataclass(frozen=True)
class Placed:
    """The places of the workers."""

    group: PlacementGroup
    bundle: dict[str, float]
    """CPU and GPU of one worker."""
    workers: int


def is_private(cfg: ClusterConfig) -> bool:
    """Whether the run starts a Ray of its own."""
    return cfg.address in (None, "local")


def connect(cfg: ClusterConfig) -> None:
    """Starts Ray on this machine for this run alone, or joins the one that `cluster.address` names.

    A Ray of the run's own listens on the loopback interface only.

    Raises:
        UserError: No Ray answers at the address.
    """
    # A run reports to nobody, and its workers' output is read through dipo's own log.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    with _own_sigterm():
        _connect(cfg)


@contextlib.contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keeps the process's own way to end: Ray puts a handler of its own in its place."""
    handler = signal.getsignal(signal.SIGTERM)
    yield
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


def _connect(cfg: ClusterConfig) -> None:
    common: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    if is_private(cfg):
        cpus = max(os.cpu_count() or 1, (cfg.workers or 2) * cfg.threads)
        store = None if cfg.object_store_gb is None else int(cfg.object_store_gb * GIGABYTE)
        spill = None if cfg.spill_dir is None else os.path.abspath(os.path.expanduser(cfg.spill_dir))  # noqa: PTH100, PTH111
        ray.init(
            address="local",
            num_cpus=cpus,
            include_dashboard=cfg.dashboard,
            dashboard_host=LOCALHOST,
            object_store_memory=store,
            object_spilling_directory=spill,
            **common,
        )
        return
    try:
        ray.init(address=cfg.address, **common)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(
            f"cluster.address={cfg.address}: no Ray answers there, start one (ray start --head) or leave the option out"
        ) from error


def place(cfg: ClusterConfig, *, cuda: bool) -> Placed:
    """Reserves the CPUs and GPUs of all workers at once, all or none; waits until they are free.

    Raises:
        UserError: The cluster has no such room, not even when it is empty, or it was not free in time.
    """
    resources = ray.cluster_resources()
    workers, gpu = _shares(cfg, gpus=int(resources.get("GPU", 0)) if cuda else 0, cuda=cuda)
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
    """How much of the object store may be filled at a time."""
    if cfg.captures_gb is not None:
        return int(cfg.captures_gb * GIGABYTE)
    return int(CAPTURES_SHARE * float(ray.cluster_resources().get("object_store_memory", 0)))


def _shares(cfg: ClusterConfig, *, gpus: int, cuda: bool) -> tuple[int, float]:
    """Number of workers, and the GPUs of one."""
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

"""A worker's metrics for Ray's dashboard and Prometheus: units done, steps a second, memory."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

INTERVAL_SECONDS = 2.0
"""Least time between two measurements of memory and rate; Ray itself exports no more often."""

TAGS = ("run", "worker")

STATM = Path("/proc/self/statm")
"""The file where Linux tells a process how many pages it holds."""


class Metrics(Protocol):
    """A listener to a worker's progress."""

    def progress(self, done: int) -> None:
        """Take note of how many steps or samples of the current call are done; may be called at every step."""
        ...

    def unit_done(self) -> None:
        """Take note of a finished unit."""
        ...


class NoMetrics:
    """Metrics of a worker in the driver's process, which nobody collects."""

    def progress(self, done: int) -> None:
        """Ignore the progress."""

    def unit_done(self) -> None:
        """Ignore the unit."""


class RayMetrics:
    """A worker's metrics within a Ray actor.

    Ray exports them on each node's metrics port as `ray_dipo_...`, where its packages for that are installed
    (`ray[default]`, as in Ray's images); elsewhere they go nowhere.
    """

    def __init__(self, *, run: str, worker: int, device: str, clock: Callable[[], float] = time.monotonic) -> None:
        """Declare the metrics.

        Args:
            run: Name of the run, the same for all its workers.
            worker: Rank of the worker; one that replaces another takes over its rank.
            device: `cpu` or `cuda`.
            clock: Function that returns seconds.
        """
        from ray.util.metrics import Counter, Gauge

        tags = {"run": run, "worker": str(worker)}

        def declared(kind: Any, name: str, description: str) -> Any:
            metric = kind(name, description=description, tag_keys=TAGS)
            metric.set_default_tags(tags)
            return metric

        self._units = declared(Counter, "dipo_units_done", "Units that the worker has finished, alone or with others.")
        self._rate = declared(Gauge, "dipo_steps_per_second", "Steps, or samples in calibration, a second.")
        self._memory = declared(Gauge, "dipo_memory_mb", "Resident memory of the worker.")
        self._gpu_memory = None
        if device == "cuda":
            self._gpu_memory = declared(Gauge, "dipo_gpu_memory_mb", "GPU memory that the worker keeps.")
        self._clock = clock
        self._done, self._total = sys.maxsize, 0
        """Steps or samples done in the current call, and in all calls."""
        self._heard, self._shown, self._shown_total = -math.inf, 0.0, 0
        """Time of the last progress; time when metrics were shown last, and the total by then."""

    def progress(self, done: int) -> None:
        """Show rate and memory, at most every `INTERVAL_SECONDS`."""
        now = self._clock()
        begins = done <= self._done
        self._total += done if begins else done - self._done
        if begins and now - self._heard > INTERVAL_SECONDS:
            # A pause between two calls is no part of the rate; small units follow each other without one.
            self._shown, self._shown_total = now, self._total
        elif now - self._shown >= INTERVAL_SECONDS:
            self._rate.set((self._total - self._shown_total) / (now - self._shown))
            self._show_memory()
            self._shown, self._shown_total = now, self._total
        self._heard, self._done = now, done

    def unit_done(self) -> None:
        """Count the unit at once: Ray collects the counts before it exports them, and to add one is cheap."""
        self._units.inc()

    def _show_memory(self) -> None:
        resident = resident_mb()
        if resident is not None:
            self._memory.set(resident)
        if self._gpu_memory is not None:
            import torch

            self._gpu_memory.set(torch.cuda.memory_reserved() / 2**20)


def resident_mb() -> float | None:
    """Return the memory that this process holds now, MB; None where the system does not tell."""
    if not STATM.exists():
        return None
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

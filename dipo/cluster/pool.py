"""The workers as one, wherever they run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import onnx_ir as ir

from dipo.cluster.address import set_environment
from dipo.cluster.work import Job
from dipo.cluster.worker import Worker
from dipo.config import ClusterConfig

Progress = Callable[[int], None]
"""Called with what all workers together, or the first of workers in lockstep, have done."""
Notify = Callable[..., None]
"""Told what happens to workers: the name of the event, and its fields by keyword."""


INLINE_CAPTURES_GB = 2.0


class WorkersLostError(Exception):
    """Workers died in a call that needs all of them; others stand in their places, and know nothing of what was."""


class StoredLostError(Exception):
    """Values that workers kept for others went away with a node; what made them has to run again."""


class Pool(Protocol):
    """A number of workers."""

    @property
    def size(self) -> int:
        """Workers at hand; it may fall, and rise again, as workers die and are replaced."""
        ...

    def map(
        self,
        method: str,
        items: Sequence[tuple[Any, ...]],
        *,
        sizes: Sequence[int] | None = None,
        progress: Progress | None = None,
        keep: int = 0,
        **named: Any,
    ) -> Iterator[tuple[int, Any]]:
        """Calls a method once for each item, on whichever worker is free; items begin in their order.

        An item whose worker dies is done again on another one.

        Args:
            method: Name of a method of `Worker`.
            items: Arguments of each call; what `keep` left may be among them.
            sizes: The work in each item, in the unit of `progress`; 1 each by default.
            progress: Called now and then with the work done.
            keep: Number of values behind the first that the method returns and that stay where they were made.
            named: Keyword arguments, the same for all.

        Yields:
            Position of the item and its result, as they get ready; with `keep`, the result is the list of what stands
            for the values that were kept.

        Raises:
            UserError: A worker found the user's input wrong.
            JobError: An item failed as often as is allowed, or no workers are left.
            StoredLostError: A value that was kept is no more.
        """
        ...

    def call(
        self,
        method: str,
        arguments: Sequence[tuple[Any, ...]],
        *,
        progress: Progress | None = None,
        **named: Any,
    ) -> list[Any]:
        """Calls a method of the first `len(arguments)` workers at the same time, each with its own arguments.

        Args:
            method: Name of a method of `Worker`.
            arguments: One tuple for each worker.
            progress: Called now and then with the work that the first one has done: all count the same steps.
            named: Keyword arguments, the same for all.

        Raises:
            UserError: A worker found the user's input wrong.
            WorkersLostError: A worker died; the pool is whole again, as far as there is room.
        """
        ...

    def ask(self, method: str) -> list[Any]:
        """What a method without arguments gives on each worker that still answers."""
        ...

    def captures_bytes(self) -> int:
        """How much may be kept by `map` at a time."""
        ...

    def close(self) -> None:
        """Ends the workers; no process is left behind."""
        ...


class InlinePool:
    """One worker in this process."""

    size = 1

    def __init__(self, job: Job, model: ir.Model, *, captures_gb: float | None = None) -> None:
        """Starts the worker."""
        self.worker = Worker(job, model)
        self.captures_gb = captures_gb

    def map(
        self,
        method: str,
        items: Sequence[tuple[Any, ...]],
        *,
        sizes: Sequence[int] | None = None,
        progress: Progress | None = None,
        keep: int = 0,
        **named: Any,
    ) -> Iterator[tuple[int, Any]]:
        """As `Pool.map`; what is kept stands for itself."""
        done = 0
        for index, item in enumerate(items):
            before = done
            self.worker.on_progress = None if progress is None else lambda own, before=before: progress(before + own)
            result = getattr(self.worker, method)(*item, **named)
            yield index, list(result[1:]) if keep else result
            done += 1 if sizes is None else sizes[index]

    def call(
        self,
        method: str,
        arguments: Sequence[tuple[Any, ...]],
        *,
        progress: Progress | None = None,
        **named: Any,
    ) -> list[Any]:
        """As `Pool.call`."""
        self.worker.on_progress = progress
        return [getattr(self.worker, method)(*own, **named) for own in arguments]

    def ask(self, method: str) -> list[Any]:
        """As `Pool.ask`."""
        return [getattr(self.worker, method)()]

    def captures_bytes(self) -> int:
        """As `Pool.captures_bytes`."""
        return int((self.captures_gb or INLINE_CAPTURES_GB) * 10**9)

    def close(self) -> None:
        """Nothing to end."""


def start_pool(
    job: Job, model: ir.Model, *, cfg: ClusterConfig, notify: Notify, keep_log: Callable[[int, str], None]
) -> Pool:
    """The workers that the configuration asks for, each with the normalised float network.

    Raises:
        UserError: Ray cannot be reached, or has no room for the workers.
    """
    if cfg.kind == "inline":
        return InlinePool(job, model, captures_gb=cfg.captures_gb)
    set_environment(cfg.address)
    from dipo.cluster.ray_pool import RayPool

    return RayPool(job, model, cfg=cfg, notify=notify, keep_log=keep_log)

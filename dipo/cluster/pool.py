"""The pool of workers, with one interface wherever they run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

import onnx_ir as ir

from dipo.algo.activation_cache import StoredRows
from dipo.algo.bench import InPlace, Shared, Task
from dipo.cluster.address import set_environment
from dipo.cluster.messages import Job
from dipo.cluster.worker import Worker
from dipo.config import ClusterConfig

Progress = Callable[[int], None]
"""Function of the work done so far, by all workers together or by the first of workers in lockstep."""
Notify = Callable[..., None]
"""Function of an event that concerns workers: its name, and its fields by keyword."""

T = TypeVar("T")
ResultT = TypeVar("ResultT")
MessageT = TypeVar("MessageT")

INLINE_CAPTURES_GB = 2.0


class WorkersLostError(Exception):
    """Workers died in a call that needs all of them; others have replaced them and lack their state."""


class StoredLostError(Exception):
    """Values that workers kept for others were lost with a node; the tasks that made them have to run again."""


class Pool(Protocol):
    """A pool of workers."""

    @property
    def size(self) -> int:
        """Number of live workers; it falls and rises as workers die and are replaced."""
        ...

    def share(self, value: T) -> Shared[T]:
        """Make a value available to every worker: sent once, whatever their number."""
        ...

    def map(
        self,
        tasks: Sequence[Task[ResultT]],
        *,
        stored: Sequence[Sequence[StoredRows]] | None = None,
        sizes: Sequence[int] | None = None,
        progress: Progress | None = None,
    ) -> Iterator[tuple[int, ResultT]]:
        """Run each task on whichever worker is free; tasks begin in their order.

        A task whose worker dies is run again on another one.

        Args:
            tasks: The tasks.
            stored: For each task what `map_kept` left for it; nothing by default.
            sizes: The work in each task, in the unit of `progress`; 1 each by default.
            progress: Called now and then with the work done.

        Yields:
            Position of each task and its result, as they get ready.

        Raises:
            UserError: A worker found the user's input wrong.
            JobError: A task failed as often as is allowed, or no workers are left.
            StoredLostError: A value that was kept is lost.
        """
        ...

    def map_kept(
        self, tasks: Sequence[Task[tuple[Any, ...]]], *, num_kept: int
    ) -> Iterator[tuple[int, list[StoredRows]]]:
        """Run each task, and keep its results where they were made.

        Args:
            tasks: The tasks; each returns a tuple, whose first member is of no interest.
            num_kept: Number of members after the first.

        Yields:
            Position of each task and handles to the values that were kept, for `map`'s `stored`.

        Raises:
            UserError: A worker found the user's input wrong.
            JobError: As `map`.
        """
        ...

    def call(
        self,
        verb: Callable[[Worker, MessageT], ResultT],
        messages: Sequence[MessageT],
        *,
        progress: Progress | None = None,
    ) -> list[ResultT]:
        """Send each of the first `len(messages)` workers its own message at the same time, and return their answers.

        Args:
            verb: A method of `Worker` that takes one message.
            messages: One for each worker.
            progress: Called now and then with the work that the first one has done: all count the same steps.

        Raises:
            UserError: A worker found the user's input wrong.
            WorkersLostError: A worker died; the pool is complete again, as far as the cluster has room.
        """
        ...

    def ask(self, question: Callable[[Worker], ResultT]) -> list[ResultT]:
        """Call a method of `Worker` without a message; return the results of all workers that still answer."""
        ...

    def captures_bytes(self) -> int:
        """Return how many bytes `map_kept` may keep at a time."""
        ...

    def close(self) -> None:
        """End the workers; no process is left over."""
        ...


class InlinePool:
    """One worker in this process."""

    size = 1

    def __init__(self, job: Job, model: ir.Model, *, captures_gb: float | None = None) -> None:
        """Start the worker."""
        self.worker = Worker(job, model)
        self.captures_gb = captures_gb

    def share(self, value: T) -> Shared[T]:
        """See `Pool.share`."""
        return InPlace(value)

    def map(
        self,
        tasks: Sequence[Task[ResultT]],
        *,
        stored: Sequence[Sequence[StoredRows]] | None = None,
        sizes: Sequence[int] | None = None,
        progress: Progress | None = None,
    ) -> Iterator[tuple[int, ResultT]]:
        """See `Pool.map`."""
        done = 0
        for index, task in enumerate(tasks):
            before = done
            self.worker.on_progress = None if progress is None else lambda own, before=before: progress(before + own)
            yield index, self.worker.run(task, *(() if stored is None else stored[index]))
            done += 1 if sizes is None else sizes[index]

    def map_kept(
        self, tasks: Sequence[Task[tuple[Any, ...]]], *, num_kept: int
    ) -> Iterator[tuple[int, list[StoredRows]]]:
        """See `Pool.map_kept`; the handles are the values themselves."""
        for index, result in self.map(tasks):
            assert len(result) == num_kept + 1
            yield index, list(result[1:])

    def call(
        self,
        verb: Callable[[Worker, MessageT], ResultT],
        messages: Sequence[MessageT],
        *,
        progress: Progress | None = None,
    ) -> list[ResultT]:
        """See `Pool.call`."""
        self.worker.on_progress = progress
        return [verb(self.worker, message) for message in messages]

    def ask(self, question: Callable[[Worker], ResultT]) -> list[ResultT]:
        """See `Pool.ask`."""
        return [question(self.worker)]

    def captures_bytes(self) -> int:
        """See `Pool.captures_bytes`."""
        return int((self.captures_gb or INLINE_CAPTURES_GB) * 10**9)

    def close(self) -> None:
        """Do nothing: there is no process to end."""


def start_pool(
    job: Job, model: ir.Model, *, cfg: ClusterConfig, notify: Notify, keep_log: Callable[[int, str], None]
) -> Pool:
    """Return the workers that the configuration asks for, each with the normalised float network.

    Raises:
        UserError: Ray cannot be reached, or has no room for the workers.
    """
    if cfg.kind == "inline":
        return InlinePool(job, model, captures_gb=cfg.captures_gb)
    set_environment(cfg.address)
    from dipo.cluster.ray_pool import RayPool

    return RayPool(job, model, cfg=cfg, notify=notify, keep_log=keep_log)

"""Tasks handed out to Ray's workers, each to whichever is free; tasks lost with a worker are run again."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import ray
from ray import exceptions as failures

from dipo.algo.activation_cache import StoredRows
from dipo.algo.bench import Task
from dipo.cluster.ray_failures import DEATHS, cause, failure, reason, reraise
from dipo.cluster.ray_worker import WorkerSlot
from dipo.cluster.worker import Worker
from dipo.errors import JobError

if TYPE_CHECKING:
    from dipo.cluster.ray_pool import RayPool

POLL_SECONDS = 0.2


def method_of(seat: WorkerSlot, verb: Callable[..., Any]) -> Any:
    """Return the actor's method that corresponds to one of `Worker`."""
    return getattr(seat.actor, verb.__name__)


class TaskMap:
    """The state of one `RayPool.map`."""

    def __init__(
        self,
        pool: RayPool,
        tasks: Sequence[Task[Any]],
        stored: Sequence[Sequence[StoredRows]],
        sizes: Sequence[int],
        *,
        keep: int = 0,
    ) -> None:
        self.pool, self.tasks, self.stored, self.sizes, self.keep = pool, tasks, stored, sizes, keep
        self.queue = deque(range(len(tasks)))
        self.running: dict[Any, tuple[int, WorkerSlot, list[Any]]] = {}
        self.failed = Counter[int]()
        self.done = 0
        self.lost_values = False

    @property
    def finished(self) -> bool:
        """Whether no task is left to run, or to wait for before the loss of values is reported."""
        return not self.running and (self.lost_values or not self.queue)

    def hand_out(self) -> None:
        """Give the next tasks to the workers that are free."""
        busy = {seat for _, seat, _ in self.running.values()}
        for seat in [seat for seat in self.pool.ready if seat not in busy]:
            if not self.queue or self.lost_values:
                return
            index = self.queue.popleft()
            method = method_of(seat, Worker.run).options(num_returns=1 + self.keep)
            references = method.remote(self.tasks[index], *self.stored[index])
            first, *kept = references if self.keep else [references]
            self.running[first] = index, seat, kept

    def collect(self) -> Iterator[tuple[int, Any]]:
        """Wait a little and yield position and result of the tasks that have finished."""
        if not self.running:
            return
        ready, _ = ray.wait(list(self.running), num_returns=1, timeout=POLL_SECONDS)
        for reference in ready:
            index, seat, kept = self.running.pop(reference)
            error = failure(reference)
            if error is None:
                self.done += self.sizes[index]
                yield index, kept if self.keep else ray.get(reference)
            elif isinstance(cause(error), failures.ObjectLostError):
                self.lost_values = True
            elif isinstance(error, DEATHS):
                self._again(index, seat, error)
            else:
                reraise(error)

    def progress(self) -> int:
        """Return the work done so far, in unfinished tasks too."""
        return self.done + self.pool.progress_of([seat for _, seat, _ in self.running.values()])

    def _again(self, index: int, seat: WorkerSlot, error: BaseException) -> None:
        self.failed[index] += 1
        self.pool.lose(seat, error)
        retries = self.pool.cfg.retries
        if self.failed[index] > retries:
            raise JobError(
                f"{self.tasks[index].name}: its worker died {self.failed[index]} times ({reason(error)}), find out why "
                "in Ray's logs, or allow more with cluster.retries"
            )
        self.pool.notify("retry", work=self.tasks[index].name, item=index, attempt=self.failed[index] + 1)
        self.queue.appendleft(index)

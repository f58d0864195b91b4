"""A pool of Ray actors in a placement group; one that dies is replaced, and its work is done again."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import onnx_ir as ir
import ray
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from dipo.algo.activation_cache import StoredRows
from dipo.algo.bench import Shared, Task
from dipo.cluster.logs import LogFetcher
from dipo.cluster.messages import Job
from dipo.cluster.network import PackedNetwork
from dipo.cluster.pool import Notify, Progress, StoredLostError, WorkersLostError
from dipo.cluster.process_group import CollectiveError
from dipo.cluster.ray_failures import answered, cause, failure, reason, reraise
from dipo.cluster.ray_map import POLL_SECONDS, TaskMap, method_of
from dipo.cluster.ray_runtime import RayRuntime, captures_bytes, place
from dipo.cluster.ray_worker import ACTOR, WorkerSlot
from dipo.cluster.worker import Worker
from dipo.config import ClusterConfig
from dipo.errors import JobError

T = TypeVar("T")
ResultT = TypeVar("ResultT")
MessageT = TypeVar("MessageT")

GRACE_SECONDS = 5.0
"""Seconds that the other workers may take to notice that one of them has died."""
FAREWELL_SECONDS = 2.0
"""Seconds that the workers have to hand in their logs at the end."""


class RayPool:
    """A pool of Ray actors, one for each worker."""

    def __init__(
        self, job: Job, model: ir.Model, *, cfg: ClusterConfig, notify: Notify, keep_log: Callable[[int, str], None]
    ) -> None:
        """Start or join Ray, and start the workers on it.

        Raises:
            UserError: Ray cannot be reached, or has no room for the workers.
        """
        self.cfg, self.notify = cfg, notify
        self.logs = LogFetcher(keep_log)
        self.engine = RayRuntime(cfg)
        self.failed_starts = Counter[int]()
        self.seats: list[WorkerSlot] = []
        self.ready: list[WorkerSlot] = []
        self.group: PlacementGroup | None = None
        with contextlib.ExitStack() as undo:
            undo.callback(self.close)
            placed = place(cfg, cuda=job.device == "cuda")
            self.group, self.bundle = placed.group, placed.bundle
            # One copy on each node, whatever the number of workers.
            self.shared = ray.put(job), ray.put(PackedNetwork.of(model))
            self.seats = [self._take(index) for index in range(placed.workers)]
            self._fill(patience=cfg.start_minutes * 60)
            if len(self.ready) < placed.workers:
                raise JobError(
                    f"{placed.workers - len(self.ready)} of {placed.workers} workers did not start within "
                    f"{cfg.start_minutes:g} minutes, look at the cluster (ray status) or ask for fewer with "
                    "cluster.workers"
                )
            undo.pop_all()

    @property
    def size(self) -> int:
        """Number of live workers."""
        return len(self.ready)

    def share(self, value: T) -> Shared[T]:
        """See `Pool.share`."""
        return InStore(ray.put(value))

    def map(
        self,
        tasks: Sequence[Task[ResultT]],
        *,
        stored: Sequence[Sequence[StoredRows]] | None = None,
        sizes: Sequence[int] | None = None,
        progress: Progress | None = None,
    ) -> Iterator[tuple[int, ResultT]]:
        """See `Pool.map`."""
        return self._map(TaskMap(self, tasks, stored or [()] * len(tasks), sizes or [1] * len(tasks)), progress)

    def map_kept(
        self, tasks: Sequence[Task[tuple[Any, ...]]], *, num_kept: int
    ) -> Iterator[tuple[int, list[StoredRows]]]:
        """See `Pool.map_kept`."""
        return self._map(TaskMap(self, tasks, [()] * len(tasks), [1] * len(tasks), keep=num_kept), None)

    def _map(self, task: TaskMap, progress: Progress | None) -> Iterator[tuple[int, Any]]:
        while not task.finished:
            self._admit()
            self.logs.fetch(self._actors())
            task.hand_out()
            if not task.running and not self.ready:
                self._wait_for_anyone()
            yield from task.collect()
            if progress is not None:
                progress(task.progress())
        if task.lost_values:
            raise StoredLostError

    def call(
        self,
        verb: Callable[[Worker, MessageT], ResultT],
        messages: Sequence[MessageT],
        *,
        progress: Progress | None = None,
    ) -> list[ResultT]:
        """See `Pool.call`."""
        seats = self.ready[: len(messages)]
        calls = [method_of(seat, verb).remote(message) for seat, message in zip(seats, messages, strict=True)]
        waiting, broken = list(calls), None
        while waiting and broken is None:
            done, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=POLL_SECONDS)
            broken = next(filter(None, map(failure, done)), None)
            self.logs.fetch(self._actors())
            if progress is not None and waiting and broken is None:
                progress(self.progress_of(seats[:1]))
        if broken is None:
            return list(ray.get(calls))
        self._recover(seats, calls, broken)
        raise WorkersLostError(reason(broken))

    def ask(self, question: Callable[[Worker], ResultT]) -> list[ResultT]:
        """See `Pool.ask`."""
        answers = [method_of(seat, question).remote() for seat in self.ready]
        ray.wait(answers, num_returns=len(answers), timeout=GRACE_SECONDS)
        return [ray.get(answer) for answer in answers if answered(answer)]

    def captures_bytes(self) -> int:
        """See `Pool.captures_bytes`."""
        return captures_bytes(self.cfg)

    def close(self) -> None:
        """Kill the workers, and Ray where it is this run's own."""
        self.logs.fetch(self._actors(), patience=FAREWELL_SECONDS)
        for seat in self.seats:
            ray.kill(seat.actor)
        if self.group is not None:
            ray.util.remove_placement_group(self.group)
        self.engine.close()

    def lose(self, seat: WorkerSlot, error: BaseException) -> None:
        """Replace a worker that was lost, in the same slot; do nothing where that was done already."""
        if seat not in self.seats:
            return
        self.notify("worker_dies", worker=seat.index, reason=reason(error))
        ray.kill(seat.actor)
        self.ready = [other for other in self.ready if other is not seat]
        self.seats[self.seats.index(seat)] = self._take(seat.index)

    def _actors(self) -> dict[int, Any]:
        return {seat.index: seat.actor for seat in self.ready}

    def _take(self, index: int) -> WorkerSlot:
        """Start a worker; it may have to wait until Ray finds another node for a lost one's slot."""
        assert self.group is not None
        strategy = PlacementGroupSchedulingStrategy(self.group, placement_group_bundle_index=index)
        actor = ACTOR.options(
            num_cpus=self.bundle["CPU"],
            num_gpus=self.bundle.get("GPU", 0),
            scheduling_strategy=strategy,
            runtime_env={"env_vars": {"OMP_NUM_THREADS": str(self.cfg.threads), "GOMP_SPINCOUNT": "1000"}},
        ).remote(*self.shared, index)
        return WorkerSlot(index, actor, actor.node.remote())

    def _admit(self) -> None:
        """Add the workers that have started since the last call to those that are ready."""
        waiting = {seat.started: seat for seat in self.seats if seat not in self.ready}
        if not waiting:
            return
        started, _ = ray.wait(list(waiting), num_returns=len(waiting), timeout=0)
        for reference in started:
            seat, error = waiting[reference], failure(reference)
            if error is None:
                self.ready = sorted([*self.ready, seat], key=lambda seat: seat.index)
                self.notify("worker_starts", worker=seat.index, node=ray.get(reference))
                self.failed_starts[seat.index] = 0
            else:
                self._start_failed(seat, error)

    def _start_failed(self, seat: WorkerSlot, error: BaseException) -> None:
        self.failed_starts[seat.index] += 1
        if self.failed_starts[seat.index] > self.cfg.retries:
            raise JobError(
                f"worker {seat.index} failed to start {self.failed_starts[seat.index]} times ({reason(error)}), see "
                "that every node of the cluster has dipo and what it needs"
            ) from error
        self.lose(seat, error)

    def _fill(self, *, patience: float) -> None:
        """Wait until all slots have a worker that is ready, but no longer than `patience` seconds."""
        deadline = time.monotonic() + patience
        while True:
            self._admit()
            if len(self.ready) == len(self.seats) or time.monotonic() > deadline:
                return
            time.sleep(POLL_SECONDS)

    def _wait_for_anyone(self) -> None:
        deadline = time.monotonic() + self.cfg.start_minutes * 60
        while not self.ready:
            self._admit()
            if time.monotonic() > deadline:
                raise JobError(
                    f"all workers were lost and none could be started again within {self.cfg.start_minutes:g} minutes, "
                    "look at the cluster (ray status)"
                )
            time.sleep(POLL_SECONDS)

    def _recover(self, seats: Sequence[WorkerSlot], calls: Sequence[Any], broken: BaseException) -> None:
        """Replace the workers that died, and those stuck in a call that another one has left."""
        ray.wait(list(calls), num_returns=len(calls), timeout=GRACE_SECONDS)
        alive = {seat: seat.actor.node.remote() for seat in seats}
        ray.wait(list(alive.values()), num_returns=len(alive), timeout=GRACE_SECONDS)
        dead = [seat for seat in seats if not answered(alive[seat])]
        if not dead and not isinstance(cause(broken), CollectiveError):
            reraise(broken)
        _, unfinished = ray.wait(list(calls), num_returns=len(calls), timeout=0)
        stuck = [seat for seat, call in zip(seats, calls, strict=True) if call in unfinished and seat not in dead]
        for seat in (*dead, *stuck):
            self.lose(seat, broken)
        self._fill(patience=self.cfg.replace_seconds)
        if not self.ready:
            self._wait_for_anyone()

    def progress_of(self, seats: Sequence[WorkerSlot]) -> int:
        """Return the work that some workers have done in their current calls, all together."""
        asked = [seat.actor.progress.remote() for seat in seats]
        answered, _ = ray.wait(asked, num_returns=len(asked), timeout=GRACE_SECONDS)
        return sum(ray.get(reference) for reference in answered if failure(reference) is None)


@dataclass(frozen=True, eq=False)
class InStore(Generic[T]):
    """A value in Ray's object store."""

    reference: Any

    def get(self) -> T:
        """Return the value; arrays in it are mapped, not copied."""
        value: T = ray.get(self.reference)
        return value

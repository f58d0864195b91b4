"""One worker: a share of the samples, a device, and five methods.

`run` does a task by itself. `begin`, `solve`, `replay` and `end` go through the units in lockstep with other workers.
The work itself, on a unit or in a task, is that of the step and the task.
"""

from __future__ import annotations

import dataclasses
import resource
import socket
import time
from collections.abc import Callable
from typing import TypeVar

import onnx_ir as ir
import torch

from dipo.algo.activation_cache import StoredRows
from dipo.algo.bench import Bench, Task
from dipo.algo.collectives import Collectives, SingleWorker
from dipo.algo.network_pair import NetworkPair
from dipo.algo.unit_solver import UnitResult, UnitSolver
from dipo.cluster.glibc import keep_freed_memory
from dipo.cluster.messages import Begin, Job, Replay, Solve
from dipo.cluster.metrics import Metrics, NoMetrics
from dipo.cluster.process_group import Group, TorchCollectives, listen

ResultT = TypeVar("ResultT")


class Worker:
    """A worker, on Ray or in this process, which keeps its cached values between calls."""

    def __init__(self, job: Job, model: ir.Model) -> None:
        """Make a worker for a normalised float network.

        Args:
            job: Data and settings that are the same for all workers.
            model: The network; it is not changed.
        """
        torch.set_num_threads(job.threads)
        keep_freed_memory()
        self.bench = Bench(
            model=model,
            plan=job.plan,
            samples=job.samples,
            rules=job.rules,
            calib=job.calib,
            device=torch.device(job.device),
            threads=job.threads,
            compile=job.compile,
            progress=self._progress,
        )
        self.done = 0
        self.on_progress: Callable[[int], None] | None = None
        self.metrics: Metrics = NoMetrics()
        self.collectives: Collectives = SingleWorker()
        self.listener: socket.socket | None = None
        self.solver: UnitSolver | None = None

    def peak_rss_mb(self) -> float:
        """Return the most memory that the process has held, MB."""
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    def listen(self, _: None) -> tuple[str, int]:
        """Return host and port where the other workers can connect to this one."""
        self.listener = listen()
        host, port = self.listener.getsockname()[:2]
        return host, port

    def join(self, group: Group | None) -> None:
        """Join the workers that pass through the units together; None to work alone.

        Raises:
            CollectiveError: They cannot be reached.
        """
        if isinstance(self.collectives, TorchCollectives):
            self.collectives.close()
        listener, self.listener = self.listener, None
        self.collectives = SingleWorker() if group is None else TorchCollectives(group, self.bench.device, listener)

    def run(self, task: Task[ResultT], *stored: StoredRows) -> ResultT:
        """Run a task alone and return its result.

        Args:
            task: The task.
            stored: Values that other tasks kept for it.
        """
        self.done = 0
        result = task.run(self.bench, *stored)
        if isinstance(result, UnitResult):
            self.metrics.unit_done()
        return result

    def begin(self, message: Begin) -> str | None:
        """Read this worker's samples for a pass through the units.

        Returns:
            The reason why the kernels of reconstruction are not compiled, where the step trains and that was wanted;
            else None.
        """
        shard, step = message.shard, message.step
        pair = NetworkPair(
            self.bench.model, plan=self.bench.plan, units=message.units, quantized=message.quantized.get(),
            batches=shard.batches, owners=shard.owners, collectives=self.collectives, device=self.bench.device,
            samples=self.bench.samples,
        )  # fmt: skip
        pair.read_samples(self.bench.calib_inputs, with_float=step.carries_float)
        self.solver = UnitSolver(
            step, pair, self.bench, pieces=shard.pieces, shard_ranks=shard.shard_ranks, held_out=shard.held_out
        )
        return self.bench.kernels.fallback if step.num_steps else None

    def solve(self, message: Solve) -> UnitResult:
        """Solve the next unit together with the other workers, and move on to the one after it."""
        assert self.solver is not None
        self.done = 0
        start = time.perf_counter()
        result = self.solver.solve(message.unit, warm_start=message.warm_start)
        self.metrics.unit_done()
        return dataclasses.replace(result, seconds=time.perf_counter() - start)

    def replay(self, message: Replay) -> None:
        """Apply earlier results of the next units, and move on to the one after them."""
        assert self.solver is not None
        for unit, result in zip(message.units, message.results, strict=True):
            self.solver.replay(unit, result)

    def end(self, _: None) -> None:
        """Drop the cached values."""
        self.solver = None

    def _progress(self, done: int) -> None:
        self.done = done
        self.metrics.progress(done)
        if self.on_progress is not None:
            self.on_progress(done)

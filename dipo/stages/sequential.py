"""The sequential schedule: one unit after the other, each shared by all workers, after the quantized ones before it.

A worker may die at any time. Then the pass begins again with the live workers, applies the results of the units so far,
which costs a forward pass, and solves the unit once more.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from dipo.algo.activation_cache import cut
from dipo.algo.held_out import held_out_samples
from dipo.algo.step import Step, UnitStep
from dipo.algo.unit_solver import UnitResult
from dipo.cluster.messages import Begin, Replay, Solve
from dipo.cluster.pool import Pool, Progress, WorkersLostError
from dipo.cluster.process_group import Group
from dipo.cluster.sharding import shards_of
from dipo.cluster.worker import Worker
from dipo.errors import JobError
from dipo.graph.plan import Plan, QuantizedModel
from dipo.graph.units import Unit
from dipo.report.terminal import Terminal
from dipo.stages.context import Context

log = logging.getLogger("dipo")


class SequentialSchedule:
    """A pass of one step over the units."""

    def __init__(
        self,
        context: Context,
        step: UnitStep,
        *,
        units: Sequence[Unit],
        quantized: QuantizedModel,
        warm_starts: Mapping[int, UnitResult] = MappingProxyType({}),
    ) -> None:
        """Stand in front of the first unit; no worker does anything yet.

        Args:
            context: Context of the job.
            step: The step that solves each unit, bound to the network.
            units: All units of the network.
            quantized: The network after the step before.
            warm_starts: Results of an earlier phase, by index of the unit.
        """
        self.warm_starts = warm_starts
        self.context, self.config, self.pool = context, context.config, context.pool
        self.step, self.units, self.quantized = step, units, quantized
        self.solved = solved_units(units, context.loaded.plan)
        self.passed: list[UnitResult] = []
        self.standing: int | None = None
        """Number of units that the workers have passed; None: they have not begun the pass."""
        self.size = 0

    def skip(self, result: UnitResult) -> None:
        """Pass the next unit that has layers, with an earlier result."""
        self._next()
        self.passed.append(result)

    def take(self) -> UnitResult:
        """Solve the next unit that has layers.

        Raises:
            JobError: Its workers died more often than is allowed.
        """
        unit = self._next()
        for attempt in range(self.config.cluster.retries + 1):
            try:
                self._catch_up()
                result = self._solve(unit)
            except WorkersLostError as error:
                self.standing, reason = None, str(error)
                log.warning("unit %s: a worker died (%s), attempt %d", unit.name, reason, attempt + 1)
                self.context.events.emit("retry", work=unit.name, attempt=attempt + 2, reason=reason)
                continue
            self.passed.append(result)
            self.standing = len(self.passed)
            return result
        raise JobError(
            f"unit {unit.name}: its workers died {self.config.cluster.retries + 1} times ({reason}), find out why in "
            "Ray's logs, or allow more with cluster.retries"
        )

    def end(self) -> QuantizedModel:
        """Drop the workers' cached values and return the network with all units' results."""
        if self.standing is not None:
            try:
                self.pool.call(Worker.end, [None] * self.size)
            except WorkersLostError as error:
                log.warning("a worker died at the end of a walk: %s", error)
        return self.quantized.with_updates(self.passed, self.context.loaded.plan)

    def _next(self) -> Unit:
        """Return the next unit that has layers; those in front of it are only run."""
        while (unit := self.units[len(self.passed)]) not in self.solved:
            self.passed.append(UnitResult({}, {}))
        return unit

    def _catch_up(self) -> None:
        """Bring the workers to the next unit."""
        if self.standing is None:
            self._begin()
            self.standing = 0
        if self.standing < len(self.passed):
            message = Replay(self.units[self.standing : len(self.passed)], self.passed[self.standing :])
            self.pool.call(Worker.replay, [message] * self.size)
            self.standing = len(self.passed)

    def _begin(self) -> None:
        shards = shards_of(
            cut(len(self.context.loaded.data.calib), self.config.data.batch_size),
            workers=self.pool.size,
            # What is only measured adds up batch by batch, whoever holds them: all workers can take part.
            pieces=self.pool.size if self.step.batch_size is None else self.config.cluster.grad_shards,
            batch_size=self.step.batch_size,
            held_out=held_out_for(self.step, len(self.context.loaded.data.calib)),
        )
        self.size = len(shards)
        join(self.pool, self.size)
        quantized = self.pool.share(self.quantized)
        begins = [Begin(self.step, self.units, quantized, shard) for shard in shards]
        tell_of_eager_kernels(self.pool.call(Worker.begin, begins), self.context.terminal)

    def _solve(self, unit: Unit) -> UnitResult:
        step = self.step
        title = f"{step.unit_title} {self.solved.index(unit) + 1}/{len(self.solved)} {unit.name}"
        if not step.num_steps:
            result = self._first(unit)
            log.info("%s: %s, %.2f s", title, step.name, result.seconds)
            return result
        with self.context.terminal.task(title, step.num_steps, "steps") as progress:
            result = self._first(unit, progress)
        log.info("%s: loss %.4g -> %.4g, %.2f s", title, result.loss_first, result.loss_last, result.seconds)
        return result

    def _first(self, unit: Unit, progress: Progress | None = None) -> UnitResult:
        """Let the workers solve a unit, and return the first one's result: in lockstep, the others' is the same."""
        message = Solve(unit, self.warm_starts.get(unit.index))
        return self.pool.call(Worker.solve, [message] * self.size, progress=progress)[0]


def held_out_for(step: Step, num_samples: int) -> tuple[int, ...]:
    """Return the indices of the samples that a step must not be fitted to; none where its result is not judged."""
    return held_out_samples(num_samples) if step.guarded else ()


def join(pool: Pool, size: int) -> None:
    """Connect the first `size` workers to a group."""
    if size == 1:
        pool.call(Worker.join, [None])
        return
    ((host, port),) = pool.call(Worker.listen, [None])
    pool.call(Worker.join, [Group(rank, size, host, port) for rank in range(size)])


def solved_units(units: Sequence[Unit], plan: Plan) -> list[Unit]:
    """Return the units that have layers to quantize."""
    return [unit for unit in units if any(name in plan.layers for name in unit.layers)]


def tell_of_eager_kernels(reasons: Sequence[str | None], terminal: Terminal) -> None:
    """Tell the user where kernels are not compiled."""
    reason = next(filter(None, reasons), None)
    if reason is not None:
        log.warning("no compiled kernels: %s", reason)
        terminal.say("no compiled kernels, reconstruction runs two to three times slower (the reason is in dipo.log)")

"""One unit after the other: the workers share each, behind the quantized units before it.

A worker may die at any time. Then the walk begins again with the workers that are there, takes what was found for the
units so far, which costs a forward pass, and solves the unit once more.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dipo.algo.calibrate import Calibration
from dipo.algo.captures import cut
from dipo.algo.reconstruct import Phase
from dipo.algo.sweep import UnitResult
from dipo.cluster.group import Group
from dipo.cluster.layout import shards_of
from dipo.cluster.pool import Pool, WorkersLostError
from dipo.cluster.work import TimedResult, Work
from dipo.errors import JobError
from dipo.graph.plan import Plan, QuantizedModel
from dipo.graph.units import Unit
from dipo.report.terminal import Terminal
from dipo.stages.context import Context
from dipo.stages.seeds import unit_seed

log = logging.getLogger("dipo")


@dataclass(frozen=True)
class Begun:
    """What the parallel schedule made of the units before they are polished in their order."""

    results: Mapping[int, UnitResult]
    """By index of the unit."""
    phase: Phase


class Walk:
    """A step of the algorithm, on its way through the units."""

    def __init__(
        self,
        context: Context,
        step: str,
        *,
        units: Sequence[Unit],
        quantized: QuantizedModel,
        calibration: Calibration,
        begun: Begun | None = None,
    ) -> None:
        """Stands in front of the first unit; no worker does anything yet.

        Args:
            context: Of the job.
            step: `reconstruct` or `bias_correction`.
            units: All of the network.
            quantized: The network as the step before left it.
            calibration: What calibration saw.
            begun: What an earlier phase made of the units.
        """
        self.context, self.config, self.pool = context, context.config, context.pool
        self.units, self.quantized, self.calibration, self.begun = units, quantized, calibration, begun
        self.trains = step == "reconstruct"
        self.title = "unit" if begun is None else "polish unit"
        self.phase = Phase(0, self.config.algo.iters) if begun is None else begun.phase
        self.solved = solved_units(units, context.loaded.plan)
        self.passed: list[UnitResult] = []
        self.standing: int | None = None
        """Units that the workers have passed; None: they have no sweep."""
        self.size = 0

    @property
    def num_steps(self) -> int:
        """Optimizer steps of a unit."""
        return len(self.phase) if self.trains else 0

    def skip(self, result: UnitResult) -> None:
        """Goes past the next unit that has layers with what was found for it earlier."""
        self._next()
        self.passed.append(result)

    def take(self) -> TimedResult:
        """Solves the next unit that has layers.

        Raises:
            JobError: Its workers died more often than is allowed.
        """
        unit = self._next()
        for attempt in range(self.config.cluster.retries + 1):
            try:
                self._catch_up()
                timed = self._reconstruct(unit) if self.trains else self._correct(unit)
            except WorkersLostError as error:
                self.standing, reason = None, str(error)
                log.warning("unit %s: a worker died (%s), attempt %d", unit.name, reason, attempt + 1)
                self.context.events.emit("retry", work=unit.name, attempt=attempt + 2, reason=reason)
                continue
            self.passed.append(timed.result)
            self.standing = len(self.passed)
            return timed
        raise JobError(
            f"unit {unit.name}: its workers died {self.config.cluster.retries + 1} times ({reason}), find out why in "
            "Ray's logs, or allow more with cluster.retries"
        )

    def end(self) -> QuantizedModel:
        """Lets the workers' captures go; the network as it now is."""
        if self.standing is not None:
            try:
                self.pool.call("end_sweep", [()] * self.size)
            except WorkersLostError as error:
                log.warning("a worker died at the end of a walk: %s", error)
        return self.quantized.having(self.passed, self.context.loaded.plan)

    def _next(self) -> Unit:
        """The next unit that has layers; those in front of it are only passed through."""
        while (unit := self.units[len(self.passed)]) not in self.solved:
            self.passed.append(UnitResult({}, {}))
        return unit

    def _catch_up(self) -> None:
        """Brings the workers to where the walk is."""
        if self.standing is None:
            self._begin()
            self.standing = 0
        if self.standing < len(self.passed):
            units = self.units[self.standing : len(self.passed)]
            results = self.passed[self.standing :]
            self.pool.call("replay", [(units, results)] * self.size, corrections=not self.trains)
            self.standing = len(self.passed)

    def _begin(self) -> None:
        shards = shards_of(
            cut(len(self.context.loaded.data.calib), self.config.data.batch_size),
            workers=self.pool.size,
            pieces=self.context.pieces,
            batch_size=self.config.algo.batch_size,
        )
        self.size = len(shards)
        join(self.pool, self.size)
        arguments = [(self.units, self.quantized, shard) for shard in shards]
        self.pool.call("start_sweep", arguments, with_float=self.trains)
        if self.trains:
            tell_of_eager_kernels(self.pool.call("prepare_kernels", [()] * self.size), self.context.terminal)

    def _reconstruct(self, unit: Unit) -> TimedResult:
        begun = None if self.begun is None else self.begun.results.get(unit.index)
        algo = self.config.algo
        work = Work(algo, self.phase, algo.correct_bias, unit_seed(self.config.seed, unit, self.phase))
        arguments = [(unit, work, begun)] * self.size
        title = f"{self.title} {self.solved.index(unit) + 1}/{len(self.solved)} {unit.name}"
        with self.context.terminal.task(title, len(self.phase), "steps") as progress:
            timed = self._first("reconstruct", arguments, progress=progress)
        log.info("%s: loss %.4g -> %.4g, %.2f s", title, timed.result.loss_first, timed.result.loss_last, timed.seconds)
        return timed

    def _correct(self, unit: Unit) -> TimedResult:
        means = {
            name: self.calibration.channel_means[name] for name in unit.layers if name in self.calibration.channel_means
        }
        timed = self._first("correct_bias", [(unit, means)] * self.size)
        log.info("unit %s: bias corrected, %.2f s", unit.name, timed.seconds)
        return timed

    def _first(self, method: str, arguments: list[tuple[Any, ...]], **how: Any) -> TimedResult:
        """What the first worker answers; the others, in lockstep, answer the same."""
        results: list[TimedResult] = self.pool.call(method, arguments, **how)
        return results[0]


def join(pool: Pool, size: int) -> None:
    """Makes the first `size` workers a group."""
    if size == 1:
        pool.call("join", [(None,)])
        return
    ((host, port),) = pool.call("listen", [()])
    pool.call("join", [(Group(rank, size, host, port),) for rank in range(size)])


def solved_units(units: Sequence[Unit], plan: Plan) -> list[Unit]:
    """The units that have something to solve."""
    return [unit for unit in units if any(name in plan.layers for name in unit.layers)]


def tell_of_eager_kernels(reasons: Sequence[str | None], terminal: Terminal) -> None:
    """Says so where there is no compiler."""
    reason = next(filter(None, reasons), None)
    if reason is not None:
        log.warning("no compiled kernels: %s", reason)
        terminal.say("no compiled kernels, reconstruction runs two to three times slower (the reason is in dipo.log)")

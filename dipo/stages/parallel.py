"""All units at the same time: each is solved by one worker, behind the float network's values.

The float network runs once, sharded over the workers, and leaves what the units read in the object store. Where that
would be too much at a time, units are taken in waves, and each wave has a pass of its own.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dipo.algo.captures import cut
from dipo.algo.reconstruct import Phase
from dipo.algo.sweep import UnitResult
from dipo.cluster.pool import Progress, StoredLostError
from dipo.cluster.work import AloneWork, TimedResult, UnitCost, Work
from dipo.errors import JobError
from dipo.graph.plan import QuantizedModel
from dipo.graph.units import Unit
from dipo.stages.checkpoint import UnitFiles, load_units
from dipo.stages.context import Context
from dipo.stages.seeds import unit_seed

log = logging.getLogger("dipo")

STEP = "parallel"


class Alone:
    """The first phase of the parallel schedule."""

    def __init__(self, context: Context, units: Sequence[Unit], quantized: QuantizedModel, phase: Phase) -> None:
        """Does nothing yet.

        Args:
            context: Of the job.
            units: Those that have layers.
            quantized: The network as the step before left it.
            phase: The steps to run.
        """
        self.context, self.units, self.quantized, self.phase = context, units, quantized, phase
        self.files = UnitFiles(context.folder, STEP)
        algo = context.config.algo
        self.is_last = phase.stop == algo.iters
        self.batches = cut(len(context.loaded.data.calib), context.config.data.batch_size)

    def run(self) -> dict[int, TimedResult]:
        """Solves the units that the run folder does not have yet; all results by index of the unit."""
        done = load_units(self.context, self.files, self.units, self.quantized)
        todo = [unit for unit in self.units if unit.index not in done]
        if not todo:
            return done
        title = f"{len(todo)} units alone"
        costs = self._costs(todo)
        todo.sort(key=lambda unit: costs[unit.index].seconds, reverse=True)
        with self.context.terminal.task(title, len(todo) * len(self.phase), "steps") as progress:
            lost, total = 0, len(todo)
            while todo:
                wave = self._wave(todo, costs)
                before = (total - len(todo)) * len(self.phase)
                try:
                    for unit, timed in self._solve(wave, functools.partial(_further, progress, before)):
                        done[unit.index] = timed
                        todo.remove(unit)
                except StoredLostError as error:
                    lost += 1
                    if lost > self.context.config.cluster.retries:
                        raise JobError(
                            f"captured values went away with their nodes {lost} times, look at the cluster (ray "
                            "status), or allow more with cluster.retries"
                        ) from error
                    log.warning("captured values went away with a node: they are captured once more")
        return done

    def _costs(self, units: Sequence[Unit]) -> dict[int, UnitCost]:
        ((_, costs),) = self.context.pool.map("unit_costs", [(units,)])
        return dict(zip((unit.index for unit in units), costs, strict=True))

    def _wave(self, todo: Sequence[Unit], costs: Mapping[int, UnitCost]) -> list[Unit]:
        """The next units, as many as have room for what they read; one at least."""
        room = self.context.pool.captures_bytes()
        sizes: dict[str, int] = {}
        wave: list[Unit] = []
        for unit in todo:
            sizes |= costs[unit.index].input_bytes
            if wave and sum(sizes.values()) * self.batches[-1].stop > room:
                break
            wave.append(unit)
        return wave

    def _solve(self, wave: Sequence[Unit], progress: Progress) -> Iterator[tuple[Unit, TimedResult]]:
        """Captures what the units read, then solves them, longest first."""
        names = list(dict.fromkeys(name for unit in wave for name in unit.inputs))
        kept = self._capture(names)
        items = [
            (self._work(unit), *(parts[names.index(name)] for name in unit.inputs for parts in kept)) for unit in wave
        ]
        sizes = [len(self.phase)] * len(wave)
        pool = self.context.pool
        for index, timed in pool.map("solve_alone", items, sizes=sizes, progress=progress, quantized=self.quantized):
            unit = wave[index]
            self.files.save(unit, timed)
            self._tell(unit, timed)
            yield unit, timed

    def _capture(self, names: Sequence[str]) -> list[list[Any]]:
        """What stands for the values, by part of the samples and name."""
        pool = self.context.pool
        chunks = self.context.shares(len(self.context.loaded.data.calib))
        kept: list[list[Any]] = [[] for _ in chunks]
        for index, values in pool.map("capture", [(chunk, names) for chunk in chunks], keep=len(names)):
            kept[index] = values
        return kept

    def _work(self, unit: Unit) -> AloneWork:
        algo = self.context.config.algo
        work = Work(algo, self.phase, self.is_last and algo.correct_bias, unit_seed(self.context.config.seed, unit))
        return AloneWork(unit, unit.inputs, self.batches, work)

    def _tell(self, unit: Unit, timed: TimedResult) -> None:
        first, last = timed.result.loss_first, timed.result.loss_last
        log.info("unit %s alone: loss %.4g -> %.4g, %.2f s", unit.name, first, last, timed.seconds)
        self.context.unit_ends(STEP, unit, timed, steps=len(self.phase))


def _further(progress: Progress, before: int, steps: int) -> None:
    progress(before + steps)


def results_of(timed: Mapping[int, TimedResult]) -> dict[int, UnitResult]:
    """The results without their times."""
    return {index: one.result for index, one in timed.items()}

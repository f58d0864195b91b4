"""The parallel schedule: all units at the same time, each solved by one worker on inputs that were captured before.

Held-out samples (`dipo.algo.held_out`) judge a unit once, at the end of its last phase, be that the polish or, without
one, the last round: half way, rounding has not come to rest, and what is to be polished need not be better yet. The
best is kept of three: the unit in front of all rounds, behind the rounds, and behind the last phase.

There are two rounds. In a round, units read the values of the network as it was before the round, with the biases of
its layers corrected: that takes a forward pass, and without it the shifts of the units' means would add up to errors
that no finished network has. The first round begins with weights rounded to nearest. The errors of the finished units,
which the rounds cannot know, are left to the polish, see `transform`.

Captures are sharded over the workers and stay in the object store. Where all of them would be too much at a time, units
are taken in waves, and each wave has a pass of its own.
"""

from __future__ import annotations

import functools
import itertools
import logging
import math
from collections.abc import Iterator, Mapping, Sequence

from dipo.algo.activation_cache import StoredRows, cut
from dipo.algo.independent import CaptureValues, MeasureUnits, SolveAlone, UnitCost
from dipo.algo.phase import Phase
from dipo.algo.step import NetworkState
from dipo.algo.steps.bias_correction import BiasCorrection, BiasCorrectionOptions
from dipo.algo.steps.reconstruction import Reconstruction, ReconstructionOptions
from dipo.algo.unit_solver import UnitResult
from dipo.cluster.pool import Progress, StoredLostError
from dipo.errors import JobError
from dipo.graph.plan import QuantizedModel
from dipo.graph.units import Unit, find_units
from dipo.stages.checkpoint import UnitFiles, load_units
from dipo.stages.context import Context
from dipo.stages.sequential import SequentialSchedule, held_out_for

log = logging.getLogger("dipo")

POLISH_SHARE = 0.15
"""Fraction of the steps that is kept for the polish, where nothing else is asked."""
FIRST_ROUND_SHARE = 0.4
"""Fraction of the steps in the first round, on inputs from the network with weights rounded to nearest."""


def polish_iters(algo: ReconstructionOptions) -> int:
    """Return the number of steps of the polish, the last ones of a unit's steps."""
    wanted = math.ceil(POLISH_SHARE * algo.iters) if algo.polish_iters is None else algo.polish_iters
    return min(wanted, algo.iters)


def rounds(algo: ReconstructionOptions) -> list[Phase]:
    """Return the phases in which units are solved alone: two where there are steps enough."""
    stop = algo.iters - polish_iters(algo)
    cuts = sorted({0, min(round(FIRST_ROUND_SHARE * algo.iters), stop), stop})
    return [Phase(first, last) for first, last in itertools.pairwise(cuts)]


def corrected(context: Context, state: NetworkState, *, guard: bool) -> QuantizedModel:
    """Correct the network's biases, layer after layer, and return it.

    Args:
        context: Context of the job.
        state: The network.
        guard: Correct those alone for which it helps on held-out samples.
    """
    units = find_units(state.model, granularity="layer", samples=context.loaded.samples)
    step = BiasCorrection(BiasCorrectionOptions(bias_source="data", guard=guard)).bound(state)
    schedule = SequentialSchedule(context, step, units=units, quantized=state.quantized)
    for _ in schedule.solved:
        schedule.take()
    return schedule.end()


class ParallelRound:
    """A round: one phase of all units."""

    def __init__(
        self,
        context: Context,
        step: Reconstruction,
        number: int,
        units: Sequence[Unit],
        before: QuantizedModel,
        warm_starts: Mapping[int, UnitResult],
    ) -> None:
        """Prepare the round; no unit is solved yet.

        Args:
            context: Context of the job.
            step: Step of the algorithm, for the phase of this round.
            number: Number of the round, from 1.
            units: All units that have layers.
            before: The network in front of the first round, by which the units of the last one are judged.
            warm_starts: Results of the round before, by index of the unit; empty in the first one.
        """
        self.context, self.step, self.units, self.before = context, step, units, before
        self.warm_starts = warm_starts
        self.name = f"alone-{number}"
        self.files = UnitFiles(context.folder, self.name)
        self.batches = cut(len(context.loaded.data.calib), context.config.data.batch_size)
        self.held_out = held_out_for(step, len(context.loaded.data.calib))

    def finished(self, quantized: QuantizedModel) -> dict[int, UnitResult]:
        """Return the results that the run folder has, by index of the unit."""
        return load_units(self.context, self.files, self.units, quantized)

    def run(self, prefix: QuantizedModel, done: Mapping[int, UnitResult]) -> dict[int, UnitResult]:
        """Solve the units that have no result yet.

        Args:
            prefix: The network whose values the units read.
            done: Results so far, by index of the unit.

        Returns:
            The results of all units.

        Raises:
            JobError: Workers or nodes died more often than is allowed.
        """
        results = dict(done)
        todo = [unit for unit in self.units if unit.index not in results]
        costs = self._costs(todo)
        todo.sort(key=lambda unit: costs[unit.index].seconds, reverse=True)
        title = f"{self.name}: {len(todo)} units"
        with self.context.terminal.task(title, len(todo) * self.step.num_steps, "steps") as progress:
            lost, total = 0, len(todo)
            while todo:
                before = (total - len(todo)) * self.step.num_steps
                try:
                    for unit, result in self._solve(
                        self._wave(todo, costs), prefix, functools.partial(_further, progress, before)
                    ):
                        results[unit.index] = result
                        todo.remove(unit)
                except StoredLostError as error:
                    lost += 1
                    if lost > self.context.config.cluster.retries:
                        raise JobError(
                            f"captured values went away with their nodes {lost} times, look at the cluster (ray "
                            "status), or allow more with cluster.retries"
                        ) from error
                    log.warning("captured values went away with a node: they are captured once more")
        return results

    def _costs(self, units: Sequence[Unit]) -> dict[int, UnitCost]:
        ((_, costs),) = self.context.pool.map([MeasureUnits(units)])
        return dict(zip((unit.index for unit in units), costs, strict=True))

    def _wave(self, todo: Sequence[Unit], costs: Mapping[int, UnitCost]) -> list[Unit]:
        """Return the next units, as many as there is room for their inputs; one at least."""
        room = self.context.pool.captures_bytes()
        sizes: dict[str, int] = {}
        wave: list[Unit] = []
        for unit in todo:
            sizes |= costs[unit.index].input_bytes
            if wave and sum(sizes.values()) * self.batches[-1].stop > room:
                break
            wave.append(unit)
        return wave

    def _solve(
        self, wave: Sequence[Unit], prefix: QuantizedModel, progress: Progress
    ) -> Iterator[tuple[Unit, UnitResult]]:
        """Capture the units' inputs, then solve the units, longest first."""
        pool = self.context.pool
        names = list(dict.fromkeys(name for unit in wave for name in unit.inputs))
        shares, quantized = self.context.shares(self.batches[-1].stop), pool.share(prefix)
        before = pool.share(self.before)
        captures = [CaptureValues(share, names, quantized) for share in shares]
        parts = dict(pool.map_kept(captures, num_kept=2 * len(names)))
        places = {name: (index, len(names) + index) for index, name in enumerate(names)}
        tasks = [
            SolveAlone(
                self.step, unit, self.batches, quantized, self.warm_starts.get(unit.index), before, self.held_out
            )
            for unit in wave
        ]
        stored: list[list[StoredRows]] = [
            [parts[part][places[name][kind]] for kind in (0, 1) for name in unit.inputs for part in sorted(parts)]
            for unit in wave
        ]
        sizes = [self.step.num_steps] * len(wave)
        for index, result in pool.map(tasks, stored=stored, sizes=sizes, progress=progress):
            self.files.save(wave[index], result)
            self._tell(wave[index], result)
            yield wave[index], result

    def _tell(self, unit: Unit, result: UnitResult) -> None:
        first, last = result.loss_first, result.loss_last
        log.info("%s, unit %s: loss %.4g -> %.4g, %.2f s", self.name, unit.name, first, last, result.seconds)
        self.context.unit_ends(self.name, unit, result, steps=self.step.num_steps)


def _further(progress: Progress, before: int, steps: int) -> None:
    progress(before + steps)

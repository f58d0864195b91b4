"""The algorithm's steps on the quantized network, each on the result of the one before."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from dipo.algo.analysis_sums import NetworkAnalysis
from dipo.algo.phase import Phase
from dipo.algo.step import FloatStep, NetworkState, NetworkStep, Step, UnitStep
from dipo.algo.steps.reconstruction import Reconstruction
from dipo.algo.unit_solver import UnitResult
from dipo.graph.plan import QuantizedModel
from dipo.graph.units import Unit, find_units
from dipo.report.report import Note, UnitRow
from dipo.stages.checkpoint import UnitFiles, load_units
from dipo.stages.context import Context
from dipo.stages.guard import NetworkGuard
from dipo.stages.parallel import ParallelRound, corrected, polish_iters, rounds
from dipo.stages.sequential import SequentialSchedule, solved_units


@dataclass(frozen=True)
class Transformed:
    """The network after the steps."""

    quantized: QuantizedModel
    units: list[UnitRow]
    analysis: NetworkAnalysis | None
    notes: list[Note] = field(default_factory=list)
    """What the guard says of the steps."""


def transform(context: Context, state: NetworkState, steps: Sequence[Step]) -> Transformed:
    """Run the steps in their order; each finished unit is in the run folder before the next begins.

    Behind a guarded step the network goes on as it was before it, unless it is better on held-out samples.

    Args:
        context: The job.
        state: The network after calibration.
        steps: All steps of the job; those on the float network have been run before calibration.
    """
    done = Transformed(state.quantized, [], None)
    guard = NetworkGuard(context)
    for step in steps:
        if isinstance(step, FloatStep):
            continue
        with context.stage(step.name):
            own = _run(context, step, state)
            if state.has_samples and step.judged:
                own = _guarded(guard, step, state.quantized, own)
        state = dataclasses.replace(state, quantized=own.quantized)
        done = Transformed(
            own.quantized, [*done.units, *own.units], own.analysis or done.analysis, [*done.notes, *own.notes]
        )
    return done


def _run(context: Context, step: Step, state: NetworkState) -> Transformed:
    """Run one step."""
    if isinstance(step, UnitStep) and step.solves_units(has_samples=state.has_samples):
        return Transformed(*_over_units(context, step, state), analysis=None)
    assert isinstance(step, NetworkStep), step.name
    change = step.run(state, context)
    return Transformed(change.quantized, [], change.analysis)


def _guarded(guard: NetworkGuard, step: Step, before: QuantizedModel, own: Transformed) -> Transformed:
    """Return what a step made, or the network before a guarded one where held-out samples say that it was better."""
    judged = guard.judge(step, before, own.quantized)
    if judged.kept or not step.guarded:
        return dataclasses.replace(own, notes=guard.notes(step, judged, own.units))
    notes = guard.notes(step, judged, own.units)
    rows = [dataclasses.replace(row, kept=False) for row in own.units]
    return dataclasses.replace(own, quantized=before, units=rows, notes=notes)


def _over_units(context: Context, step: UnitStep, state: NetworkState) -> tuple[QuantizedModel, list[UnitRow]]:
    """Run a step over the units; return the network and the report's rows."""
    step = step.bound(state)
    units = find_units(state.model, granularity=step.granularity, samples=context.loaded.samples)
    if not isinstance(step, Reconstruction) or context.config.cluster.schedule != "parallel":
        return _one_by_one(context, step, units, state)
    results, rows = _at_once(context, step, units, state)
    stop, polish = step.options.iters, polish_iters(step.options)
    if not polish:
        return state.quantized.with_updates(results.values(), state.plan), rows
    last = step.for_phase(Phase(stop - polish, stop, step.options.polish_lr))
    quantized, own = _one_by_one(context, last, units, state, results)
    return quantized, rows + own


def _at_once(
    context: Context, step: Reconstruction, units: Sequence[Unit], state: NetworkState
) -> tuple[Mapping[int, UnitResult], list[UnitRow]]:
    """Run the parallel schedule up to its polish; return results by index of the unit and the report's rows."""
    solved = solved_units(units, state.plan)
    results: dict[int, UnitResult] = {}
    rows: list[UnitRow] = []
    for number, phase in enumerate(rounds(step.options), start=1):
        current = ParallelRound(context, step.for_phase(phase), number, solved, state.quantized, results)
        finished = current.finished(state.quantized)
        if len(finished) < len(solved):
            before = state.quantized.with_updates(results.values(), state.plan)
            prefix = corrected(context, dataclasses.replace(state, quantized=before), guard=step.guarded)
            finished = current.run(prefix, finished)
        results = finished
        rows += [_row(unit, current.name, results[unit.index], steps=len(phase)) for unit in solved]
    return results, rows


def _one_by_one(
    context: Context,
    step: UnitStep,
    units: Sequence[Unit],
    state: NetworkState,
    warm_starts: Mapping[int, UnitResult] = MappingProxyType({}),
) -> tuple[QuantizedModel, list[UnitRow]]:
    """Run the sequential schedule; units that an earlier process has finished are only passed."""
    schedule = SequentialSchedule(context, step, units=units, quantized=state.quantized, warm_starts=warm_starts)
    files = UnitFiles(context.folder, step.name)
    known = load_units(context, files, schedule.solved, state.quantized)
    rows = []
    for unit in schedule.solved:
        result = known.get(unit.index)
        if result is None:
            result = schedule.take()
            files.save(unit, result)
            context.unit_ends(step.name, unit, result, steps=step.num_steps)
        else:
            schedule.skip(result)
        rows.append(_row(unit, step.name, result, steps=step.num_steps))
    return schedule.end(), rows


def _row(unit: Unit, step: str, result: UnitResult, *, steps: int) -> UnitRow:
    return UnitRow(
        name=unit.name,
        step=step,
        layers=list(unit.layers),
        inputs=list(unit.inputs),
        outputs=list(unit.outputs),
        steps=steps,
        loss={"first": result.loss_first, "last": result.loss_last},
        bias_corrected=result.bias_corrected,
        kept=None if result.judged is None else result.judged.kept,
        gain_db=None if result.judged is None else result.judged.gain_db,
        seconds=result.seconds,
    )

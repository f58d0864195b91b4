"""The algorithm's steps: each makes its way through the units on what the one before left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dipo.algo.calibrate import Calibration
from dipo.algo.reconstruct import Phase
from dipo.algo.sweep import UnitResult
from dipo.cluster.work import TimedResult
from dipo.graph.plan import QuantizedModel
from dipo.graph.units import Unit, find_units
from dipo.report.report import UnitRow
from dipo.stages.checkpoint import UnitFiles, load_units
from dipo.stages.context import Context
from dipo.stages.parallel import Round, corrected, polish_iters, results_of, rounds
from dipo.stages.walk import Begun, Walk, solved_units


@dataclass(frozen=True)
class Transformed:
    """What the steps made of the network."""

    quantized: QuantizedModel
    units: list[UnitRow]


def transform(context: Context, *, quantized: QuantizedModel, calibration: Calibration) -> Transformed:
    """Runs `algo.steps` in their order; each finished unit is in the run folder before the next begins."""
    rows: list[UnitRow] = []
    for step in context.config.algo.steps:
        with context.stage(step):
            units = find_units(
                context.loaded.model, granularity=context.config.algo.unit if step == "reconstruct" else "layer"
            )
            begun = None
            if step == "reconstruct" and context.config.cluster.schedule == "parallel":
                begun, own = _solve_alone(context, units, quantized, calibration)
                rows += own
            if begun is not None and not len(begun.phase):
                quantized = quantized.having(begun.results.values(), context.loaded.plan)
                continue
            quantized, own = _walk(context, step, units, quantized, calibration, begun)
            rows += own
    return Transformed(quantized, rows)


def _solve_alone(
    context: Context, units: Sequence[Unit], quantized: QuantizedModel, calibration: Calibration
) -> tuple[Begun, list[UnitRow]]:
    """The parallel schedule up to its polish."""
    solved = solved_units(units, context.loaded.plan)
    results: dict[int, UnitResult] = {}
    rows: list[UnitRow] = []
    for number, phase in enumerate(rounds(context.config.algo), start=1):
        this = Round(context, number, solved, phase, results)
        timed = this.finished(quantized)
        if len(timed) < len(solved):
            before = quantized.having(results.values(), context.loaded.plan)
            timed = this.run(corrected(context, before, calibration), timed)
        results = results_of(timed)
        rows += [_row(unit, this.step, timed[unit.index], steps=len(phase)) for unit in solved]
    algo = context.config.algo
    return Begun(results, Phase(algo.iters - polish_iters(algo), algo.iters, algo.polish_lr)), rows


def _walk(
    context: Context,
    step: str,
    units: Sequence[Unit],
    quantized: QuantizedModel,
    calibration: Calibration,
    begun: Begun | None,
) -> tuple[QuantizedModel, list[UnitRow]]:
    """Unit after unit; those that an earlier process has finished are only passed."""
    walk = Walk(context, step, units=units, quantized=quantized, calibration=calibration, begun=begun)
    files = UnitFiles(context.folder, step)
    known = load_units(context, files, walk.solved, quantized)
    rows = []
    for unit in walk.solved:
        timed = known.get(unit.index)
        if timed is None:
            timed = walk.take()
            files.save(unit, timed)
            context.unit_ends(step, unit, timed, steps=walk.num_steps)
        else:
            walk.skip(timed.result)
        rows.append(_row(unit, step, timed, steps=walk.num_steps))
    return walk.end(), rows


def _row(unit: Unit, step: str, timed: TimedResult, *, steps: int) -> UnitRow:
    result = timed.result
    return UnitRow(
        name=unit.name,
        step=step,
        layers=list(unit.layers),
        inputs=list(unit.inputs),
        outputs=list(unit.outputs),
        steps=steps,
        loss={"first": result.loss_first, "last": result.loss_last},
        bias_corrected=result.bias_corrected,
        seconds=timed.seconds,
    )

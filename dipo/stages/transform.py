"""The algorithm's steps, one after the other on what the one before left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dipo.algo.analytic import analytic_bias_correction
from dipo.algo.calibrate import Calibration
from dipo.algo.reconstruct import Phase
from dipo.algo.sweep import UnitResult
from dipo.cluster.work import TimedResult
from dipo.composition import reconstruction_of
from dipo.graph.plan import QuantizedModel
from dipo.graph.units import Unit, find_units
from dipo.report.analysis import AnalysisReport
from dipo.report.report import UnitRow
from dipo.stages.analyze import analyze
from dipo.stages.checkpoint import UnitFiles, load_units
from dipo.stages.context import Context
from dipo.stages.load import moments_of_model
from dipo.stages.parallel import Round, corrected, polish_iters, results_of, rounds
from dipo.stages.steps import Begun, UnitStep, unit_step
from dipo.stages.walk import Walk, solved_units


@dataclass(frozen=True)
class Transformed:
    """What the steps made of the network."""

    quantized: QuantizedModel
    units: list[UnitRow]
    analysis: AnalysisReport | None


def transform(context: Context, *, quantized: QuantizedModel, calibration: Calibration) -> Transformed:
    """Runs `algo.steps` in their order; each finished unit is in the run folder before the next begins."""
    rows: list[UnitRow] = []
    analysis = None
    for name in context.config.algo.steps:
        if name == "equalize":
            continue  # the network was equalized when it was loaded
        with context.stage(name):
            if name == "analyze":
                analysis = analyze(context, quantized)
            elif name == "bias_correction" and context.biases_from_norms:
                loaded = context.loaded
                quantized = analytic_bias_correction(
                    loaded.model,
                    plan=loaded.plan,
                    quantized=quantized,
                    moments=moments_of_model(loaded.model, context.config.data),
                )
            else:
                quantized, own = _over_units(context, name, quantized, calibration)
                rows += own
    return Transformed(quantized, rows, analysis)


def _correct_by_norms(context: Context, quantized: QuantizedModel) -> QuantizedModel:
    """Biases corrected without samples."""
    model, plan = context.loaded.model, context.loaded.plan
    moments = moments_of_model(model, context.config.data)
    return analytic_bias_correction(model, plan=plan, quantized=quantized, moments=moments)


def _over_units(
    context: Context, name: str, quantized: QuantizedModel, calibration: Calibration
) -> tuple[QuantizedModel, list[UnitRow]]:
    """A step that goes from unit to unit."""
    units = find_units(context.loaded.model, granularity=str(context.config.algo.for_step(name).unit))
    begun: Begun | None = None
    rows: list[UnitRow] = []
    is_parallel = context.config.cluster.schedule == "parallel" and name == reconstruction_of([name])
    if is_parallel:
        begun, rows = _solve_alone(context, name, units, quantized, calibration)
        if not len(begun.phase):
            return quantized.having(begun.results.values(), context.loaded.plan), rows
    quantized, own = _walk(context, unit_step(context, name, calibration, begun), units, quantized)
    return quantized, rows + own


def _solve_alone(
    context: Context, name: str, units: Sequence[Unit], quantized: QuantizedModel, calibration: Calibration
) -> tuple[Begun, list[UnitRow]]:
    """The parallel schedule up to its polish."""
    solved = solved_units(units, context.loaded.plan)
    results: dict[int, UnitResult] = {}
    rows: list[UnitRow] = []
    for number, phase in enumerate(rounds(context.config.algo), start=1):
        this = Round(context, name, number, solved, phase, results)
        timed = this.finished(quantized)
        if len(timed) < len(solved):
            before = quantized.having(results.values(), context.loaded.plan)
            timed = this.run(corrected(context, before, calibration), timed)
        results = results_of(timed)
        rows += [_row(unit, this.step, timed[unit.index], steps=len(phase)) for unit in solved]
    algo = context.config.algo
    return Begun(results, Phase(algo.iters - polish_iters(algo), algo.iters, algo.polish_lr)), rows


def _walk(
    context: Context, step: UnitStep, units: Sequence[Unit], quantized: QuantizedModel
) -> tuple[QuantizedModel, list[UnitRow]]:
    """Unit after unit; those that an earlier process has finished are only passed."""
    walk = Walk(context, step, units=units, quantized=quantized)
    files = UnitFiles(context.folder, step.name)
    known = load_units(context, files, walk.solved, quantized)
    rows = []
    for unit in walk.solved:
        timed = known.get(unit.index)
        if timed is None:
            timed = walk.take()
            files.save(unit, timed)
            context.unit_ends(step.name, unit, timed, steps=step.num_steps)
        else:
            walk.skip(timed.result)
        rows.append(_row(unit, step.name, timed, steps=step.num_steps))
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

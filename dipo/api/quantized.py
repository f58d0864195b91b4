"""The quantized network between calibration and its files: each function returns what comes next."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

from dipo.algo.analysis_sums import NetworkAnalysis
from dipo.algo.step import FloatStep, NetworkState
from dipo.api.files import write_files
from dipo.api.network import Network
from dipo.api.settings import folder_of
from dipo.config import Config
from dipo.errors import UserError
from dipo.export.targets import TARGETS
from dipo.report.report import Note, Report, UnitRow
from dipo.stages import calibrate as calibration
from dipo.stages.load import with_float_steps
from dipo.stages.pipeline import finish
from dipo.stages.retarget import QuantizedRun
from dipo.stages.transform import Transformed, transform


@dataclass(frozen=True, eq=False)
class Quantized:
    """A network with ranges and integer weights, as calibration and the steps so far left it."""

    network: Network
    config: Config
    """The network's, with the steps so far."""
    state: NetworkState
    """The quantized network: `state.quantized.layers` has the codes and scales by name of the node."""
    units: Sequence[UnitRow] = ()
    """What the steps changed."""
    analysis: NetworkAnalysis | None = None
    """What the step `analyze` found."""
    notes: Sequence[Note] = ()
    """What the guard says of the steps."""


def calibrate(network: Network) -> Quantized:
    """Run the samples through the float network, choose the ranges, round the weights to nearest.

    Raises:
        UserError: A sample cannot be read or has NaN or Inf.
        JobError: The workers are lost.
    """
    if not isinstance(network, Network):
        raise UserError(f"calibrate: {type(network).__name__} is no network, give what dipo.load returns")
    with network.work("calibrate", network.config) as context:
        observe = context.needs_calibration or network.loaded.has_samples
        return Quantized(network, network.config, calibration.calibrate(context, observe=observe))


@overload
def apply(subject: Network, step: str, **options: Any) -> Network: ...
@overload
def apply(subject: Quantized, step: str, **options: Any) -> Quantized: ...
def apply(subject: Network | Quantized, step: str, **options: Any) -> Network | Quantized:
    """Run a step of the algorithm.

    Args:
        subject: The float network for a step that comes before calibration (`equalize`), else the quantized one.
        step: Its name: `bias_correction`, `adaround`, `brecq`, `qdrop`, ...
        options: Of this step alone, by their names without `algo.`: `iters=500`.

    Returns:
        What the step made of it; `subject` stays as it is.

    Raises:
        UserError: The step or an option is unknown, or the step cannot follow those before it.
        JobError: The workers are lost.
    """
    config = _with_step(subject.config, step, options)
    steps = config.algo.make_steps()[-1:]
    if isinstance(subject, Network):
        if not isinstance(steps[0], FloatStep):
            raise UserError(f"apply: {step} works on the quantized network, calibrate it first")
        return subject.replaced(config, with_float_steps(subject.loaded, steps, config))
    if isinstance(steps[0], FloatStep):
        raise UserError(f"apply: {step} works on the float network, apply it before calibrate")
    steps[0].check(subject.network.plan)
    with subject.network.work(step, config) as context:
        done = transform(context, subject.state, steps)
    return dataclasses.replace(
        subject,
        config=config,
        state=dataclasses.replace(subject.state, quantized=done.quantized),
        units=[*subject.units, *done.units],
        analysis=done.analysis or subject.analysis,
        notes=[*subject.notes, *done.notes],
    )


def evaluate(quantized: Quantized) -> Report:
    """Compare the float network, the simulation and the written file in ONNX Runtime, on the evaluation samples.

    Returns:
        The report: accuracy where there are labels, agreement, cosine and SQNR of the outputs and of each layer.

    Raises:
        UserError: The target refuses the network, or labels do not fit its outputs.
    """
    network = _checked("evaluate", quantized).network
    with network.work("evaluate", quantized.config) as context:
        done = Transformed(quantized.state.quantized, list(quantized.units), quantized.analysis, list(quantized.notes))
        return finish(context, done, quantized.state.calibration, parity=network.prepared.parity).report


def export_to(
    quantized: Quantized,
    folder: str | os.PathLike[str],
    *,
    target: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> list[Path]:
    """Write a target's files: `quantized.onnx` and what else its toolchain reads.

    Args:
        quantized: The network.
        folder: Where they go; it is made where it is missing.
        target: For another target than the network's: what its grids do not hold is rounded once more.
        options: Of `platform` and `export`, by the names of the command line, such as `{"platform.version": "8.6.1"}`.

    Returns:
        The files, `quantized.onnx` first.

    Raises:
        UserError: The target is unknown or refuses the network, or the folder cannot be written.
    """
    return write_files(source_of(_checked("export_to", quantized)), folder_of(folder), target=target, options=options)


def _checked(function: str, quantized: object) -> Quantized:
    if not isinstance(quantized, Quantized):
        what = "the network is not quantized yet" if isinstance(quantized, Network) else f"{quantized!r} is no network"
        raise UserError(f"{function}: {what}, give what dipo.calibrate or dipo.apply returns")
    return quantized


def source_of(quantized: Quantized) -> QuantizedRun:
    """Return the network on its target's grids, as writers of files take it."""
    loaded, state = quantized.network.loaded, quantized.state
    on_grids = TARGETS[quantized.config.platform.name].on_grids(loaded.model, state.quantized)
    return QuantizedRun(
        quantized.config, loaded.model, loaded.plan, on_grids, state.calibration.statistics, loaded.inputs
    )


def _with_step(config: Config, step: str, options: Mapping[str, Any]) -> Config:
    """Return the configuration with one more step."""
    algo = config.algo
    name = f"{algo.name}+{step}" if algo.steps else step
    entry: str | dict[str, Any] = {step: dict(options)} if options else step
    return dataclasses.replace(config, algo=dataclasses.replace(algo, name=name, steps=[*algo.steps, entry]))

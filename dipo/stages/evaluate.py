"""The float, the simulated and the deployed network on the evaluation samples, in torch and in ONNX Runtime."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dipo.algo.activation_cache import cut
from dipo.algo.calibrate import Calibration
from dipo.algo.simulate import SimulateBatches, Simulated
from dipo.cluster.worker import Worker
from dipo.data.dataset import Dataset
from dipo.errors import UserError
from dipo.export.runtime import run_model
from dipo.export.targets import TARGETS
from dipo.graph.class_axes import class_axes
from dipo.graph.passes.interface import declared_types
from dipo.graph.plan import QuantizedModel
from dipo.report.measures import (
    OutputError,
    accuracy,
    class_axis,
    has_top1,
    least_sqnr_db,
    output_error,
    output_figures,
)
from dipo.report.report import OutputRow, TargetRow
from dipo.stages.context import Context
from dipo.stages.float_types import as_given
from dipo.stages.load import form_of
from dipo.stages.retarget import QuantizedRun, Retargeted

PROFILE_SAMPLES = 64
"""Samples whose layers are compared one by one."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What the networks gave for the same samples."""

    simulated: Simulated
    """The float and the simulated network, in torch."""
    deployed: dict[str, NDArray[Any]]
    """Outputs [samples, ...] of the written file in ONNX Runtime, by name."""
    class_axes: dict[str, int | None]
    """Axis of the classes of each output [samples, ...]; None where it has none."""
    types: dict[str, str]
    """Types of the outputs in the user's file, by name, where they are no float32."""
    labels: NDArray[np.int64] | None
    """Classes [samples]; None where the samples have none."""
    targets: list[TargetRow]
    """The networks of other targets."""
    peak_rss_mb: list[float]
    """Most memory of each worker."""

    @property
    def error(self) -> dict[str, OutputError]:
        """Distances of the three networks from each other."""
        fp, q, axes = self.simulated.fp_outputs, self.simulated.q_outputs, self.class_axes
        return {
            "simulated_vs_fp32": output_error(fp, q, class_axes=axes),
            "deployed_vs_fp32": output_error(fp, self.deployed, class_axes=axes),
            "deployed_vs_simulated": output_error(q, self.deployed, class_axes=axes),
        }

    @property
    def deployed_db(self) -> float:
        """SQNR in dB of the deployed network against the simulated one, in the worst of the outputs."""
        return least_sqnr_db(self.simulated.q_outputs, self.deployed)

    @property
    def outputs(self) -> list[OutputRow]:
        """Each output of the simulated and of the deployed network against the float one's."""
        return output_rows(self.simulated, self.deployed, self.class_axes, self.types)

    @property
    def accuracy(self) -> dict[str, float | None]:
        """Top-1 of the three networks in per cent; None without labels, or classes that these could be."""
        outputs = {"fp32": self.simulated.fp_outputs, "simulated": self.simulated.q_outputs, "deployed": self.deployed}
        return {name: None if self.labels is None else accuracy(each, self.labels) for name, each in outputs.items()}


def evaluate(
    context: Context,
    *,
    source: QuantizedRun,
    files: Sequence[Path],
    others: Mapping[Retargeted, Sequence[Path]],
) -> Evaluation:
    """Run the networks on the evaluation samples, or on those of calibration where there are no others.

    Args:
        context: The job.
        source: The network as the algorithm left it.
        files: Those for the job's own target.
        others: The network on other targets' grids, and their files.

    Raises:
        UserError: The labels do not fit the network's outputs.
    """
    dataset = context.loaded.data.eval or context.loaded.data.calib
    axes = _class_axes(context)
    with context.stage("verify"):
        simulated = _simulate(context, dataset, source.quantized)
        targets = [_target_row(context, dataset, source, target, list(its), axes) for target, its in others.items()]
        deployed, labels = _deploy(context, dataset, written_model(files))
        peaks = context.pool.ask(Worker.peak_rss_mb)
    labels = labels if has_top1(simulated.fp_outputs) else None
    _check_labels(labels, simulated.fp_outputs)
    return Evaluation(simulated, deployed, axes, _types(context), labels, targets, peaks)


def _class_axes(context: Context) -> dict[str, int | None]:
    """Return the axis of the classes of each output [samples, ...]; None where it has none."""
    own, samples = class_axes(context.loaded.model, context.config.data.class_axis), context.loaded.samples
    return {name: None if axis is None else samples.moved(name, axis) for name, axis in own.items()}


def _types(context: Context) -> dict[str, str]:
    return {name: str(dtype.numpy()) for name, dtype in declared_types(context.loaded.model).items()}


def output_rows(
    simulated: Simulated,
    deployed: Mapping[str, NDArray[Any]] | None,
    axes: Mapping[str, int | None],
    types: Mapping[str, str],
) -> list[OutputRow]:
    """Return the rows of the report on the outputs.

    Args:
        simulated: The float and the simulated network.
        deployed: Outputs of the written file; None where it was not run.
        axes: Axis of the classes of each output.
        types: Types of outputs in the user's file, where they are others than those compared.
    """
    rows = []
    for name, expected in simulated.fp_outputs.items():
        axis = class_axis(expected, name, axes)
        rows.append(
            OutputRow(
                name=name,
                shape=list(expected.shape[1:]),
                type=types.get(name, str(expected.dtype)),
                class_axis=axis,
                simulated=output_figures(expected, simulated.q_outputs[name], axis=axis),
                deployed=None if deployed is None else output_figures(expected, deployed[name], axis=axis),
            )
        )
    return rows


def written_model(files: Sequence[Path]) -> Path:
    """Return the quantized network among a target's files."""
    return next(file for file in files if file.suffix == ".onnx")


def source_of(context: Context, quantized: QuantizedModel, calibration: Calibration) -> QuantizedRun:
    """Return the network for targets' files."""
    loaded = context.loaded
    return QuantizedRun(context.config, loaded.model, loaded.plan, quantized, calibration.statistics, loaded.inputs)


def _target_row(
    context: Context,
    dataset: Dataset,
    source: QuantizedRun,
    target: Retargeted,
    files: list[Path],
    axes: Mapping[str, int | None],
) -> TargetRow:
    found = _simulate(context, dataset, target.quantized, target)
    error = output_error(found.fp_outputs, found.q_outputs, class_axes=axes)
    row = target.row(source, files, cfg=context.config.platform, error=error)
    row = dataclasses.replace(row, outputs=output_rows(found, None, axes, _types(context)))
    return row.with_notes(TARGETS[target.name].form_remarks(form_of(context.config)))


def _simulate(
    context: Context, dataset: Dataset, quantized: QuantizedModel, target: Retargeted | None = None
) -> Simulated:
    """Of the job's own target, or of another, whose layers are not compared."""
    shared = context.share(quantized)
    plan, rules = (None, None) if target is None else (target.plan, TARGETS[target.name].spec)
    profiled = PROFILE_SAMPLES if target is None else 0
    parts = context.over_samples(
        lambda batches: SimulateBatches(batches, dataset, shared, profiled, plan, rules),
        title="verify" if target is None else f"verify {target.name}",
        num_samples=len(dataset),
    )
    found, model = Simulated.joined(parts), context.loaded.model
    return dataclasses.replace(
        found, fp_outputs=as_given(model, found.fp_outputs), q_outputs=as_given(model, found.q_outputs)
    )


def _deploy(context: Context, dataset: Dataset, path: Path) -> tuple[dict[str, NDArray[Any]], NDArray[np.int64] | None]:
    config = context.config
    labels: list[NDArray[np.int64]] = []

    def batches() -> Any:
        for batch in cut(len(dataset), config.data.batch_size):
            samples = dataset.read(batch.start, batch.stop)
            if samples.labels is not None:
                labels.append(samples.labels)
            yield samples.inputs

    outputs = run_model(
        path,
        batches(),
        threads=config.cluster.threads,
        float_biases=not TARGETS[config.platform.name].spec.int32_bias,
        **context.loaded.as_run,
    )
    return outputs, np.concatenate(labels) if labels else None


def _check_labels(labels: NDArray[np.int64] | None, outputs: Mapping[str, NDArray[Any]]) -> None:
    classes = next(iter(outputs.values()))[0].size
    if labels is not None and (labels.min() < 0 or labels.max() >= classes):
        raise UserError(
            f"data: labels run from {labels.min()} to {labels.max()} but the network has {classes} classes, "
            "give labels that fit"
        )

"""The float, the simulated and the deployed network on the evaluation samples, in torch and in ONNX Runtime."""

from __future__ import annotations

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
from dipo.graph.plan import QuantizedModel
from dipo.quant.error_sums import ErrorSums
from dipo.report.measures import OutputError, accuracy, output_error
from dipo.report.report import TargetRow
from dipo.stages.context import Context
from dipo.stages.load import form_of
from dipo.stages.retarget import QuantizedRun, Retargeted

PROFILE_SAMPLES = 64
"""Samples whose layers are compared one by one."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What the networks gave for the same samples."""

    simulated: Simulated
    """The float and the simulated network, in torch."""
    deployed: dict[str, NDArray[np.float32]]
    """Outputs [samples, ...] of the written file in ONNX Runtime, by name."""
    labels: NDArray[np.int64] | None
    """Classes [samples]; None where the samples have none."""
    targets: list[TargetRow]
    """The networks of other targets."""
    peak_rss_mb: list[float]
    """Most memory of each worker."""

    @property
    def error(self) -> dict[str, OutputError]:
        """Distances of the three networks from each other."""
        fp, q = self.simulated.fp_outputs, self.simulated.q_outputs
        return {
            "simulated_vs_fp32": output_error(fp, q),
            "deployed_vs_fp32": output_error(fp, self.deployed),
            "deployed_vs_simulated": output_error(q, self.deployed),
        }

    @property
    def accuracy(self) -> dict[str, float | None]:
        """Top-1 of the three networks in per cent; None without labels."""
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
    with context.stage("verify"):
        simulated = _simulate(context, dataset, source.quantized)
        targets = [_target_row(context, dataset, source, target, list(its)) for target, its in others.items()]
        deployed, labels = _deploy(context, dataset, written_model(files))
        peaks = context.pool.ask(Worker.peak_rss_mb)
    _check_labels(labels, simulated.fp_outputs)
    return Evaluation(simulated, deployed, labels, targets, peaks)


def written_model(files: Sequence[Path]) -> Path:
    """Return the quantized network among a target's files."""
    return next(file for file in files if file.suffix == ".onnx")


def source_of(context: Context, quantized: QuantizedModel, calibration: Calibration) -> QuantizedRun:
    """Return the network for targets' files."""
    loaded = context.loaded
    return QuantizedRun(context.config, loaded.model, loaded.plan, quantized, calibration.statistics)


def _target_row(
    context: Context, dataset: Dataset, source: QuantizedRun, target: Retargeted, files: list[Path]
) -> TargetRow:
    found = _simulate(context, dataset, target.quantized, target)
    error = output_error(found.fp_outputs, found.q_outputs)
    row = target.row(source, files, cfg=context.config.platform, error=error)
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
    layers: dict[str, ErrorSums] = {}
    for part in parts:
        for name, error in part.layers.items():
            layers[name] = layers[name] + error if name in layers else error
    names = parts[0].fp_outputs
    return Simulated(
        {name: np.concatenate([part.fp_outputs[name] for part in parts]) for name in names},
        {name: np.concatenate([part.q_outputs[name] for part in parts]) for name in names},
        layers,
    )


def _deploy(
    context: Context, dataset: Dataset, path: Path
) -> tuple[dict[str, NDArray[np.float32]], NDArray[np.int64] | None]:
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
        by_sample=context.loaded.samples.by_sample,
    )
    return outputs, np.concatenate(labels) if labels else None


def _check_labels(labels: NDArray[np.int64] | None, outputs: Mapping[str, NDArray[np.float32]]) -> None:
    classes = next(iter(outputs.values()))[0].size
    if labels is not None and (labels.min() < 0 or labels.max() >= classes):
        raise UserError(
            f"data: labels run from {labels.min()} to {labels.max()} but the network has {classes} classes, "
            "give labels that fit"
        )

"""What was written, run in ONNX Runtime, against the simulation and the float network: the report."""

from __future__ import annotations

import platform as host
import resource
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import dipo
from dipo.algo.activation_cache import cut
from dipo.algo.calibrate import Calibration
from dipo.algo.diagnostics import diagnose
from dipo.algo.simulate import SimulateBatches, Simulated
from dipo.cluster.worker import Worker
from dipo.config import Config
from dipo.data.dataset import Dataset
from dipo.errors import UserError
from dipo.export.runtime import run_model
from dipo.export.targets import TARGETS
from dipo.graph.layers import layers_of
from dipo.graph.load import model_files
from dipo.graph.plan import QuantizedModel
from dipo.quant.error_sums import ErrorSums
from dipo.report.analysis import report_analysis
from dipo.report.measures import NO_NOISE_DB, OutputError, accuracy, cosine, output_error, sqnr_db
from dipo.report.report import EqualizedRow, LayerRow, Note, Report, TargetRow
from dipo.stages.context import Context
from dipo.stages.load import JobInputs, form_of
from dipo.stages.retarget import QuantizedRun, Retargeted
from dipo.stages.transform import Transformed

PROFILE_SAMPLES = 64
"""Samples whose layers are compared one by one."""
FAR_DB = 20.0
"""SQNR of the file against the simulation below which the user is told: rounding in another order keeps above it."""
PACKAGES = ("torch", "onnx", "onnx-ir", "onnxscript", "numpy", "ray")


def verify(
    context: Context,
    *,
    done: Transformed,
    calibration: Calibration,
    files: Sequence[Path],
    parity: float,
    others: Mapping[Retargeted, Sequence[Path]],
) -> Report:
    """Compares the float, the simulated and the deployed network on the evaluation samples, or on those of calibration.

    Args:
        context: The job.
        done: The network as the algorithm left it.
        calibration: What calibration saw.
        files: Those for the job's own target.
        parity: Of torch and ONNX Runtime on the float network.
        others: The network on other targets' grids, and their files.

    Raises:
        UserError: The labels do not fit the network's outputs.
    """
    config, loaded = context.config, context.loaded
    dataset = loaded.data.eval or loaded.data.calib
    with context.stage("verify"):
        simulated = _simulate(context, dataset, done.quantized)
        source = source_of(context, done.quantized, calibration)
        targets = [_target_row(context, dataset, source, target, list(its)) for target, its in others.items()]
        written = next(file for file in files if file.suffix == ".onnx")
        deployed, labels = _deploy(config, dataset, written)
        peaks = context.pool.ask(Worker.peak_rss_mb)
    _check_labels(labels, simulated.fp_outputs)

    error = {
        "simulated_vs_fp32": output_error(simulated.fp_outputs, simulated.q_outputs),
        "deployed_vs_fp32": output_error(simulated.fp_outputs, deployed),
        "deployed_vs_simulated": output_error(simulated.q_outputs, deployed),
    }

    def top1(outputs: Mapping[str, NDArray[np.float32]]) -> float | None:
        return None if labels is None else accuracy(outputs, labels)

    return Report(
        model=config.model.title,
        algo=config.algo.name,
        platform=config.platform.name,
        precision=config.precision.title,
        samples={"calibration": len(loaded.data.calib), "evaluation": len(dataset)},
        evaluated_on=_evaluated_on(loaded),
        parity=parity,
        accuracy={
            "fp32": top1(simulated.fp_outputs),
            "simulated": top1(simulated.q_outputs),
            "deployed": top1(deployed),
        },
        error=error,
        layers=[_layer_row(name, error) for name, error in simulated.layers.items()],
        units=done.units,
        not_reconstructed=[layer.name for layer in layers_of(loaded.model) if layer.name not in loaded.plan.layers],
        analysis=None
        if done.analysis is None
        else report_analysis(
            loaded.model, plan=loaded.plan, rules=TARGETS[config.platform.name].spec, found=done.analysis
        ),
        equalized=_equalized(loaded),
        notes=[
            *_distance_notes(context, written, error["deployed_vs_simulated"]),
            *_option_notes(config, loaded),
            *_notes(loaded, calibration),
            *_target_notes(config),
        ],
        files={
            "float": sum(file.stat().st_size for file in model_files(loaded.path)),
            **{file.name: file.stat().st_size for file in files},
        },
        seconds=context.clock.seconds,
        peak_rss_mb=_peaks(config, peaks),
        workers={
            "number": context.pool.size,
            "kind": config.cluster.kind,
            "device": context.device,
            "threads": config.cluster.threads,
            "schedule": config.cluster.schedule,
            "grad_shards": config.cluster.grad_shards,
        },
        versions=versions(),
        targets=targets,
    )


def source_of(context: Context, quantized: QuantizedModel, calibration: Calibration) -> QuantizedRun:
    """The network for targets' files."""
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
    config: Config, dataset: Dataset, path: Path
) -> tuple[dict[str, NDArray[np.float32]], NDArray[np.int64] | None]:
    labels: list[NDArray[np.int64]] = []

    def batches() -> Any:
        for batch in cut(len(dataset), config.data.batch_size):
            samples = dataset.read(batch.start, batch.stop)
            if samples.labels is not None:
                labels.append(samples.labels)
            yield samples.inputs

    outputs = run_model(
        path, batches(), threads=config.cluster.threads, float_biases=not TARGETS[config.platform.name].spec.int32_bias
    )
    return outputs, np.concatenate(labels) if labels else None


def _check_labels(labels: NDArray[np.int64] | None, outputs: Mapping[str, NDArray[np.float32]]) -> None:
    classes = next(iter(outputs.values()))[0].size
    if labels is not None and (labels.min() < 0 or labels.max() >= classes):
        raise UserError(
            f"data: labels run from {labels.min()} to {labels.max()} but the network has {classes} classes, "
            "give labels that fit"
        )


def _evaluated_on(loaded: JobInputs) -> str:
    """What the samples are."""
    if not loaded.has_samples:
        return "noise"
    return "calibration" if loaded.data.eval is None else "evaluation"


def _notes(loaded: JobInputs, calibration: Calibration) -> list[Note]:
    """What is odd about the network, and what was left undone."""
    found = [Note(odd.name, odd.what) for odd in diagnose(loaded.model, loaded.plan, calibration.statistics)]
    return found + [Note(refusal.where, f"equalization: {refusal.reason}") for refusal in loaded.change.refusals]


def _distance_notes(context: Context, written: Path, error: OutputError) -> list[Note]:
    """Whether the file computes something else than what was simulated."""
    if not -NO_NOISE_DB < error.sqnr_db < FAR_DB:
        return []
    what = (
        f"ONNX Runtime's outputs are only {error.sqnr_db:.1f} dB from the simulation, python -m dipo.verify "
        f"run={context.folder.path} looks for the tensor"
    )
    return [Note(written.name, what)]


def _option_notes(config: Config, loaded: JobInputs) -> list[Note]:
    """Options that no layer follows."""
    block = config.precision.weight_block
    if block is None or any(layer.spec.block is not None for layer in loaded.plan.layers.values()):
        return []
    what = (
        f"without effect: {config.platform.name} has no blocks of {block} weights for any of these layers (their "
        "kind, bits or number of inputs), leave it out"
    )
    return [Note("precision.weight_block", what)]


def _target_notes(config: Config) -> list[Note]:
    target = TARGETS[config.platform.name]
    return [Note(target.name, text) for text in target.remarks(target.options_of(config.platform.given))]


def _equalized(loaded: JobInputs) -> list[EqualizedRow]:
    return [
        EqualizedRow(list(chain.layers), chain.min_scale, chain.max_scale, chain.num_zero)
        for chain in loaded.change.chains
    ]


def _layer_row(name: str, error: ErrorSums) -> LayerRow:
    return LayerRow(name, cosine(error.fp_fp, error.q_q, error.fp_q), sqnr_db(error.fp_fp, error.noise))


def _peaks(config: Config, peaks: Sequence[float]) -> dict[str, float]:
    if config.cluster.kind == "inline":
        return {"driver": peaks[0]}
    driver = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"driver": driver, **{f"worker {rank}": peak for rank, peak in enumerate(peaks)}}


def versions() -> dict[str, str]:
    """Of dipo, Python and the packages that decide results."""
    found = {name: metadata.version(name) for name in PACKAGES}
    import onnxruntime

    return {"dipo": dipo.__version__, "python": host.python_version(), **found, "onnxruntime": onnxruntime.__version__}

"""The report of a job, put together from the results of its stages."""

from __future__ import annotations

import platform as host
import resource
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import dipo
from dipo.algo.calibrate import Calibration
from dipo.algo.diagnostics import diagnose, lost_channels
from dipo.algo.simulate import Simulated
from dipo.algo.step import UnitStep
from dipo.config import Config
from dipo.export.targets import TARGETS
from dipo.graph.layers import layers_of
from dipo.graph.load import model_files
from dipo.graph.plan import QuantizedModel
from dipo.graph.sharing import stored_apart
from dipo.quant.error_sums import ErrorSums
from dipo.report.analysis import AnalysisReport, report_analysis
from dipo.report.measures import NO_NOISE_DB, cosine, sqnr_db
from dipo.report.network_facts import RegionRow
from dipo.report.report import ConcatRow, EqualizedRow, LayerRow, Note, Report
from dipo.stages.census import network_facts, sample_shapes
from dipo.stages.context import Context
from dipo.stages.evaluate import Evaluation, written_model
from dipo.stages.headroom import note_of
from dipo.stages.load import JobInputs
from dipo.stages.lost_values import join_resolutions, lost_values
from dipo.stages.transform import Transformed

FAR_DB = 20.0
"""SQNR of the file against the simulation, in dB, below which a note says so; another order of rounding stays above."""
PACKAGES = ("torch", "onnx", "onnx-ir", "onnxscript", "numpy", "ray")


def make_report(
    context: Context,
    evaluation: Evaluation,
    *,
    done: Transformed,
    calibration: Calibration,
    files: Sequence[Path],
    parity: float,
) -> Report:
    """Put the report together.

    Args:
        context: The job.
        evaluation: Outputs of the networks, compared.
        done: The network after the algorithm.
        calibration: Statistics of calibration.
        files: Files of the job's own target.
        parity: Largest relative difference of torch and ONNX Runtime on the float network.
    """
    config, loaded, error = context.config, context.loaded, evaluation.error
    facts = network_facts(loaded, config, shapes=sample_shapes(loaded))
    return Report(
        model=config.model.title,
        algo=config.algo.name,
        platform=config.platform.name,
        precision=config.precision.title,
        samples={
            "calibration": len(loaded.data.calib),
            "evaluation": len(loaded.data.eval or loaded.data.calib),
        },
        evaluated_on=_evaluated_on(loaded),
        parity=parity,
        accuracy=evaluation.accuracy,
        error=error,
        outputs=evaluation.outputs,
        layers=[_layer_row(name, sums) for name, sums in evaluation.simulated.layers.items()],
        concats=_concat_rows(loaded, evaluation.simulated, done.quantized, calibration),
        units=done.units,
        not_reconstructed=[layer.name for layer in layers_of(loaded.model) if layer.name not in loaded.plan.layers],
        analysis=_analysis(context, done),
        equalized=_equalized(loaded),
        notes=[
            *early_notes(config, loaded, done.quantized, calibration),
            *done.notes,
            *_distance_notes(context, written_model(files), evaluation.deployed_db),
            *_option_notes(config, loaded),
            *_notes(loaded, calibration),
            *(Note(region.nodes[0], _in_runtime(region)) for region in facts.regions),
            *(Note(found.name, found.what) for found in lost_channels(loaded.model, done.quantized.layers)),
            *_mixed_notes(loaded),
            *(Note(name, what) for name, what in stored_apart(loaded.model, done.quantized).items()),
            *_target_notes(config),
        ],
        files=_sizes(loaded, files),
        seconds=context.clock.seconds,
        peak_rss_mb=_peaks(config, evaluation.peak_rss_mb),
        workers=_workers(context),
        versions=versions(),
        targets=evaluation.targets,
        network=facts,
    )


def early_notes(config: Config, loaded: JobInputs, quantized: QuantizedModel, calibration: Calibration) -> list[Note]:
    """Return what is known to be lost once there are ranges: the user should hear it before the long work, too."""
    lost = lost_values(loaded.model, quantized, calibration.statistics, TARGETS[config.platform.name].spec)
    lost = [*loaded.notes, *lost]
    return lost + (loaded.inputs.assumptions(loaded.model) if not config.calib.reads_statistics else [])


def _analysis(context: Context, done: Transformed) -> AnalysisReport | None:
    if done.analysis is None:
        return None
    loaded, rules = context.loaded, TARGETS[context.config.platform.name].spec
    return report_analysis(loaded.model, plan=loaded.plan, rules=rules, found=done.analysis)


def _sizes(loaded: JobInputs, files: Sequence[Path]) -> dict[str, int]:
    """Return the sizes in bytes of the float network and of each written file, by name."""
    sizes = {file.name: file.stat().st_size for file in files}
    return {"float": sum(file.stat().st_size for file in model_files(loaded.path)), **sizes}


def _workers(context: Context) -> dict[str, str | int]:
    cluster = context.config.cluster
    return {
        "number": context.pool.size,
        "kind": cluster.kind,
        "device": context.device,
        "threads": cluster.threads,
        "schedule": cluster.schedule,
        "grad_shards": cluster.grad_shards,
    }


def _evaluated_on(loaded: JobInputs) -> str:
    """Return the kind of the samples for evaluation."""
    if not loaded.has_samples:
        return "noise"
    return "calibration" if loaded.data.eval is None else "evaluation"


def _notes(loaded: JobInputs, calibration: Calibration) -> list[Note]:
    """Return notes on peculiarities of the network and on layers that were not equalized."""
    odd = [Note(found.name, found.what) for found in diagnose(loaded.model, loaded.plan, calibration.statistics)]
    room = note_of(calibration, num_samples=len(loaded.data.calib))
    return odd + room + [Note(refusal.where, f"equalization: {refusal.reason}") for refusal in loaded.change.refusals]


def _in_runtime(region: RegionRow) -> str:
    others = len(region.nodes) - 1
    it = f"with {others} other node{'s' * (others > 1)} it" if others else "it"
    share = f" ({100 * region.share:.1f} % of the multiplications)" if region.share else ""
    what = f"{it} is computed in ONNX Runtime, not in torch{share}: with floats, and no gradient passes it"
    if not others:
        return "; ".join((what, *region.weights.values()))
    return "; ".join((what, *(f"{name}: {weights}" for name, weights in region.weights.items())))


def _mixed_notes(loaded: JobInputs) -> list[Note]:
    """Return notes on values whose rows are no samples, as far as layers are changed one by one."""
    what = (
        "samples cannot be told apart in it, so the layers before and behind it are reconstructed together, and "
        "bias_correction, update_bn and sparsify leave them alone"
    )
    one_by_one = any(isinstance(step, UnitStep) for step in loaded.steps)
    return [Note(name, what) for name in sorted(loaded.samples.mixed)] if one_by_one else []


def _distance_notes(context: Context, written: Path, sqnr: float) -> list[Note]:
    """Return a note if one of the file's outputs is far from the simulated one."""
    if not -NO_NOISE_DB < sqnr < FAR_DB:
        return []
    what = (
        f"ONNX Runtime's outputs are only {sqnr:.1f} dB from the simulation, python -m dipo.verify "
        f"run={context.folder.path} looks for the tensor"
    )
    return [Note(written.name, what)]


def _option_notes(config: Config, loaded: JobInputs) -> list[Note]:
    """Return notes on options that have no effect on any layer."""
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


def _concat_rows(
    loaded: JobInputs, simulated: Simulated, quantized: QuantizedModel, calibration: Calibration
) -> list[ConcatRow]:
    resolutions = join_resolutions(loaded.model, quantized, calibration.statistics)
    rows = []
    for each, error in simulated.concats.items():
        found = resolutions.get((each.concat, each.value))
        row = _layer_row(each.value, error)
        rows.append(
            ConcatRow(row.name, each.concat, row.cosine, row.sqnr_db, steps=None if found is None else found.steps)
        )
    return rows


def _peaks(config: Config, peaks: Sequence[float]) -> dict[str, float]:
    if config.cluster.kind == "inline":
        return {"driver": peaks[0]}
    driver = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"driver": driver, **{f"worker {rank}": peak for rank, peak in enumerate(peaks)}}


def versions() -> dict[str, str]:
    """Return the versions of dipo, Python and the packages that decide results."""
    packages = {name: metadata.version(name) for name in PACKAGES}
    import onnxruntime

    own = {"dipo": dipo.__version__, "python": host.python_version()}
    return {**own, **packages, "onnxruntime": onnxruntime.__version__}

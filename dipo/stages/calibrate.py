"""Calibration: one pass over the samples, ranges from its statistics, weights rounded to nearest."""

from __future__ import annotations

import functools

from dipo.algo.calibrate import Calibration, ObserveBatches, Observed, activation_ranges, quantize_model
from dipo.algo.data_free import data_free_ranges
from dipo.algo.headroom import are_few
from dipo.algo.step import NetworkState
from dipo.algo.tables import with_tables
from dipo.export.targets import TARGETS
from dipo.graph.plan import QuantizedModel
from dipo.run import DamagedFileError
from dipo.stages.checkpoint import STATISTICS, load_calibration, save_calibration, tell_of_damage
from dipo.stages.context import Context
from dipo.stages.headroom import room_of, with_headroom, without_room


def calibrate(context: Context, *, observe: bool) -> NetworkState:
    """Return the network quantized by calibration alone, before any step.

    Args:
        context: The job.
        observe: Run the samples through the float network; else ranges come from BatchNormalization's statistics.
    """
    kept = _kept(context) if observe else None
    calibration = without_room(kept) if kept else _observed(context) if observe else Calibration({}, {})
    with context.stage("ranges"):
        quantized = _quantize(context, calibration)
    if observe:
        # Behind the ranges, on which the room depends: a resumed run may have them chosen otherwise.
        calibration, quantized = with_headroom(context, calibration, quantized)
        if kept is None or room_of(kept) != room_of(calibration):
            save_calibration(context.folder, calibration)
    config, loaded = context.config, context.loaded
    return NetworkState(
        model=loaded.model,
        plan=loaded.plan,
        rules=TARGETS[config.platform.name].spec,
        quantized=quantized,
        calibration=calibration,
        calib=config.calib,
        num_samples=len(loaded.data.calib),
        batch_size=config.data.batch_size,
        seed=config.seed,
        has_samples=loaded.has_samples,
        moments=functools.partial(loaded.inputs.moments, loaded.model),
    )


def _kept(context: Context) -> Calibration | None:
    """Return the statistics that the run folder has; None where it has none that can be read."""
    if context.folder.has(STATISTICS):
        try:
            return load_calibration(context.folder)
        except DamagedFileError:
            tell_of_damage(context, STATISTICS)
    return None


def _observed(context: Context) -> Calibration:
    """Return the statistics of one pass over the samples, and of the tables that are read.

    The samples are sharded; the workers' statistics merge exactly.
    """
    num_samples = len(context.loaded.data.calib)
    few = are_few(num_samples)
    with context.stage("calibrate"):
        parts = context.over_samples(
            lambda batches: ObserveBatches(batches, extremes=few), title="calibrate", num_samples=num_samples
        )
    observed = functools.reduce(Observed.merge, parts).calibration()
    return with_tables(observed, context.loaded.model)


def _quantize(context: Context, calibration: Calibration) -> QuantizedModel:
    """Return the scales of activations from their ranges, and the weights rounded to nearest."""
    config, loaded = context.config, context.loaded
    if not config.calib.reads_statistics:
        ranges = data_free_ranges(loaded.plan, loaded.inputs.moments(loaded.model), sigmas=config.calib.sigmas)
    else:
        ranges = activation_ranges(loaded.plan, calibration.statistics, cfg=config.calib)
    quantized = quantize_model(loaded.model, plan=loaded.plan, ranges=ranges, cfg=config.calib)
    return TARGETS[config.platform.name].on_grids(loaded.model, quantized)

"""Whether ranges get room for values that calibration did not see: asked of samples that they were not taken from.

Room costs resolution: whether it pays depends on the network. So the ranges of one half of the samples, with room and
without, are judged on the other half, and the other way round.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from dipo.algo.calibrate import Calibration, activation_grids, activation_ranges
from dipo.algo.headroom import room, shares_to_try
from dipo.algo.judgement import Judgement
from dipo.export.targets import TARGETS
from dipo.graph.plan import QuantizedModel
from dipo.stages.context import Context
from dipo.stages.guard import output_errors

log = logging.getLogger("dipo")

NO_ROOM = 1.0


def asks_for_headroom(context: Context) -> bool:
    """Return whether each sample's extremes are needed: where ranges follow from few samples of the user's."""
    calib, loaded = context.config.calib, context.loaded
    if calib.headroom == "none" or not calib.reads_statistics or not loaded.has_samples:
        return False
    return bool(loaded.plan.activations and shares_to_try(len(loaded.data.calib)))


def with_headroom(
    context: Context, calibration: Calibration, quantized: QuantizedModel
) -> tuple[Calibration, QuantizedModel]:
    """Return the statistics with the room that serves unseen samples best, and the network with the ranges that follow.

    Args:
        context: The job.
        calibration: The statistics, without room; with each sample's extremes where samples are few.
        quantized: The network with the ranges that follow from them.
    """
    if not calibration.extremes:
        return calibration, quantized
    num_samples = len(context.loaded.data.calib)
    order = np.random.default_rng(num_samples).permutation(num_samples)
    halves = [sorted(order[::2].tolist()), sorted(order[1::2].tolist())]
    errors = {
        share: _errors(context, calibration, quantized, halves=halves, share=share)
        for share in (NO_ROOM, *shares_to_try(num_samples))
    }
    judged = {share: Judgement.of(errors[NO_ROOM], own) for share, own in errors.items()}
    best = max(judged, key=lambda share: judged[share].gain_db if judged[share].kept else 0.0)
    log.info("room beyond the ranges: %s", {share: round(each.gain_db, 2) for share, each in judged.items()})
    context.events.emit("headroom_judged", share=best, gain_db=round(judged[best].gain_db, 3))
    if best == NO_ROOM:
        return calibration, quantized
    roomy = _with_room(calibration, seen=range(num_samples), share=best)
    return roomy, _requantized(context, roomy, quantized)


def _errors(
    context: Context, calibration: Calibration, quantized: QuantizedModel, *, halves: list[list[int]], share: float
) -> dict[str, float]:
    """Return the outputs' squared errors, each half of the samples with the ranges of the other."""
    total: dict[str, float] = {}
    for seen, unseen in (halves, halves[::-1]):
        candidate = _requantized(context, _with_room(calibration, seen=seen, share=share), quantized)
        for name, error in output_errors(context, candidate, unseen).items():
            total[name] = total.get(name, 0.0) + error
    return total


def _with_room(calibration: Calibration, *, seen: Sequence[int], share: float) -> Calibration:
    statistics = {
        name: replace(own, room=room(calibration.extremes[name], seen=seen, share=share))
        if name in calibration.extremes
        else own
        for name, own in calibration.statistics.items()
    }
    return replace(calibration, statistics=statistics)


def _requantized(context: Context, calibration: Calibration, quantized: QuantizedModel) -> QuantizedModel:
    """Return the network with the activations' grids that follow from statistics, and the weights that it has."""
    config, loaded = context.config, context.loaded
    ranges = activation_ranges(loaded.plan, calibration.statistics, cfg=config.calib)
    found = replace(quantized, activations=activation_grids(loaded.plan, ranges))
    return TARGETS[config.platform.name].on_grids(loaded.model, found)

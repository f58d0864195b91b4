"""Whether ranges get room for values that calibration did not see: asked of samples that they were not taken from.

Room costs resolution: whether it pays depends on the network. So the ranges of one half of the samples, with room and
without, are judged on the other half, and the other way round.
"""

from __future__ import annotations

import logging
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from dipo.algo.calibrate import Calibration, activation_grids, activation_ranges
from dipo.algo.headroom import AS_IT_IS, ROOMS, Room, are_few
from dipo.algo.judgement import Judgement
from dipo.config import Config
from dipo.export.targets import TARGETS
from dipo.graph.plan import QuantizedModel
from dipo.quant.observers import NO_ROOM
from dipo.quant.ranges import minmax_range
from dipo.report.report import Note
from dipo.stages.context import Context
from dipo.stages.guard import output_errors
from dipo.stages.load import JobInputs

log = logging.getLogger("dipo")

CLOSE_DB = 1.0
"""Gains that differ by less are alike: eight samples do not tell them apart."""


def with_headroom(
    context: Context, calibration: Calibration, quantized: QuantizedModel
) -> tuple[Calibration, QuantizedModel]:
    """Return the statistics with the room that serves unseen samples best, and the network with the ranges that follow.

    Args:
        context: The job.
        calibration: The statistics, without room; with each sample's extremes where samples are few.
        quantized: The network with the ranges that follow from them.
    """
    loaded = context.loaded
    if not (is_tried(loaded, context.config) and calibration.extremes):
        return calibration, quantized
    trial = _Trial(context, calibration, quantized)
    errors: dict[Room, dict[str, float]] = {}
    with context.stage("headroom"), context.terminal.task("headroom", len(ROOMS), "widths") as progress:
        for done, room in enumerate(ROOMS, start=1):
            errors[room] = trial.errors(room)
            progress(done)
    judged = {room: Judgement.of(errors[AS_IT_IS], own) for room, own in errors.items()}
    best = _safest({room: each.gain_db for room, each in judged.items() if each.kept or room == AS_IT_IS})
    log.info("room beyond the ranges: %s", {room: round(each.gain_db, 2) for room, each in judged.items()})
    context.events.emit("headroom_judged", share=best.share, gain_db=round(judged[best].gain_db, 3))
    if best == AS_IT_IS:
        return calibration, quantized
    factors = trial.factors(best, range(len(loaded.data.calib)))
    roomy = {name: replace(own, room=factors.get(name, NO_ROOM)) for name, own in calibration.statistics.items()}
    return replace(calibration, statistics=roomy), trial.requantized(factors)


def is_tried(loaded: JobInputs, config: Config) -> bool:
    """Return whether a job asks for room, of samples few enough for it to be worth the trial."""
    asked = config.calib.headroom == "auto" and config.calib.reads_statistics and loaded.has_samples
    return asked and are_few(len(loaded.data.calib)) and bool(loaded.plan.activations)


def without_room(calibration: Calibration) -> Calibration:
    """Return the statistics as they were seen."""
    plain = {name: replace(own, room=NO_ROOM) for name, own in calibration.statistics.items()}
    return replace(calibration, statistics=plain)


def room_of(calibration: Calibration) -> dict[str, tuple[float, float]]:
    """Return the room of each range, by name."""
    return {name: own.room for name, own in calibration.statistics.items()}


def note_of(calibration: Calibration, *, num_samples: int) -> list[Note]:
    """Return what the report says of the room that ranges have."""
    wider = [max(room) for room in room_of(calibration).values() if room != NO_ROOM]
    if not wider:
        return []
    what = (
        f"ranges are {statistics.median(wider):.2f} times as wide (median) as {num_samples} samples make them: with "
        "that room, ranges of one half of the samples lose less on the other half; more samples tell better, "
        "calib.headroom=none leaves ranges as they are"
    )
    return [Note("calibration", what)]


def _safest(gains: Mapping[Room, float]) -> Room:
    """Return the widest of those that gain about the most: the few samples that judge show little of what is rare."""
    close = [room for room, gain in gains.items() if gain >= max(gains.values()) - CLOSE_DB]
    return min(close, key=lambda room: (room.share, not room.from_seen))


class _Trial:
    """The calibrated network, tried with other ranges."""

    def __init__(self, context: Context, calibration: Calibration, quantized: QuantizedModel) -> None:
        self._context, self._calibration, self._quantized = context, calibration, quantized
        # Without grids that the target forces on several values: how far a value's range reaches is its own matter.
        self._ranges = activation_ranges(context.loaded.plan, calibration.statistics, cfg=context.config.calib)
        order = np.random.default_rng(len(context.loaded.data.calib)).permutation(len(context.loaded.data.calib))
        self._halves = (sorted(order[::2].tolist()), sorted(order[1::2].tolist()))

    def errors(self, room: Room) -> dict[str, float]:
        """Return the outputs' squared errors, each half of the samples with the ranges of the other."""
        total: dict[str, float] = {}
        for seen, unseen in (self._halves, self._halves[::-1]):
            candidate = self.requantized(self.factors(room, seen))
            for name, error in output_errors(self._context, candidate, unseen, title=None).items():
                total[name] = total.get(name, 0.0) + error
        return total

    def factors(self, room: Room, samples: Sequence[int]) -> dict[str, tuple[float, float]]:
        """Return the factors on both ends of each range: to what some of the samples show, with room, by name."""
        found = {}
        for name, extremes in self._calibration.extremes.items():
            ends = self._ranges.get(name) or minmax_range(self._calibration.statistics[name])
            found[name] = room.factors(ends, extremes, samples=samples)
        return found

    def requantized(self, factors: Mapping[str, tuple[float, float]]) -> QuantizedModel:
        """Return the network with the activations' grids of stretched ranges, and the weights that it has."""
        config, loaded = self._context.config, self._context.loaded
        # The ranges that there are are stretched: their search, which takes longer than a pass, is not repeated.
        ranges = {
            name: self._ranges[name] if spec.fixed else self._ranges[name].stretched(factors.get(name, NO_ROOM))
            for name, spec in loaded.plan.activations.items()
        }
        found = replace(self._quantized, activations=activation_grids(loaded.plan, ranges))
        return TARGETS[config.platform.name].on_grids(loaded.model, found)

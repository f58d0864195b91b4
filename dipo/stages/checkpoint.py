"""Checkpoints of a run: calibration's statistics and every finished unit, written and read back bit for bit."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dipo.algo.calibrate import Calibration
from dipo.algo.channel_means import ChannelMeans
from dipo.algo.judgement import Judgement
from dipo.algo.unit_solver import UnitResult
from dipo.graph.plan import QuantizedLayer, QuantizedModel
from dipo.graph.units import Unit
from dipo.quant.observers import Statistics
from dipo.quant.spec import QParams
from dipo.run import UNITS, DamagedFileError, RunFolder
from dipo.stages.context import Context

log = logging.getLogger("dipo")

STATISTICS = "statistics.safetensors"
MEANS = "channel_means"
EXTREMES = "extremes"


def save_calibration(folder: RunFolder, seen: Calibration) -> None:
    """Write the statistics of calibration."""
    arrays = {f"{name}/{key}": a for name, stats in seen.statistics.items() for key, a in stats.to_arrays().items()}
    means = {f"{name}/{MEANS}": means.to_array() for name, means in seen.channel_means.items()}
    extremes = {f"{name}/{EXTREMES}": each for name, each in seen.extremes.items()}
    folder.write_arrays(STATISTICS, arrays | means | extremes)


def load_calibration(folder: RunFolder) -> Calibration:
    """Read the statistics of calibration.

    Raises:
        DamagedFileError: The file is missing or damaged.
    """
    arrays, _ = folder.read_arrays(STATISTICS)
    parts = by_name(arrays)
    means = {name: ChannelMeans.from_array(own.pop(MEANS)) for name, own in parts.items() if MEANS in own}
    extremes = {name: own.pop(EXTREMES) for name, own in parts.items() if EXTREMES in own}
    return Calibration({name: Statistics.from_arrays(own) for name, own in parts.items() if own}, means, extremes)


@dataclass(frozen=True)
class UnitFiles:
    """Files of the finished units of one step of the algorithm."""

    folder: RunFolder
    step: str

    def name(self, unit: Unit) -> str:
        """Return the name of a unit's file."""
        return f"{UNITS}/{self.step}-{unit.index:03d}.safetensors"

    def save(self, unit: Unit, result: UnitResult) -> None:
        """Write a unit's result."""
        about = {
            "name": unit.name,
            "loss_first": result.loss_first,
            "loss_last": result.loss_last,
            "bias_corrected": result.bias_corrected,
            "judged": None if result.judged is None else dataclasses.asdict(result.judged),
            "seconds": result.seconds,
        }
        self.folder.write_arrays(self.name(unit), _arrays(result), about)

    def load(self, unit: Unit, quantized: QuantizedModel) -> UnitResult | None:
        """Read a unit's result; None where it was not finished.

        Args:
            unit: The unit.
            quantized: The network after calibration, which has the integer limits and axes.

        Raises:
            DamagedFileError: The file is damaged.
        """
        if not self.folder.has(self.name(unit)):
            return None
        arrays, about = self.folder.read_arrays(self.name(unit))
        parts = by_name(arrays)
        layers = {name: own for name, own in parts.items() if "codes" in own}
        if about.get("name") != unit.name or any(name not in quantized.layers for name in layers):
            raise DamagedFileError(self.name(unit))
        return UnitResult(
            layers={name: _layer(own, quantized.layers[name]) for name, own in layers.items()},
            activations={
                name: _activation(own, quantized.activations[name]) for name, own in parts.items() if "act_scale" in own
            },
            rounding={name: own["rounding"] for name, own in layers.items() if "rounding" in own} or None,
            loss_first=about["loss_first"],
            loss_last=about["loss_last"],
            bias_corrected=about["bias_corrected"],
            judged=None if about["judged"] is None else Judgement(**about["judged"]),
            seconds=about["seconds"],
        )


def by_name(arrays: Mapping[str, NDArray[Any]]) -> dict[str, dict[str, NDArray[Any]]]:
    """Group arrays that are stored as `name/part` by name; names may have slashes of their own."""
    parts: dict[str, dict[str, NDArray[Any]]] = {}
    for key, array in arrays.items():
        name, part = key.rsplit("/", 1)
        parts.setdefault(name, {})[part] = array
    return parts


def _arrays(result: UnitResult) -> dict[str, NDArray[Any]]:
    """Return a unit's result as arrays.

    They are codes in the narrowest type, scales, zero points, biases, and V where a phase is to follow.
    """
    arrays: dict[str, NDArray[Any]] = {}
    for name, layer in result.layers.items():
        arrays |= {
            f"{name}/codes": layer.codes.astype(narrowest(layer.qparams)),
            f"{name}/scale": layer.qparams.scale,
            f"{name}/zero_point": layer.qparams.zero_point,
        }
        if layer.bias is not None:
            arrays[f"{name}/bias"] = layer.bias
        if layer.target is not None:
            arrays[f"{name}/target"] = layer.target
        if result.rounding is not None:
            arrays[f"{name}/rounding"] = result.rounding[name]
    for name, qparams in result.activations.items():
        arrays |= {f"{name}/act_scale": qparams.scale, f"{name}/act_zero_point": qparams.zero_point}
    return arrays


def narrowest(qparams: QParams) -> type[np.integer[Any]]:
    """Return the narrowest of the types that codes are stored in."""
    if qparams.qmin >= 0 and qparams.qmax <= 255:
        return np.uint8
    return np.int8 if qparams.qmax <= 127 else np.int32


def _layer(parts: Mapping[str, NDArray[Any]], old: QuantizedLayer) -> QuantizedLayer:
    qparams = dataclasses.replace(old.qparams, scale=parts["scale"], zero_point=parts["zero_point"])
    return QuantizedLayer(parts["codes"].astype(np.int32), qparams, parts.get("bias"), parts.get("target"))


def _activation(parts: Mapping[str, NDArray[Any]], old: QParams) -> QParams:
    return dataclasses.replace(old, scale=parts["act_scale"], zero_point=parts["act_zero_point"])


def load_units(
    context: Context, files: UnitFiles, units: Sequence[Unit], quantized: QuantizedModel
) -> dict[int, UnitResult]:
    """Return the results of units that were finished before, by index, and warn of damaged files."""
    results = {}
    for unit in units:
        try:
            result = files.load(unit, quantized)
        except DamagedFileError:
            tell_of_damage(context, files.name(unit))
            continue
        if result is not None:
            results[unit.index] = result
    return results


def tell_of_damage(context: Context, file: str) -> None:
    """Tell the user that a file of the run is damaged."""
    log.warning("%s is damaged: what is in it is computed again", file)
    context.terminal.say(f"{file} is damaged: what is in it is computed again")
    context.events.emit("checkpoint_damaged", file=file, reason="its digest does not fit")

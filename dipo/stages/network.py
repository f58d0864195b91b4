"""The network that a run quantized, saved so that other targets' files can be written later, without samples."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dipo.graph.plan import QuantizedLayer, QuantizedModel
from dipo.quant.gaussian import Moments
from dipo.quant.spec import Blocks, QParams
from dipo.run import DamagedFileError, RunFolder
from dipo.stages.checkpoint import by_name, narrowest

NETWORK = "network.safetensors"
LEAST = "least_output"
RECURRENT = "recurrent_"
INPUT, PARTS = "input_", ("mean", "std", "low", "high")


@dataclass(frozen=True)
class SavedNetwork:
    """Contents of the file."""

    quantized: QuantizedModel
    record: dict[str, NDArray[Any]] | None
    """Arrays by which steps on the float network are repeated: by name of the layer, the least number [C] of its
    output."""
    inputs: Mapping[str, Moments] | None = None
    """Moments of the network's inputs, by name, where the run has measured them for ranges or steps."""


def save_network(folder: RunFolder, kept: SavedNetwork) -> None:
    """Write the network."""
    quantized = kept.quantized
    arrays: dict[str, NDArray[Any]] = {f"{name}/{LEAST}": least for name, least in (kept.record or {}).items()}
    for name, layer in quantized.layers.items():
        arrays |= {
            f"{name}/codes": layer.codes.astype(narrowest(layer.qparams)),
            f"{name}/scale": layer.qparams.scale,
            f"{name}/zero_point": layer.qparams.zero_point,
        }
        if layer.bias is not None:
            arrays[f"{name}/bias"] = layer.bias
    for name, weight in quantized.recurrent.items():
        arrays |= {
            f"{name}/{RECURRENT}codes": weight.codes.astype(narrowest(weight.qparams)),
            f"{name}/{RECURRENT}scale": weight.qparams.scale,
            f"{name}/{RECURRENT}zero_point": weight.qparams.zero_point,
        }
    for name, qparams in quantized.activations.items():
        arrays |= {f"{name}/act_scale": qparams.scale, f"{name}/act_zero_point": qparams.zero_point}
    for name, moments in (kept.inputs or {}).items():
        arrays |= {f"{name}/{INPUT}{part}": getattr(moments, part) for part in PARTS}
    about = {
        "layers": {name: _grid(layer.qparams) for name, layer in quantized.layers.items()},
        "activations": {name: _grid(qparams) for name, qparams in quantized.activations.items()},
        "least_outputs": kept.record is not None,
        "inputs": {name: moments.num_dims_behind for name, moments in (kept.inputs or {}).items()},
    }
    if quantized.recurrent:
        about["recurrent"] = {name: _grid(weight.qparams) for name, weight in quantized.recurrent.items()}
    folder.write_arrays(NETWORK, arrays, about)


def load_network(folder: RunFolder) -> SavedNetwork:
    """Read the network.

    Raises:
        DamagedFileError: The file is missing or damaged.
    """
    arrays, about = folder.read_arrays(NETWORK)
    if about.keys() < {"layers", "activations", "least_outputs"}:
        raise DamagedFileError(NETWORK)
    parts = by_name(arrays)
    layers = {name: _layer(parts[name], grid) for name, grid in about["layers"].items()}
    activations = {
        name: QParams(parts[name]["act_scale"], parts[name]["act_zero_point"], **grid)
        for name, grid in about["activations"].items()
    }
    least = {name: own[LEAST] for name, own in parts.items() if LEAST in own}
    inputs = {
        name: Moments.of(
            *(parts[name][f"{INPUT}{part}"] for part in PARTS[:2]),
            low=parts[name][f"{INPUT}low"],
            high=parts[name][f"{INPUT}high"],
            num_dims_behind=num_dims_behind,
        )
        for name, num_dims_behind in about.get("inputs", {}).items()
    }
    record = least if about["least_outputs"] else None
    recurrent = {name: _recurrent(parts[name], grid) for name, grid in about.get("recurrent", {}).items()}
    return SavedNetwork(QuantizedModel(layers, activations, recurrent), record, inputs or None)


def _grid(qparams: QParams) -> dict[str, Any]:
    return {
        "qmin": qparams.qmin,
        "qmax": qparams.qmax,
        "axis": qparams.axis,
        "power_of_two": qparams.power_of_two,
        **({"blocks": dataclasses.asdict(qparams.blocks)} if qparams.blocks is not None else {}),
    }


def _recurrent(parts: Mapping[str, NDArray[Any]], grid: Mapping[str, Any]) -> QuantizedLayer:
    """Return a weight; its initializer may have the name of a layer's node."""
    own = {key.removeprefix(RECURRENT): array for key, array in parts.items() if key.startswith(RECURRENT)}
    return _layer(own, grid)


def _layer(parts: Mapping[str, NDArray[Any]], grid: Mapping[str, Any]) -> QuantizedLayer:
    blocks = Blocks(**grid["blocks"]) if "blocks" in grid else None
    qparams = QParams(parts["scale"], parts["zero_point"], **{**grid, "blocks": blocks})
    return QuantizedLayer(parts["codes"].astype(np.int32), qparams, parts.get("bias"))

"""The encodings that Qualcomm's converters (SNPE, QNN) and AIMET read, in the three schemas in use.

A legacy encoding counts codes from 0 up: `x = (code + offset) * scale`, with an `offset` that is never positive, and is
-128 for symmetric 8 bits. Schema 2.0.0 has ONNX's zero point instead. All name tensors as in the ONNX file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    # dipo verify imports this module beside a consumer, without onnx_ir.
    from dipo.export.ranges import Encoding, LayerRanges

WEIGHT_WIDTHS = (4, 8, 16)
"""Widths of stored weights; a narrower grid is part of the next wider one."""
BIAS_BITS = 32
"""Width of biases."""


def encodings(
    activations: Mapping[str, Encoding],
    layers: Sequence[LayerRanges],
    constants: Mapping[str, Encoding],
    *,
    schema: str,
) -> dict[str, Any]:
    """Return the content of an encodings file.

    Args:
        activations: Encodings of activations, by name of the value.
        layers: The quantized layers.
        constants: Encodings of constants that belong to no layer, by name.
        schema: Version of the schema: 0.6.1, 1.0.0 or 2.0.0.
    """
    weights = {layer.weight_name: layer.weight for layer in layers} | dict(constants)
    if schema == "2.0.0":
        return {
            "version": schema,
            "encodings": [
                *(_by_onnx(name, grid) for name, grid in activations.items()),
                *(_by_onnx(name, grid) for name, grid in weights.items()),
                *(_bias_by_onnx(layer) for layer in layers if layer.bias_scale is not None),
            ],
        }
    args = _quantizer_args(list(activations.values()), list(weights.values()), schema)
    if schema == "1.0.0":
        return {
            "version": schema,
            "activation_encodings": [_in_list(name, grid) for name, grid in activations.items()],
            "param_encodings": [_in_list(name, grid) for name, grid in weights.items()],
            "quantizer_args": args,
            "excluded_layers": [],
        }
    return {
        "version": schema,
        "activation_encodings": {name: _by_name(grid) for name, grid in activations.items()},
        "param_encodings": {name: _by_name(grid) for name, grid in weights.items()},
        "quantizer_args": args,
    }


def _width(grid: Encoding) -> int:
    return next(width for width in WEIGHT_WIDTHS if grid.bits <= width)


def _is_symmetric(grid: Encoding) -> bool:
    """Return whether the stored grid, which is wider than an unsigned one of odd width, is symmetric."""
    return bool(np.all(grid.offset(_width(grid)) == -(1 << (_width(grid) - 1))))


def _by_name(grid: Encoding) -> list[dict[str, Any]]:
    """Return entries of schema 0.6.1: a dictionary for each channel."""
    bits = _width(grid)
    return [
        {
            "bitwidth": bits,
            "dtype": "int",
            "is_symmetric": str(_is_symmetric(grid)),
            "max": float((offset + 2**bits - 1) * scale),
            "min": float(offset * scale),
            "offset": int(offset),
            "scale": float(scale),
        }
        for scale, offset in zip(np.atleast_1d(grid.scale), np.atleast_1d(grid.offset(bits)), strict=True)
    ]


def _in_list(name: str, grid: Encoding) -> dict[str, Any]:
    """Return an entry of schema 1.0.0: a dictionary for each tensor."""
    bits = _width(grid)
    return {
        "name": name,
        "enc_type": "PER_TENSOR" if grid.axis is None else "PER_CHANNEL",
        "dtype": "INT",
        "bw": bits,
        "is_sym": _is_symmetric(grid),
        "scale": np.atleast_1d(grid.scale).tolist(),
        "offset": np.atleast_1d(grid.offset(bits)).tolist(),
    }


def _by_onnx(name: str, grid: Encoding) -> dict[str, Any]:
    """Return an entry of schema 2.0.0: QuantizeLinear's inputs and attributes."""
    dtype = f"{'' if grid.signed else 'u'}int{_width(grid)}"
    entry = {"name": name, "output_dtype": dtype, "y_scale": grid.scale.tolist()}
    if grid.zero_point.any():
        entry["y_zero_point"] = grid.zero_point.tolist()
    return entry if grid.axis is None else {**entry, "axis": grid.axis}


def _bias_by_onnx(layer: LayerRanges) -> dict[str, Any]:
    assert layer.bias_scale is not None and layer.bias is not None
    scale = layer.bias_scale
    if scale.ndim:  # a transposed convolution's weight has the channels of one group
        scale = np.tile(scale, layer.bias.size // scale.size)
    entry = {"name": layer.bias_name, "output_dtype": "int32", "y_scale": scale.tolist()}
    return {**entry, "axis": 0} if scale.ndim else entry


def _quantizer_args(activations: Sequence[Encoding], weights: Sequence[Encoding], schema: str) -> dict[str, Any]:
    """Return the quantizer settings of the whole file, which are those of the widest tensor of each kind."""

    def flag(*, value: bool) -> bool | str:
        return value if schema == "1.0.0" else str(value)

    return {
        "activation_bitwidth": max((_width(grid) for grid in activations), default=8),
        "dtype": "int",
        "is_symmetric": flag(value=all(_is_symmetric(grid) for grid in weights)),
        "param_bitwidth": max((_width(grid) for grid in weights), default=8),
        "per_channel_quantization": flag(value=any(grid.axis is not None for grid in weights)),
        "quant_scheme": "post_training_tf",
    }


@dataclass(frozen=True, eq=False)
class Encoded:
    """A tensor's grid `x = (code + offset) * scale`, with codes from 0 up."""

    bits: int
    scale: NDArray[np.float64]
    offset: NDArray[np.int64]

    @staticmethod
    def of(bits: int, scale: Any, offset: Any) -> Encoded:
        """Return a grid from numbers, or from lists with one for each channel."""
        whole = np.rint(np.asarray(offset, np.float64)).astype(np.int64)
        return Encoded(bits, np.asarray(scale, np.float64).reshape(-1), whole.reshape(-1))

    def same(self, other: Encoded) -> bool:
        """Return whether both grids are equal, except for rounding of the scale."""
        return (
            self.bits == other.bits
            and self.scale.size == other.scale.size
            and bool(np.array_equal(self.offset, other.offset))
            and bool(np.allclose(self.scale, other.scale, rtol=1e-5, atol=0))
        )


def entries_of(content: Mapping[str, Any]) -> Iterator[tuple[str, Encoded]]:
    """Return the tensors and their grids in a file's content, of any schema."""
    if content["version"] == "2.0.0":
        yield from ((each["name"], _from_onnx(each)) for each in content["encodings"])
        return
    for kind in ("activation_encodings", "param_encodings"):
        if content["version"] == "1.0.0":
            yield from ((each["name"], Encoded.of(each["bw"], each["scale"], each["offset"])) for each in content[kind])
        else:
            for name, channels in content[kind].items():
                scales, offsets = ([each[key] for each in channels] for key in ("scale", "offset"))
                yield name, Encoded.of(channels[0]["bitwidth"], scales, offsets)


def _from_onnx(entry: Mapping[str, Any]) -> Encoded:
    kind = entry["output_dtype"]
    bits = int(kind.removeprefix("u").removeprefix("int"))
    low = 0 if kind.startswith("u") else -(1 << (bits - 1))
    scale = np.asarray(entry["y_scale"], np.float64).reshape(-1)
    zero = np.broadcast_to(np.asarray(entry.get("y_zero_point", 0)).reshape(-1), scale.shape)
    return Encoded.of(bits, scale, low - zero)

"""The encodings that Qualcomm's converters (SNPE, QNN) and AIMET read, in the three schemas that are in use.

A legacy encoding counts codes from 0 up: `x = (code + offset) * scale`, so that `offset` is never positive, and -128
for symmetric 8 bits. Schema 2.0.0 has ONNX's zero point instead. All name tensors as the ONNX file does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dipo.errors import UserError
from dipo.export.ranges import Encoding, LayerRanges

WEIGHT_WIDTHS = (4, 8, 16)
"""Widths of stored weights: a narrower grid is part of the next."""
SCHEMAS = ("0.6.1", "1.0.0", "2.0.0")


def encodings(
    activations: Mapping[str, Encoding],
    layers: Sequence[LayerRanges],
    constants: Mapping[str, Encoding],
    *,
    schema: str,
    platform: str,
) -> dict[str, Any]:
    """The content of an encodings file.

    Args:
        activations: By name of the value.
        layers: The quantized layers.
        constants: By name of the constant; those of no layer.
        schema: Version of the schema.
        platform: Name for messages.

    Raises:
        UserError: There is no such schema.
    """
    if schema not in SCHEMAS:
        raise UserError(f"platform={platform}: no encodings schema {schema!r}, choose from {', '.join(SCHEMAS)}")
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
    """Of the stored grid, which is wider than an unsigned one of odd width."""
    return bool(np.all(grid.offset(_width(grid)) == -(1 << (_width(grid) - 1))))


def _by_name(grid: Encoding) -> list[dict[str, Any]]:
    """Schema 0.6.1: a dictionary for each channel."""
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
    """Schema 1.0.0: a dictionary for each tensor."""
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
    """Schema 2.0.0: QuantizeLinear's inputs and attributes."""
    dtype = f"{'' if grid.signed else 'u'}int{_width(grid)}"
    found = {"name": name, "output_dtype": dtype, "y_scale": grid.scale.tolist()}
    if grid.zero_point.any():
        found["y_zero_point"] = grid.zero_point.tolist()
    return found if grid.axis is None else {**found, "axis": grid.axis}


def _bias_by_onnx(layer: LayerRanges) -> dict[str, Any]:
    assert layer.bias_scale is not None and layer.bias is not None
    scale = layer.bias_scale
    if scale.ndim:  # a transposed convolution's weight counts the channels of one group
        scale = np.tile(scale, layer.bias.size // scale.size)
    found = {"name": layer.bias_name, "output_dtype": "int32", "y_scale": scale.tolist()}
    return {**found, "axis": 0} if scale.ndim else found


def _quantizer_args(activations: Sequence[Encoding], weights: Sequence[Encoding], schema: str) -> dict[str, Any]:
    """What the whole file has in common: the widest of each kind."""

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

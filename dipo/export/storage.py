"""ONNX types in which codes are stored, and the codes for them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Set
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir

from dipo.graph import operators
from dipo.graph.accessors import name_of
from dipo.graph.layers import layers_of
from dipo.graph.plan import QuantizedLayer, QuantizedModel
from dipo.graph.target_spec import TargetSpec
from dipo.quant.bias import quantize_bias
from dipo.quant.spec import QParams

_SIGNED_UNSIGNED = {2: ("INT2", "UINT2"), 4: ("INT4", "UINT4"), 8: ("INT8", "UINT8"), 16: ("INT16", "UINT16")}
_OPSETS = {2: 25, 4: 21, 8: 13, 16: 21}
"""First default operator set whose DequantizeLinear reads a width, with a scale for each channel, by width."""
BLOCK_OPSET = 21
"""First default operator set whose DequantizeLinear has a scale for each block."""

KERNEL_WIDTHS = frozenset({8, 16})
"""Widths, in bits, of the types with which integer kernels compute."""
PACKED_WIDTHS = frozenset(
    bits
    for bits in _SIGNED_UNSIGNED
    if bits in KERNEL_WIDTHS
    or (_OPSETS[bits] <= onnx.defs.onnx_opset_version() and _SIGNED_UNSIGNED[bits][0] in ir.DataType.__members__)
)
"""Widths, in bits, of all types that the installed onnx can write; below 8, several codes share a byte."""


@dataclass(frozen=True)
class Storage:
    """The types in which a file stores codes."""

    weights: Set[int] = KERNEL_WIDTHS
    """Widths, in bits, of the types in which the consumer reads weights."""
    activations: Set[int] = KERNEL_WIDTHS
    """Widths, in bits, of the types in which the consumer computes activations."""
    packed: bool = False
    """Whether weights that fit a type narrower than the consumer reads are stored in that type. A Cast, and a Sub for a
    zero point, widens them; a runtime that folds constants does so once, when it loads the file."""

    def types(
        self, layer: QuantizedLayer, *, narrow: bool = True, wide: bool = False
    ) -> tuple[ir.DataType, ir.DataType]:
        """Return the types in which a layer's weight is stored, and in which DequantizeLinear reads it.

        No integer kernel reads blocks, so 4 bits need not become 8. Without a bias, ONNX Runtime mistakes blocks of 8
        and of 2 bits for channels, and fails or computes something else; 4 and 16 bits are not affected.

        Args:
            layer: The layer.
            narrow: Whether the consumer reads such a layer's weights in types below 8 bits too, if it has any.
            wide: Whether DequantizeLinear reads 16 bits, whatever is stored.
        """
        blocks = layer.qparams.blocks is not None
        packed = PACKED_WIDTHS if self.packed else frozenset[int]()
        if blocks and not wide:
            dtype = storage_type(layer.qparams, {4, 16} if layer.bias is None else {4, 8, 16} | packed)
            return dtype, dtype
        widths = self.weights if narrow else self.weights & KERNEL_WIDTHS
        in_file = storage_type(layer.qparams, widths | packed | ({4} if blocks else set()))
        read = storage_type(layer.qparams, {16} if wide else widths)
        return min(in_file, read, key=lambda dtype: dtype.bitwidth), read


FOR_KERNELS = Storage()
"""Storage in the types that integer kernels read."""


def storage_type(qparams: QParams, widths: Set[int] = KERNEL_WIDTHS) -> ir.DataType:
    """Return the narrowest ONNX type of these widths that holds every code; signed if a code is negative."""
    for bits in sorted(widths):
        for name in _SIGNED_UNSIGNED[bits]:
            dtype = ir.DataType[name]
            low, high = type_limits(dtype)
            if (qparams.qmin < 0) == (low < 0) and low <= qparams.qmin and qparams.qmax <= high:
                return dtype
    raise AssertionError(f"no storage type of {sorted(widths)} bits holds the codes {qparams.qmin} to {qparams.qmax}")


def type_limits(dtype: ir.DataType) -> tuple[int, int]:
    """Return the smallest and the largest number of an integer type."""
    lowest = -(1 << (dtype.bitwidth - 1)) if dtype.is_signed() else 0
    return lowest, lowest + (1 << dtype.bitwidth) - 1


def required_opset(types: Iterable[ir.DataType]) -> int:
    """Return the first default operator set whose QuantizeLinear and DequantizeLinear take all of these types."""
    return max((_OPSETS[dtype.bitwidth] for dtype in types), default=_OPSETS[8])


def weight_types(
    node: ir.Node, quantized: QuantizedModel, rules: TargetSpec, storage: Storage
) -> tuple[ir.DataType, ir.DataType]:
    """Return the types in which a layer's weight is stored, and in which DequantizeLinear reads it.

    ONNX Runtime treats a matrix product of activations above 8 bits and a weight that DequantizeLinear reads from 8
    bits or less as one of float activations, which its kernel rounds to 8 bits. It has no such kernel for 16 bits.
    """
    assert node.name is not None
    data = node.inputs[0]
    read = quantized.activations.get(data.name) if data is not None and data.name is not None else None
    wide = read is not None and storage_type(read, storage.activations).bitwidth > 8
    narrow = rules.narrow_operators is None or operators.key_of(node) in rules.narrow_operators
    return storage.types(quantized.layers[node.name], narrow=narrow, wide=wide and _is_product(node))


def _is_product(node: ir.Node) -> bool:
    """Return whether a layer multiplies matrices."""
    weight = operators.of(node).weight
    return weight is not None and not weight.spatial


def with_room_for_biases(model: ir.Model, quantized: QuantizedModel) -> QuantizedModel:
    """Return the network with scales of weights raised where an int32 bias would not fit otherwise.

    Args:
        model: The float graph.
        quantized: Its layers and activations, for a target with int32 biases.
    """
    layers = dict(quantized.layers)
    for layer in layers_of(model):
        own = layers.get(layer.name)
        read = quantized.activations.get(name_of(layer.input)) if layer.input is not None else None
        if own is None or read is None or own.bias is None or own.qparams.blocks is not None:
            continue
        bias = quantize_bias(own.bias, input_scale=read.scale, weight=own.qparams)
        layers[layer.name] = own.with_scale(bias.weight_scale)
    return dataclasses.replace(quantized, layers=layers)


def less_zero_point(layer: QuantizedLayer) -> QuantizedLayer:
    """Return the layer with zero point 0, if its codes then fit int8, as they always do below 8 bits."""
    _, zero_point = layer.qparams.broadcast_to(layer.codes.ndim)
    codes = layer.codes - zero_point
    int8 = np.iinfo(np.int8)
    if not zero_point.any() or codes.min() < int8.min or codes.max() > int8.max:
        return layer
    zeros = np.zeros_like(layer.qparams.zero_point)
    qparams = dataclasses.replace(layer.qparams, zero_point=zeros, qmin=int8.min, qmax=int8.max)
    return dataclasses.replace(layer, codes=codes, qparams=qparams)

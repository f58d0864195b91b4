"""Types of elements: those that torch has, and conversions between them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir
import torch
from torch import Tensor

from dipo.graph.ops.reader import NodeReader, TorchOp

if TYPE_CHECKING:
    from collections.abc import Callable

DTYPES = {
    "FLOAT": torch.float32,
    "DOUBLE": torch.float64,
    "FLOAT16": torch.float16,
    "BFLOAT16": torch.bfloat16,
    "INT8": torch.int8,
    "INT16": torch.int16,
    "INT32": torch.int32,
    "INT64": torch.int64,
    "UINT8": torch.uint8,
    "UINT16": torch.uint16,
    "UINT32": torch.uint32,
    "UINT64": torch.uint64,
    "BOOL": torch.bool,
    "FLOAT8E4M3FN": torch.float8_e4m3fn,
    "FLOAT8E4M3FNUZ": torch.float8_e4m3fnuz,
    "FLOAT8E5M2": torch.float8_e5m2,
    "FLOAT8E5M2FNUZ": torch.float8_e5m2fnuz,
}
"""By ONNX's name."""
COMPUTED = frozenset(DTYPES) - {"UINT16", "UINT32", "UINT64", *(name for name in DTYPES if name.startswith("FLOAT8"))}
"""Types that torch computes with; others it converts only."""
HELD = {
    "INT2": torch.int8,
    "UINT2": torch.uint8,
    "INT4": torch.int8,
    "UINT4": torch.uint8,
    "FLOAT4E2M1": torch.float32,
}
"""Types that torch does not have, between two conversions: torch's type that holds their values, each exactly."""
CONVERTED = (frozenset(DTYPES) | HELD.keys()) - COMPUTED
"""Types that torch converts to and from, but does not compute with."""
LOW = CONVERTED - {"UINT16", "UINT32", "UINT64"}
"""Those of them that numpy lacks: only torch's conversions may share their values."""
_INTEGER_BITS = {"INT2": 2, "UINT2": 2, "INT4": 4, "UINT4": 4}
_MAX_FLOAT4 = 6.0
_BEYOND_FLOAT8E4M3FN = 464.0
"""Half a step above the largest value: what is larger rounds to one that the type does not have."""


def dtype_of(node: NodeReader, data_type: ir.DataType) -> torch.dtype:
    """Return torch's name of an ONNX type.

    Raises:
        UserError: torch does not have it.
    """
    dtype = DTYPES.get(data_type.name)
    if dtype is None:
        raise node.refusal(f"type {data_type.name} is not computed in torch, only {', '.join(DTYPES)}")
    return dtype


def cast(node: NodeReader) -> TorchOp:
    """Cast to the type `to`."""
    return _to(node, ir.DataType(node.get_int("to", 0)))


def cast_like(node: NodeReader) -> TorchOp:
    """CastLike: cast to the type of the second input."""
    target = node.dtype(1)
    if target is None:
        raise node.refusal("the type of its second input is not known: infer shapes first")
    convert = _to(node, target)
    return lambda x, _like: convert(x)


def bit_cast(node: NodeReader) -> TorchOp:
    """BitCast: the same bits, read as another type of the same size."""
    dtype = dtype_of(node, ir.DataType(node.get_int("to", 0)))
    source = node.dtype(0)
    if source is not None:
        dtype_of(node, source)  # the bits of a type that torch does not have are not there
    return lambda x: x.view(dtype)


def _to(node: NodeReader, target: ir.DataType) -> Callable[[Tensor], Tensor]:
    saturate = bool(node.get_int("saturate", 1))
    node.ignore("round_mode")  # for a type of 8 bits that torch does not have
    if target.name in _INTEGER_BITS:
        return lambda x: _to_few_bits(x, target)
    if target.name == "FLOAT4E2M1":
        return _to_float4
    dtype = dtype_of(node, target)
    if not dtype.is_floating_point or dtype.itemsize > 1:
        return lambda x: x.to(dtype)
    if saturate:
        limit = torch.finfo(dtype).max
        return lambda x: x.clamp(-limit, limit).to(dtype)
    if dtype != torch.float8_e4m3fn:
        return lambda x: x.to(dtype)
    # Releases of torch differ in whether their own conversion saturates.
    return lambda x: torch.where(x.abs() > _BEYOND_FLOAT8E4M3FN, torch.nan, x).to(dtype)


def _to_few_bits(x: Tensor, target: ir.DataType) -> Tensor:
    """Return integers of a few bits: towards zero, and the lowest bits of those that are out of range."""
    modulus = 2 ** _INTEGER_BITS[target.name]
    lowest = -modulus // 2 if target.is_signed() else 0
    return ((x.to(torch.int64) - lowest).remainder(modulus) + lowest).to(HELD[target.name])


def _to_float4(x: Tensor) -> Tensor:
    """Return values of FLOAT4E2M1: 0, 0.5, 1, 1.5, 2, 3, 4, 6, the nearest, of two as near the one with even bits.

    What is larger becomes 6, and NaN, which the type does not have, becomes -0, as in onnx's own conversion.
    """
    wide = x.to(torch.float64)  # exact for each type of float
    size = wide.abs().clamp(max=_MAX_FLOAT4)
    step = torch.where(size < 2, 0.5, torch.where(size < 4, 1.0, 2.0))
    near = ((size / step).round() * step).copysign(wide)
    return torch.where(wide.isnan(), -0.0, near).to(HELD["FLOAT4E2M1"])

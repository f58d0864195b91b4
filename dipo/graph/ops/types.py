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
    return lambda x: x.view(dtype)


def _to(node: NodeReader, target: ir.DataType) -> Callable[[Tensor], Tensor]:
    dtype = dtype_of(node, target)
    saturate = bool(node.get_int("saturate", 1))
    node.ignore("round_mode")  # for a type of 8 bits that torch does not have
    if not dtype.is_floating_point or dtype.itemsize > 1:
        return lambda x: x.to(dtype)
    if not saturate:
        raise node.refusal(f"a cast to {target.name} without saturation is not computed in torch")
    limit = torch.finfo(dtype).max
    return lambda x: x.clamp(-limit, limit).to(dtype)

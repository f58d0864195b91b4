"""Shapes as numbers, and tensors of a computed shape."""

from __future__ import annotations

import math

import onnx_ir as ir
import torch
from torch import Tensor

from dipo.graph.ops.reader import NodeReader, TorchOp
from dipo.graph.ops.types import dtype_of


def shape(node: NodeReader) -> TorchOp:
    """Shape: the sizes of x from axis `start` up to `end`, as int64 on its device."""
    start = node.get_int("start", 0)
    end = node.get_int("end", 0) if "end" in node.node.attributes else None
    return lambda x: torch.tensor(x.shape[start:end], dtype=torch.int64, device=x.device)


def size(x: Tensor) -> Tensor:
    """Size: the number of elements of x, as int64 on its device."""
    return torch.tensor(x.numel(), dtype=torch.int64, device=x.device)


def constant_of_shape(node: NodeReader) -> TorchOp:
    """ConstantOfShape: a tensor filled with one number, of the shape that the input lists."""
    value = node.get_tensor("value")
    fill: int | float | bool = 0.0 if value is None else value.reshape(()).item()
    dtype = torch.float32 if value is None else dtype_of(node, ir.DataType.from_numpy(value.dtype))
    known = node.ints(0).known

    def run(sizes: Tensor) -> Tensor:
        wanted = sizes.tolist() if known is None else known
        return torch.full(wanted, fill, dtype=dtype, device=sizes.device)

    return run


def range_(node: NodeReader) -> TorchOp:
    """Range: numbers from `start` on in steps of `delta`, up to but not including `limit`."""
    known = [node.known(index) for index in range(3)]
    ends = [None if each is None else each.reshape(()).item() for each in known]

    def run(start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
        tensors = zip(ends, (start, limit, delta), strict=True)
        first, last, step = (tensor.item() if end is None else end for end, tensor in tensors)
        count = max(math.ceil((last - first) / step), 0)
        steps = torch.arange(count, device=start.device).to(start.dtype)
        return start.reshape(()) + steps * delta.reshape(())

    return run


def eye_like(node: NodeReader) -> TorchOp:
    """EyeLike: ones on diagonal k of a matrix of zeros, of the input's shape and type unless another is named."""
    k = node.get_int("k", 0)
    named = node.get_int("dtype", 0)
    dtype = dtype_of(node, ir.DataType(named)) if named else None

    def run(x: Tensor) -> Tensor:
        rows = torch.arange(x.shape[0], device=x.device)[:, None]
        columns = torch.arange(x.shape[1], device=x.device)
        return (columns - rows == k).to(dtype or x.dtype)

    return run

"""How a layer's weight lies: filters by group and output channel, whatever the operator."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

_Float = TypeVar("_Float", np.float32, np.float64)


@dataclass(frozen=True)
class WeightLayout:
    """How the weight of a layer lies as [groups, rows, positions, inputs].

    A row makes one output channel from the inputs of its group at each position of the kernel; Gemm and MatMul have one
    position. The groups' rows, one after the other, are the output channels. The batch dimensions of a MatMul's weight
    count as groups.
    """

    operator: str
    shape: tuple[int, ...]
    """Of the weight."""
    groups: int
    transposed: bool
    """A Gemm's weight, or a MatMul's, with the inputs in front."""

    @staticmethod
    def of(node: ir.Node, shape: Sequence[int]) -> WeightLayout:
        """Return the layout of a layer with a weight of that shape."""
        groups = node.attributes.get_int("group", 1)
        if node.op_type == "MatMul":
            groups = math.prod(shape[:-2])
        transposed = node.op_type == "MatMul" or (node.op_type == "Gemm" and not node.attributes.get_int("transB", 0))
        return WeightLayout(node.op_type, tuple(shape), groups, transposed)

    @property
    def num_rows(self) -> int:
        """Output channels."""
        if self.operator == "Conv":
            return self.shape[0]
        if self.operator == "ConvTranspose":
            return self.groups * self.shape[1]
        return self.groups * self.shape[-1 if self.transposed else -2]

    @property
    def num_inputs(self) -> int:
        """Input channels, of all groups."""
        if self.operator == "Conv":
            return self.groups * self.shape[1]
        if self.operator == "ConvTranspose":
            return self.shape[0]
        return self.groups * self.shape[-2 if self.transposed else -1]

    def split(self, weight: NDArray[_Float]) -> NDArray[_Float]:
        """Return the weight as [groups, rows, positions, inputs]; a view of one that lies in order."""
        if self.operator == "ConvTranspose":
            channels, rows, *kernel = self.shape
            parts = weight.reshape(self.groups, channels // self.groups, rows, math.prod(kernel))
            return parts.transpose(0, 2, 3, 1)
        if self.operator == "Conv":
            channels, inputs, *kernel = self.shape
            parts = weight.reshape(self.groups, channels // self.groups, inputs, math.prod(kernel))
            return parts.transpose(0, 1, 3, 2)
        parts = weight.reshape(self.groups, *self.shape[-2:])
        return (parts.transpose(0, 2, 1) if self.transposed else parts)[:, :, None, :]

    def filters(self, weight: NDArray[_Float]) -> NDArray[_Float]:
        """Return the weight as [groups, rows, inputs, positions]; a view of one that lies in order."""
        return self.split(weight).transpose(0, 1, 3, 2)

    def join(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the weight of which `split` made these rows."""
        if self.operator == "ConvTranspose":
            weight = rows.transpose(0, 3, 1, 2)
        elif self.operator == "Conv":
            weight = rows.transpose(0, 1, 3, 2)
        else:
            weight = rows[:, :, 0, :].transpose(0, 2, 1) if self.transposed else rows[:, :, 0, :]
        return np.ascontiguousarray(weight.reshape(self.shape))

    def scaled(self, weight: NDArray[np.float32], factors: NDArray[np.float64]) -> NDArray[np.float32]:
        """Return the weight with each output channel multiplied by its factor."""
        rows = self.split(weight)
        return self.join((rows * factors.reshape(*rows.shape[:2], 1, 1)).astype(np.float32))

"""The layout of a layer's weight as filters by group and output channel, for every operator."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from dipo.graph import operators
from dipo.graph.target_spec import WeightForm

_Float = TypeVar("_Float", np.float32, np.float64)


@dataclass(frozen=True)
class WeightLayout:
    """The arrangement of a layer's weight as [groups, rows, positions, inputs].

    A row computes one output channel from the inputs of its group at each position of the kernel; Gemm and MatMul have
    one position. The rows of all groups, concatenated, are the output channels. The batch dimensions of a MatMul's
    weight count as groups.
    """

    operator: str
    shape: tuple[int, ...]
    """Shape of the weight."""
    groups: int
    channel_axis: int
    """Axis of the weight that counts output channels (of one group in a transposed convolution)."""
    spatial: bool
    """Whether spatial axes follow those of the channels; otherwise the weight is a matrix, or a stack of them."""

    @staticmethod
    def of(node: ir.Node, shape: Sequence[int]) -> WeightLayout:
        """Return the layout of a layer with a weight of that shape."""
        facts = operators.of(node).weight
        assert facts is not None, node.op_type
        axis = facts.channel_axis % len(shape)
        if facts.turned_by is not None and node.attributes.get_int(facts.turned_by, 0) != 0:
            axis = 1 - axis
        groups = node.attributes.get_int("group", 1) if facts.spatial else math.prod(shape[:-2])
        return WeightLayout(node.op_type, tuple(shape), groups, axis, facts.spatial)

    @property
    def inputs_first(self) -> bool:
        """Whether the axis of the inputs comes before that of the output channels."""
        return self.channel_axis == (1 if self.spatial else len(self.shape) - 1)

    @property
    def scale_axis(self) -> int:
        """Axis along which the weight has scales by channel.

        That of the output channels, except in a depthwise transposed convolution, [C, 1, ...]: the output channels of
        one group are a single one there, and the input channels, each of which makes one output channel, on axis 0.
        """
        return 0 if self.groups > 1 and self.spatial and self.shape[:2] == (self.groups, 1) else self.channel_axis

    @property
    def form(self) -> WeightForm:
        """Form of the weight, as far as targets tell weights of one operator apart by it."""
        if not self.spatial:
            return WeightForm.PLAIN if len(self.shape) == 2 else WeightForm.STACK
        return WeightForm.TRANSPOSED_GROUPS if self.inputs_first and self.groups > 1 else WeightForm.PLAIN

    @property
    def num_rows(self) -> int:
        """Number of output channels, over all groups."""
        return self.shape[self.channel_axis] * (1 if self.spatial and not self.inputs_first else self.groups)

    @property
    def num_inputs(self) -> int:
        """Number of input channels, over all groups."""
        if self.spatial:
            return self.shape[0] if self.inputs_first else self.groups * self.shape[1]
        return self.groups * self.shape[-2 if self.inputs_first else -1]

    def split(self, weight: NDArray[_Float]) -> NDArray[_Float]:
        """Return the weight as [groups, rows, positions, inputs]; a view if the memory layout allows one."""
        if not self.spatial:
            parts = weight.reshape(self.groups, *self.shape[-2:])
            return (parts.transpose(0, 2, 1) if self.inputs_first else parts)[:, :, None, :]
        first, second, *kernel = self.shape
        parts = weight.reshape(self.groups, first // self.groups, second, math.prod(kernel))
        return parts.transpose(0, 2, 3, 1) if self.inputs_first else parts.transpose(0, 1, 3, 2)

    def filters(self, weight: NDArray[_Float]) -> NDArray[_Float]:
        """Return the weight as [groups, rows, inputs, positions]; a view if the memory layout allows one."""
        return self.split(weight).transpose(0, 1, 3, 2)

    def join(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the weight from its rows: the inverse of `split`."""
        if self.spatial:
            weight = rows.transpose(0, 3, 1, 2) if self.inputs_first else rows.transpose(0, 1, 3, 2)
        else:
            weight = rows[:, :, 0, :].transpose(0, 2, 1) if self.inputs_first else rows[:, :, 0, :]
        return np.ascontiguousarray(weight.reshape(self.shape))

    def scaled(self, weight: NDArray[np.float32], factors: NDArray[np.float64]) -> NDArray[np.float32]:
        """Return the weight with each output channel multiplied by its factor."""
        rows = self.split(weight)
        return self.join((rows * factors.reshape(*rows.shape[:2], 1, 1)).astype(np.float32))

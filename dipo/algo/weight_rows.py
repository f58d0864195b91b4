"""A layer's weight as rows, one for each output channel, and the weight that a layer starts from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from dipo.algo.pair import Pair
from dipo.graph.accessors import array_of
from dipo.graph.plan import LayerPlan, QuantizedLayer
from dipo.quant.ranges import weight_qparams
from dipo.quant.spec import QParams
from dipo.recipe import CalibConfig


@dataclass(frozen=True)
class WeightRows:
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
    def of(node: ir.Node, shape: Sequence[int]) -> WeightRows:
        """That of a layer with a weight of that shape."""
        groups = node.attributes.get_int("group", 1)
        if node.op_type == "MatMul":
            groups = math.prod(shape[:-2])
        transposed = node.op_type == "MatMul" or (node.op_type == "Gemm" and not node.attributes.get_int("transB", 0))
        return WeightRows(node.op_type, tuple(shape), groups, transposed)

    def split(self, weight: NDArray[np.float32]) -> NDArray[np.float32]:
        """The weight as [groups, rows, positions, inputs]."""
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

    def join(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """The inverse of `split`."""
        if self.operator == "ConvTranspose":
            weight = rows.transpose(0, 3, 1, 2)
        elif self.operator == "Conv":
            weight = rows.transpose(0, 1, 3, 2)
        else:
            weight = rows[:, :, 0, :].transpose(0, 2, 1) if self.transposed else rows[:, :, 0, :]
        return np.ascontiguousarray(weight.reshape(self.shape))

    def scaled(self, weight: NDArray[np.float32], factors: NDArray[np.float64]) -> NDArray[np.float32]:
        """The weight with each output channel multiplied by its factor."""
        rows = self.split(weight)
        return self.join((rows * factors.reshape(*rows.shape[:2], 1, 1)).astype(np.float32))


def target_of(pair: Pair, name: str) -> NDArray[np.float32]:
    """The float weight that the layer's codes stand for."""
    target = pair.layers[name].target
    if target is not None:
        return target
    weight = array_of(pair.model.graph.initializers[pair.plan.layers[name].weight])
    return np.asarray(weight, np.float32)


def nearest_codes(weight: NDArray[np.float32], qparams: QParams) -> NDArray[np.int32]:
    """Every weight's nearest code."""
    scale, zero_point = qparams.along(weight.ndim)
    codes = np.clip(np.rint(weight / scale) + zero_point, qparams.qmin, qparams.qmax)
    return np.asarray(codes, np.int32)


def rounded(
    target: NDArray[np.float32], bias: NDArray[np.float32] | None, *, layer: LayerPlan, calib: CalibConfig
) -> QuantizedLayer:
    """A layer whose weight `target` gets a grid of its own and is rounded to the nearest codes."""
    qparams = weight_qparams(
        target,
        layer.spec,
        axis=layer.axis,
        method=calib.weights,
        percentile=calib.weight_percentile,
        name=f"weight {layer.weight}",
    )
    return QuantizedLayer(nearest_codes(target, qparams), qparams, bias, target)

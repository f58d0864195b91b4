"""Statistics of a layer's output, kept from the BatchNormalization that was folded into the layer.

The output of a BatchNormalization had, on the training data, mean beta and (but for epsilon) standard deviation |gamma|
in each channel (DFQ, arXiv:1906.04721, section 4.2.1). Folding keeps this value and its name; its producer is then the
layer. The record is metadata of the node and is not written into files.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

_KEY = "dipo.batch_norm"


@dataclass(frozen=True, eq=False)
class BatchNorm:
    """Parameters of a BatchNormalization: y = (x - mean) / sqrt(var + epsilon) * gamma + beta; arrays are [C]."""

    gamma: NDArray[np.float32]
    beta: NDArray[np.float32]
    """Mean of y over the training data."""
    mean: NDArray[np.float32]
    """Running mean of x."""
    var: NDArray[np.float32]
    """Running variance of x."""
    epsilon: float

    @property
    def std(self) -> NDArray[np.float32]:
        """Standard deviation of y over the training data: |gamma| * sqrt(var / (var + epsilon)), [C]."""
        std: NDArray[np.float32] = np.abs(self.gamma) * np.sqrt(self.var / (self.var + np.float32(self.epsilon)))
        return std

    @property
    def factor(self) -> NDArray[np.float32]:
        """Factor by which folding multiplies each output channel of the layer: gamma / sqrt(var + epsilon)."""
        factor: NDArray[np.float32] = self.gamma / np.sqrt(self.var + np.float32(self.epsilon))
        return factor

    def divided(self, scales: NDArray[np.floating]) -> BatchNorm:
        """Return the parameters for the output divided by `scales` [C]."""
        gamma, beta = (array / scales for array in (self.gamma, self.beta))
        return dataclasses.replace(self, gamma=gamma.astype(np.float32), beta=beta.astype(np.float32))

    def lowered(self, amounts: NDArray[np.floating]) -> BatchNorm:
        """Return the parameters for the output less `amounts` [C]."""
        return dataclasses.replace(self, beta=(self.beta - amounts).astype(np.float32))


def batch_norm_of(node: ir.Node) -> BatchNorm | None:
    """Return the BatchNormalization that was folded into the layer; None where there was none."""
    batch_norm = node.meta.get(_KEY)
    assert batch_norm is None or isinstance(batch_norm, BatchNorm)
    return batch_norm


def set_batch_norm(node: ir.Node, batch_norm: BatchNorm) -> None:
    """Record with the layer the BatchNormalization that describes its output."""
    node.meta[_KEY] = batch_norm


def batch_norm_in(node: ir.Node) -> BatchNorm | None:
    """Return a BatchNormalization's parameters; None for other nodes, in training mode, or if they are not constant."""
    if node.op_type != "BatchNormalization" or node.domain != "" or node.attributes.get_int("training_mode", 0) != 0:
        return None
    tensors = [None if value is None else ir.convenience.get_const_tensor(value) for value in node.inputs[1:5]]
    arrays = [tensor.numpy().astype(np.float32) for tensor in tensors if tensor is not None]
    if len(arrays) != 4:
        return None
    gamma, beta, mean, var = arrays
    return BatchNorm(gamma, beta, mean, var, node.attributes.get_float("epsilon", 1e-5))

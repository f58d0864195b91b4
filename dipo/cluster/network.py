"""The float network as it is sent to workers: the graph without its large tensors, and these as arrays.

A graph with all tensors is one message that must stay under protobuf's 2 GB, and one with tensors in a file beside the
model names that file, which another process need not find. Arrays go through the object store: one copy on each node,
mapped into every worker.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

SMALL_BYTES = 1024
"""Size up to which tensors stay in the graph."""


@dataclass(frozen=True, eq=False)
class PackedNetwork:
    """A network in two parts."""

    graph: bytes
    """An ONNX protobuf, large initializers empty."""
    tensors: dict[str, NDArray[Any]]
    """Large tensors by name of the initializer."""

    @staticmethod
    def of(model: ir.Model) -> PackedNetwork:
        """Split a network; it is left as it is."""
        graph, tensors = model.clone(), dict[str, NDArray[Any]]()
        for name, value in graph.graph.initializers.items():
            tensor = value.const_value
            assert tensor is not None
            if tensor.dtype == ir.DataType.STRING or (
                tensor.nbytes <= SMALL_BYTES and not isinstance(tensor, ir.ExternalTensor)
            ):
                continue
            tensors[name] = tensor.numpy()
            value.const_value = ir.tensor(np.zeros(0, np.float32), name=name)
        return PackedNetwork(ir.to_proto(graph).SerializeToString(), tensors)

    def model(self) -> ir.Model:
        """Return the network put together again; it holds the arrays themselves, which must not be changed."""
        model = ir.from_proto(onnx.load_from_string(self.graph))
        for name, array in self.tensors.items():
            value = model.graph.initializers[name]
            value.const_value = tensor = ir.tensor(array, name=name)
            value.shape, value.dtype = ir.Shape(array.shape), tensor.dtype
        return model

"""Sparse tensors of a file as dense ones, which alone onnx_ir reads."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper


def make_dense(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with dense tensors in place of its graph's sparse initializers and constants."""
    if not proto.graph.sparse_initializer and not any(_sparse_values(node) for node in proto.graph.node):
        return proto
    model = onnx.ModelProto()
    model.CopyFrom(proto)
    graph = model.graph
    graph.initializer.extend(_dense(tensor, tensor.values.name) for tensor in graph.sparse_initializer)
    graph.ClearField("sparse_initializer")
    for node in graph.node:
        for attribute in _sparse_values(node):
            tensor = _dense(attribute.sparse_tensor, node.output[0])
            attribute.CopyFrom(onnx.helper.make_attribute("value", tensor))
    return model


def _sparse_values(node: onnx.NodeProto) -> list[onnx.AttributeProto]:
    """Return the attribute of a Constant that holds a sparse tensor, if it has one."""
    return [
        attribute for attribute in node.attribute if node.op_type == "Constant" and attribute.name == "sparse_value"
    ]


def _dense(sparse: onnx.SparseTensorProto, name: str) -> onnx.TensorProto:
    """Return a sparse tensor as a dense one; its indices are positions in the flat tensor, or one for each axis."""
    values, indices = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
    array = np.zeros(tuple(sparse.dims), values.dtype)
    array[np.unravel_index(indices, array.shape) if indices.ndim == 1 else tuple(indices.T)] = values
    return numpy_helper.from_array(array, name)

"""What the graph says of its nodes and values, once `graph.load` has normalised it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

LAYER_OPERATORS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
ACTIVATION_OPERATORS = frozenset({"Relu", "Clip", "LeakyRelu", "PRelu", "HardSwish", "HardSigmoid", "Sigmoid", "Gelu"})


def opset_of(model: ir.Model) -> int:
    """Version of ONNX's default operator set."""
    return model.opset_imports[""]


def layers_of(model: ir.Model) -> Iterator[ir.Node]:
    """Nodes with weights, in topological order."""
    return (node for node in model.graph if is_layer(node))


def is_layer(node: ir.Node) -> bool:
    """Whether the node multiplies its input by a constant weight."""
    return node.op_type in LAYER_OPERATORS and node.domain == "" and weight_of(node) is not None


def weight_of(node: ir.Node) -> ir.Value | None:
    """The constant weight that the node multiplies by, if it has one."""
    if node.op_type == "Gemm" and node.attributes.get_int("transA", 0) != 0:
        return None
    value = node.inputs[1] if len(node.inputs) > 1 else None
    if value is None or value.const_value is None:
        return None
    # A vector has no axis of output channels.
    return None if node.op_type == "MatMul" and len(value.const_value.shape) < 2 else value


def bias_of(node: ir.Node) -> ir.Value | None:
    """The constant bias that the node adds, if it has one."""
    value = node.inputs[2] if node.op_type != "MatMul" and len(node.inputs) > 2 else None
    return value if value is not None and value.const_value is not None else None


def weight_axis(node: ir.Node) -> int:
    """Axis of the weight that counts output channels."""
    weight = weight_of(node)
    assert weight is not None and weight.shape is not None
    if node.op_type == "ConvTranspose":
        return 1
    if node.op_type == "Gemm":
        return 0 if node.attributes.get_int("transB", 0) else 1
    return len(weight.shape) - 1 if node.op_type == "MatMul" else 0


def array_of(value: ir.Value) -> NDArray[Any]:
    """The constant that the value holds."""
    assert value.const_value is not None, value.name
    return value.const_value.numpy()


def name_of(value: ir.Value) -> str:
    """The value's name; after `load` every value has one."""
    assert value.name is not None
    return value.name


def node_name(node: ir.Node) -> str:
    """The node's name; after `load` every node has one."""
    assert node.name is not None
    return node.name

"""Weights of recurrent operators, which compute in float: which of them may be stored as integers."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from dipo.graph import operators
from dipo.graph.accessors import name_of

AXIS = 1
"""Axis of the rows, each of which has a scale, in a weight [directions, rows, inputs]; the directions share them."""
BITS = 8
"""Width in which they are stored."""


def weights_of(node: ir.Node) -> list[ir.Value]:
    """Return the constant weights of a recurrent node; none of any other node."""
    ports = operators.of(node).recurrent_weights
    values = [node.inputs[port] for port in ports if port < len(node.inputs)]
    return [value for value in values if value is not None and value.const_value is not None]


def is_recurrent(node: ir.Node) -> bool:
    """Return whether the node computes step by step with weights."""
    return bool(operators.of(node).recurrent_weights)


def can_be_stored(value: ir.Value) -> bool:
    """Return whether a weight of recurrent nodes may be replaced by integers: nothing else reads its numbers."""
    tensor = value.const_value
    if tensor is None or not value.is_initializer() or value.is_graph_output():
        return False
    if tensor.dtype != ir.DataType.FLOAT or len(tensor.shape) <= AXIS or tensor.size == 0:
        return False
    return all(use.idx in operators.of(use.node).recurrent_weights for use in value.uses())


def stored_weights(model: ir.Model) -> Iterator[tuple[ir.Value, tuple[ir.Node, ...]]]:
    """Yield the weights that may be stored as integers, each with the nodes that read it, in topological order."""
    readers: dict[ir.Value, list[ir.Node]] = {}
    for node in model.graph:
        for value in weights_of(node):
            readers.setdefault(value, []).append(node)
    for value, nodes in readers.items():
        if can_be_stored(value) and len(value.uses()) == len(nodes):
            yield value, tuple(nodes)


def names_of(node: ir.Node) -> list[str]:
    """Return the names of a recurrent node's constant weights."""
    return [name_of(value) for value in weights_of(node)]

"""Weights of recurrent operators, and of layers in branches and loops, which compute in float, stored as integers.

A call that holds a node with subgraphs (`passes.enclose_subgraphs`) reads the weights of the layers inside as inputs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

import onnx_ir as ir

from dipo.graph import operators
from dipo.graph.accessors import name_of

AXIS = 1
"""Axis of the rows, each of which has a scale, in a weight [directions, rows, inputs]; the directions share them."""
BITS = 8
"""Width in which they are stored."""


_KEY = "dipo.inner_weights"


def inner_port_axes(node: ir.Node) -> Mapping[int, int]:
    """Return the inputs of a call that are weights of layers inside, each with the axis of its scales."""
    text = node.metadata_props.get(_KEY)
    return {} if text is None else {int(port): axis for port, axis in json.loads(text).items()}


def set_inner_port_axes(node: ir.Node, axes: Mapping[int, int]) -> None:
    """Record what `inner_port_axes` returns; the record goes to workers with the node."""
    node.metadata_props.pop(_KEY, None)
    if axes:
        node.metadata_props[_KEY] = json.dumps(axes)


def port_axes(node: ir.Node) -> Mapping[int, int]:
    """Return the inputs that are weights which may be stored as integers, each with the axis of its scales."""
    return {**dict.fromkeys(operators.of(node).recurrent_weights, AXIS), **inner_port_axes(node)}


def weights_of(node: ir.Node) -> list[ir.Value]:
    """Return the constant weights of a recurrent node or of layers in a branch or loop; none of any other node."""
    values = [node.inputs[port] for port in port_axes(node) if port < len(node.inputs)]
    return [value for value in values if value is not None and value.const_value is not None]


def is_recurrent(node: ir.Node) -> bool:
    """Return whether the node computes step by step with weights."""
    return bool(operators.of(node).recurrent_weights)


def axis_of(value: ir.Value) -> int | None:
    """Return the axis of a weight's scales; None where its numbers are read otherwise, so that it has to stay float."""
    tensor = value.const_value
    if tensor is None or not value.is_initializer() or value.is_graph_output():
        return None
    axes = {port_axes(use.node).get(use.idx) for use in value.uses()}
    axis = axes.pop() if len(axes) == 1 else None
    if axis is None or tensor.dtype != ir.DataType.FLOAT or len(tensor.shape) <= max(axis, 1) or tensor.size == 0:
        return None
    return axis


def stored_weights(model: ir.Model) -> Iterator[tuple[ir.Value, int, tuple[ir.Node, ...]]]:
    """Yield the weights that may be stored as integers, each with its axis and the nodes that read it, in order."""
    readers: dict[ir.Value, list[ir.Node]] = {}
    for node in model.graph:
        for value in weights_of(node):
            readers.setdefault(value, []).append(node)
    for value, nodes in readers.items():
        axis = axis_of(value)
        if axis is not None and len(value.uses()) == len(nodes):
            yield value, axis, tuple(nodes)


def names_of(node: ir.Node) -> list[str]:
    """Return the names of the weights of `weights_of`."""
    return [name_of(value) for value in weights_of(node)]

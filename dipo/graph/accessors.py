"""Accessors of nodes and values in a graph that `graph.load` has normalised."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray


def opset_of(model: ir.Model) -> int:
    """Return the version of ONNX's default operator set."""
    return model.opset_imports[""]


def array_of(value: ir.Value) -> NDArray[Any]:
    """Return the numbers of a constant value."""
    assert value.const_value is not None, value.name
    return value.const_value.numpy()


def name_of(value: ir.Value) -> str:
    """Return the value's name; after `load` every value has one."""
    assert value.name is not None
    return value.name


def node_name(node: ir.Node) -> str:
    """Return the node's name; after `load` every node has one."""
    assert node.name is not None
    return node.name


def sole_consumer(value: ir.Value) -> ir.Node | None:
    """Return the only node that reads the value, once; None where several do, none does, or it leaves the network."""
    nodes = [use.node for use in value.uses()]
    return nodes[0] if len(nodes) == 1 and not value.is_graph_output() else None

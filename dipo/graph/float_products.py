"""Products that stay float although they have a weight, or what looks like one, and why."""

from __future__ import annotations

from collections.abc import Iterator, Set

import numpy as np
import onnx_ir as ir

from dipo.graph import operators
from dipo.graph.accessors import array_of, node_name
from dipo.graph.layers import Layer, layer_of, layers_of


def float_products(model: ir.Model) -> dict[str, str]:
    """Return, by name of the node, why the network's products are no layers, and so are not quantized by their weight.

    A product of two activations, as in attention, has no weight and is left out.

    Args:
        model: A normalised model.
    """
    reasons = ((node_name(node), _reason(node)) for node in model.graph if layer_of(node) is None)
    return {name: reason for name, reason in reasons if reason is not None}


def _reason(node: ir.Node) -> str | None:
    facts = operators.of(node).weight
    if facts is None:
        return None
    left = node.inputs[0]
    weight = node.inputs[facts.port] if facts.port < len(node.inputs) else None
    is_constant = weight is not None and weight.const_value is not None
    if is_constant and node.attributes.get_int("transA", 0) != 0:
        return "it turns its input around (transA), so it is no layer and stays float: export it with a Transpose"
    if is_constant:
        return "its weight is a vector, without an axis of output channels, so it is no layer and stays float"
    if left is not None and left.const_value is not None:
        return "its constant is the left factor, where a layer's weight is the right one, so it stays float"
    if facts.spatial:
        return "its weight is computed from the samples, so it is no layer and stays float"
    return None


def tables_of_layers(model: ir.Model, layers: Set[str]) -> dict[str, str]:
    """Return, by name of the Gather, the layer whose weight is the table that it picks from, itself or transposed.

    Such a file holds the numbers twice: the layer's as integers, and the table.

    Args:
        model: A normalised model.
        layers: Names of the layers that are quantized.
    """
    matrices = [layer for layer in layers_of(model) if layer.name in layers and len(layer.shape) == 2]
    tables = ((node, node.inputs[0]) for node in model.graph if node.op_type == "Gather" and node.domain == "")
    found = {}
    for node, table in tables:
        if table is not None and table.const_value is not None and len(table.const_value.shape) == 2:
            layer = next(_made_of(array_of(table), matrices), None)
            if layer is not None:
                found[node_name(node)] = layer.name
    return found


def _made_of(table: np.ndarray, layers: list[Layer]) -> Iterator[Layer]:
    for layer in layers:
        for array in (table, table.T):
            if layer.shape == array.shape and np.array_equal(layer.array, array):
                yield layer

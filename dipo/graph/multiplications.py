"""The multiplications of a network for one sample: those of products, which decide what it costs."""

from __future__ import annotations

import math
from collections.abc import Mapping

import onnx_ir as ir

from dipo.graph import operators
from dipo.graph.layers import layer_of

Shapes = Mapping[str, tuple[int, ...]]
"""Shapes of values by name, for one sample."""


def multiplications(node: ir.Node, shapes: Shapes) -> int:
    """Return how many numbers a node multiplies with each other; 0 for what is not a product, or not known.

    Args:
        node: A layer, a product of activations, or an operator of which nothing is known: its constant matrices (an
            LSTM's) are taken to be multiplied at each position of its first input.
        shapes: Shapes of the values that it reads and makes.
    """
    layer = layer_of(node)
    if layer is not None:
        layout = layer.layout
        if layout.spatial and layout.inputs_first:
            return _size(node.inputs[0], shapes) * math.prod(layer.shape) // max(1, layout.num_inputs)
        return _size(node.outputs[0], shapes) * math.prod(layer.shape) // max(1, layout.num_rows)
    facts = operators.of(node).weight
    if facts is not None:
        return _of_computed(node, shapes, spatial=facts.spatial, port=facts.port)
    return _of_matrices(node, shapes) if operators.of(node).torch is None else 0


def _of_computed(node: ir.Node, shapes: Shapes, *, spatial: bool, port: int) -> int:
    """Return those of a product whose weight is computed: matrices of activations, or a kernel."""
    weight = _shape(node.inputs[port], shapes)
    outputs = _size(node.outputs[0], shapes)
    if spatial:
        return outputs * math.prod(weight[1:])
    left = _shape(node.inputs[0], shapes)
    if not left:
        return 0
    return outputs * left[-2 if node.attributes.get_int("transA", 0) and len(left) > 1 else -1]


def _of_matrices(node: ir.Node, shapes: Shapes) -> int:
    data = _shape(node.inputs[0], shapes) if node.inputs else ()
    matrices = [
        math.prod(value.const_value.shape.numpy())
        for value in node.inputs[1:]
        if value is not None
        and value.const_value is not None
        and value.const_value.dtype.is_floating_point()
        and len(value.const_value.shape) > 1
    ]
    return sum(matrices) * math.prod(data[:-1])


def _size(value: ir.Value | None, shapes: Shapes) -> int:
    return math.prod(_shape(value, shapes))


def _shape(value: ir.Value | None, shapes: Shapes) -> tuple[int, ...]:
    """Return the shape of a value; that of nothing, [0], where it is not known."""
    if value is None:
        return (0,)
    if value.const_value is not None:
        return tuple(int(size) for size in value.const_value.shape.numpy())
    return shapes.get(value.name or "", (0,))

"""The multiplications of a network for one sample: those of products, which decide what it costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

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
    special = _SPECIAL.get(operators.key_of(node))
    if special is not None:
        return special(node, shapes)
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


def _of_einsum(node: ir.Node, shapes: Shapes) -> int:
    """Return the number of terms of all sums: one for each combination of the letters' indices."""
    sizes: dict[str, int] = {}
    terms = node.attributes.get_string("equation", "").replace(" ", "").partition("->")[0].split(",")
    for term, value in zip(terms, node.inputs, strict=False):
        shape = _shape(value, shapes)
        before, dots, behind = term.partition("...")
        hidden = shape[len(before) : len(shape) - len(behind)] if dots else ()
        letters = [*before, *(f".{index - len(hidden)}" for index in range(len(hidden))), *behind]
        for letter, size in zip(letters, shape, strict=False):
            sizes[letter] = max(size, sizes.get(letter, 0))
    return math.prod(sizes.values()) if len(terms) > 1 else 0


def _of_attention(node: ir.Node, shapes: Shapes) -> int:
    """Return those of both products, of queries with keys and of their weights with values of the same width."""
    keys = _shape(node.inputs[1], shapes)
    return 2 * _size(node.inputs[0], shapes) * (keys[-2] if len(keys) > 1 else 0)


_SPECIAL: Mapping[str, Callable[[ir.Node, Shapes], int]] = {"Einsum": _of_einsum, "Attention": _of_attention}
"""Operators, by key, that multiply activations and have no record of a weight."""


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

"""Shapes behind operators that ONNX's own inference does not know."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from dipo.graph import operators
from dipo.graph.operators import Kind


def infer_shapes(model: ir.Model) -> None:
    """Give what functions of one tensor make the shape and the type of that tensor, and infer what follows.

    ONNX's inference stops at an operator of another domain. Where it has stopped nowhere, nothing is done.

    Args:
        model: Changed in place: its values get shapes and types.
    """
    while sum(map(_take_over, model.graph)):
        ShapeInferencePass()(model)


def _take_over(node: ir.Node) -> bool:
    """Whether the node's output has got something from its input."""
    operator = operators.of(node)
    source, made = node.inputs[0] if node.inputs else None, node.outputs[0]
    is_function = operator.kind in {Kind.ACTIVATION, Kind.ELEMENTWISE} and operator.data_inputs == 1
    if not is_function or source is None or source.shape is None or made.shape is not None:
        return False
    made.shape, made.type = source.shape.copy(), made.type or source.type
    return True

"""Shapes behind operators that ONNX's own inference does not know."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult
from onnx_ir.passes.common import ShapeInferencePass

from dipo.graph import operators
from dipo.graph.operators import Kind


class InferShapes(InPlacePass):
    """Go on where ONNX's inference stops: at an operator of another domain.

    1. What a function of one tensor makes has the shape and the type of that tensor.
    2. What follows from that is inferred. Where inference has stopped nowhere, nothing is done.
    """

    def call(self, model: ir.Model) -> PassResult:
        """Take shapes over, and infer, until nothing is added."""
        modified = False
        while sum(map(_take_over, model.graph)):
            modified = True
            ShapeInferencePass()(model)
        return PassResult(model, modified)


def _take_over(node: ir.Node) -> bool:
    """Return whether the node's output has got something from its input."""
    operator = operators.of(node)
    source, made = node.inputs[0] if node.inputs else None, node.outputs[0]
    is_function = operator.kind in {Kind.ACTIVATION, Kind.ELEMENTWISE} and operator.data_inputs == 1
    if not is_function or source is None or source.shape is None or made.shape is not None:
        return False
    made.shape, made.type = source.shape.copy(), made.type or source.type
    return True

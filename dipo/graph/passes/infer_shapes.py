"""Shape inference past operators that ONNX's own inference does not know."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult
from onnx_ir.passes.common import ShapeInferencePass

from dipo.graph import operators
from dipo.graph.operators import Kind


class InferShapes(InPlacePass):
    """Continue shape inference where ONNX's stops: at an operator of another domain.

    1. The output of an element-wise function of one tensor has the shape and the type of that tensor.
    2. Shapes that follow from these are inferred. If inference has stopped nowhere, nothing is done.
    """

    def call(self, model: ir.Model) -> PassResult:
        """Copy shapes and infer others, until none is added."""
        modified = False
        while sum(map(_take_over, model.graph)):
            modified = True
            ShapeInferencePass()(model)
        return PassResult(model, modified)


def _take_over(node: ir.Node) -> bool:
    """Copy shape and type from the node's input to its output where missing; return whether that was done."""
    operator = operators.of(node)
    source, output = node.inputs[0] if node.inputs else None, node.outputs[0]
    is_function = operator.kind in {Kind.ACTIVATION, Kind.ELEMENTWISE} and operator.data_inputs == 1
    if not is_function or source is None or source.shape is None or output.shape is not None:
        return False
    output.shape, output.type = source.shape.copy(), output.type or source.type
    return True

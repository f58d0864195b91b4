"""Small tensors of one number, as constants."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult

from dipo.graph.constants import drop_unused

LARGEST = 8192
"""Number of elements up to which a tensor is stored, as the optimizer has it for what it folds."""


class FoldFills(InPlacePass):
    """Make constants of small tensors of one number.

    The optimizer leaves a ConstantOfShape alone, so that no file grows, and with it all sizes that are computed from
    one, such as those to which torch's exporter expands a class token.

    1. No ConstantOfShape of a constant shape makes `LARGEST` elements or fewer.
    """

    def call(self, model: ir.Model) -> PassResult:
        """Replace the nodes."""
        modified = False
        for node in model.graph:
            size = _size(node)
            if size is None or math.prod(size) > LARGEST or node.outputs[0].is_graph_output():
                continue
            shape, output = node.inputs[0], node.outputs[0]
            fill = node.attributes.get("value")
            number = np.zeros(1, np.float32) if fill is None else fill.as_tensor().numpy()
            tensor = ir.tensor(np.broadcast_to(number.reshape(()), size).copy(), name=output.name)
            constant = ir.val(
                output.name, const_value=tensor, shape=ir.Shape(size), type=ir.TensorType(ir.DataType(tensor.dtype))
            )
            ir.convenience.replace_all_uses_with(output, constant)
            model.graph.remove(node, safe=True)
            model.graph.register_initializer(constant)
            drop_unused(model, shape)
            modified = True
        return PassResult(model, modified)


def _size(node: ir.Node) -> tuple[int, ...] | None:
    """Return the constant shape of a ConstantOfShape; None if it is computed or none, or for other nodes."""
    value = node.inputs[0] if node.op_type == "ConstantOfShape" and node.domain == "" else None
    tensor = None if value is None or value.is_graph_input() else ir.convenience.get_const_tensor(value)
    if tensor is None or tensor.dtype != ir.DataType.INT64 or len(tensor.shape) != 1 or (tensor.numpy() < 0).any():
        return None
    return tuple(int(size) for size in tensor.numpy())

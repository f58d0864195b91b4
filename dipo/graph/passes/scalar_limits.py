"""Limits and padding values as scalars."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult

from dipo.graph.constants import replace_input

_SCALARS = {"Clip": (1, 2), "Pad": (2,)}
"""Positions of inputs that ONNX says are scalars, by operator."""


class ScalarLimits(InPlacePass):
    """Give Clip and Pad the scalars that ONNX asks for.

    1. A constant limit of a Clip, or value of a Pad, has no dimensions. Converters write tensors of shape [1], which
       ONNX Runtime takes and stricter readers refuse.
    """

    def call(self, model: ir.Model) -> PassResult:
        """Replace constants of one element that have dimensions."""
        modified = False
        for node in model.graph:
            ports = _SCALARS.get(node.op_type, ()) if node.domain == "" else ()
            for port in ports[: max(0, len(node.inputs) - 1)]:
                value = node.inputs[port] if port < len(node.inputs) else None
                tensor = None if value is None else ir.convenience.get_const_tensor(value)
                if value is not None and tensor is not None and tensor.size == 1 and len(tensor.shape):
                    replace_input(model, node, port, f"{value.name}_scalar", tensor.numpy().reshape(()))
                    modified = True
        return PassResult(model, modified)

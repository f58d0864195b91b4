"""Refusal of networks with a constant output."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult

from dipo.errors import UserError


class RefuseConstantOutputs(InPlacePass):
    """Refuse a network with a constant output, which has no row for each sample; change nothing."""

    def call(self, model: ir.Model) -> PassResult:
        """Check the outputs.

        Raises:
            UserError: One is a constant.
        """
        for value in model.graph.outputs:
            if value.const_value is not None:
                raise UserError(f"output {value.name!r} is a constant, export the model without it")
        return PassResult(model, modified=False)

"""Parameters that are constants, not inputs with a default."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult
from onnx_ir.passes.common import RemoveInitializersFromInputsPass

IR_VERSION = 4
"""First version of ONNX's format in which initializers need not be inputs."""


class ConstantParameters(InPlacePass):
    """Make constants of the parameters that older files list as inputs, too.

    1. No initializer is an input.
    2. The model's format is new enough for that, so that written files are valid.
    """

    def call(self, model: ir.Model) -> PassResult:
        """Remove initializers from the inputs, and raise the version of the format as needed."""
        modified = RemoveInitializersFromInputsPass()(model).modified or model.ir_version < IR_VERSION
        model.ir_version = max(model.ir_version, IR_VERSION)
        return PassResult(model, modified)

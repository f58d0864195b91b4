"""One name for ONNX's own operators."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult

_LONG_NAME = "ai.onnx"


class DefaultDomain(InPlacePass):
    """Import ONNX's own operators under their short name.

    1. The model and its functions import the domain `ai.onnx` as the empty one, which means the same.
    """

    def call(self, model: ir.Model) -> PassResult:
        """Rename the imports; nodes have the short name once they are read."""
        imports = [model.opset_imports, *(function.opset_imports for function in model.functions.values())]
        modified = False
        for opsets in imports:
            if _LONG_NAME in opsets:
                opsets.setdefault("", opsets.pop(_LONG_NAME))
                modified = True
        return PassResult(model, modified)

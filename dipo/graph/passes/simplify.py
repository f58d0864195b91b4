"""Inlining of functions, and folding of constants, BatchNormalization and Pad."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult
from onnx_ir.passes.common import InlinePass
from onnxscript import optimizer

from dipo.errors import UserError
from dipo.graph.batch_norm import BatchNorm, batch_norm_in, set_batch_norm
from dipo.graph.passes.invariants import check_inlined


class Simplify(InPlacePass):
    """Inline functions and fold constants, BatchNormalization and Pad.

    1. Functions are inlined: nodes are ONNX's own operators, or those of other domains that are no functions.
    2. Values that depend on constants alone are constants.
    3. BatchNormalization and Pad are folded into the adjacent convolution.
    4. A layer into which BatchNormalization was folded has a record of it (`batch_norm.batch_norm_of`).
    """

    def call(self, model: ir.Model) -> PassResult:
        """Inline, then fold.

        Raises:
            UserError: The graph is not valid.
        """
        try:
            # Inlined first: a function's values get the names that they keep.
            InlinePass()(model)
            batch_norms = _find_batch_norms(model)
            optimizer.optimize(model)
        except Exception as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise UserError(f"not a valid ONNX graph ({reason}), export it again") from error
        for node in model.graph:
            norm = batch_norms.get(node.outputs[0].name or "")
            if norm is not None and node.op_type != "BatchNormalization":
                set_batch_norm(node, norm)
        return PassResult(model, modified=True)

    def ensures(self, model: ir.Model) -> None:
        """Check that no function is left."""
        check_inlined(model)


def _find_batch_norms(model: ir.Model) -> dict[str, BatchNorm]:
    """Return every BatchNormalization with constant parameters, by name of its output."""
    norms = {node.outputs[0].name: batch_norm_in(node) for node in model.graph}
    return {name: norm for name, norm in norms.items() if name and norm is not None}

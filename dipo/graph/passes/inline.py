"""Inlining of functions."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult
from onnx_ir.passes.common import InlinePass

from dipo.errors import UserError
from dipo.graph.passes.invariants import check_inlined


class Inline(InPlacePass):
    """Inline functions.

    1. Nodes are ONNX's own operators, or those of other domains that are no functions.
    2. A function's values have the names that they keep.
    """

    def call(self, model: ir.Model) -> PassResult:
        """Inline all functions.

        Raises:
            UserError: The graph is not valid.
        """
        try:
            return PassResult(model, InlinePass()(model).modified)
        except Exception as error:
            raise invalid(error) from error

    def ensures(self, model: ir.Model) -> None:
        """Check that no function is left."""
        check_inlined(model)


def invalid(error: Exception) -> UserError:
    """Return the error for a graph that a library's pass does not take.

    Args:
        error: Its exception. A pass reports one of another pass inside it as its own, so the innermost one is quoted.
    """
    while error.__cause__ is not None and isinstance(error.__cause__, Exception):
        error = error.__cause__
    reason = next(iter(str(error).splitlines()), type(error).__name__)
    return UserError(f"not a valid ONNX graph ({reason}), export it again")

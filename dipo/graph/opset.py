"""Conversion of a model to a newer version of ONNX's default operator set."""

from __future__ import annotations

import onnx_ir as ir
from onnxscript.version_converter import convert_version

from dipo.errors import UserError
from dipo.graph.quiet import quiet

OLDEST_OPSET = 7
"""Oldest supported opset: before it, operators broadcast by attributes, and ONNX Runtime has no kernels for them."""
ENCLOSED = "dipo.enclosed"
"""Domain of the functions of `passes.enclose_subgraphs`, which no written file has."""


def convert_opset(model: ir.Model, opset: int) -> None:
    """Convert the model to a newer default operator set, in place.

    The converter rewrites the operators that changed their form or their meaning; it keeps the names of values, and of
    the nodes that it leaves alone.

    Args:
        model: The model; its initializers are no inputs.
        opset: Version of the default operator set.

    Raises:
        UserError: ONNX's converter does not know a way.
    """
    old = model.opset_imports[""]
    with quiet():
        convert_version(model, opset, fallback=True)
    # A failed conversion is logged and leaves the model as it was.
    if model.opset_imports[""] != opset:
        raise UserError(
            f"ONNX's converter cannot bring the model from opset {old} to {opset}, which is needed here: export it at "
            f"opset {opset} or later"
        )

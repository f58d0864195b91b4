"""Declared shapes of outputs that the network contradicts."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult
from onnx_ir.passes.common import ShapeInferencePass


class TrueShapes(InPlacePass):
    """Take the inferred shape of an output where the declared one cannot be right.

    Some exporters and tools write the axes of another value; runtimes warn of it and go by what is computed. Everything
    that is derived from such a shape, as the constant target of a Reshape, would be wrong.

    1. An output has a declared shape of the rank that is inferred without it, if one is.
    2. No size that is declared differs from one that is inferred.
    """

    def call(self, model: ir.Model) -> PassResult:
        """Replace the shapes."""
        inferred = _inferred(model)
        wrong = [value for value in model.graph.outputs if _contradict(value.shape, inferred.get(value.name))]
        for value in wrong:
            value.shape = inferred[value.name]
        return PassResult(model, modified=bool(wrong))


def _inferred(model: ir.Model) -> dict[str | None, ir.Shape | None]:
    """Return the shapes of the outputs that follow from the inputs alone."""
    copy = model.clone()
    for value in copy.graph.outputs:
        if value.producer() is not None:
            value.shape = None
    ShapeInferencePass()(copy)
    return {value.name: value.shape or _of_target(value) for value in copy.graph.outputs}


def _of_target(value: ir.Value) -> ir.Shape | None:
    """Return a shape of unknown sizes for a Reshape's result: the rank is the number of sizes in its target."""
    node = value.producer()
    if node is None or (node.domain, node.op_type) != ("", "Reshape") or len(node.inputs) < _WITH_TARGET:
        return None
    target = node.inputs[1]
    rank = None if target is None or target.shape is None or not len(target.shape) else target.shape[0]
    return ir.Shape([None] * rank) if isinstance(rank, int) else None


_WITH_TARGET = 2
"""Inputs of a Reshape, from operator set 5 on."""


def _contradict(declared: ir.Shape | None, inferred: ir.Shape | None) -> bool:
    if declared is None or inferred is None:
        return False
    if len(declared) != len(inferred):
        return True
    pairs = zip(declared, inferred, strict=True)
    return any(isinstance(a, int) and isinstance(b, int) and a != b for a, b in pairs)

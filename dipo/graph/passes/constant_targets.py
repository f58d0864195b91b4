"""Constant targets in place of those that a network computes from its own shapes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import InPlacePass, PassResult
from onnx_ir.passes.common import RemoveUnusedNodesPass, ShapeInferencePass
from onnxscript.optimizer import fold_constants

from dipo.graph import operators
from dipo.graph.constants import replace_input
from dipo.graph.passes.resize_scales import exact_scales, set_scales


class ConstantTargets(InPlacePass):
    """Give a Reshape, Expand or Resize whose target is computed from shapes a constant one that means the same.

    Exporters write `x.view(x.size(0), -1)` as Shape, Gather, Unsqueeze and Concat in front of the Reshape. Where the
    shapes that were inferred say what comes out, up to sizes that the node can copy or find by itself, nothing has to
    be computed, and compilers that take no computed targets take the network.

    1. A Reshape of which all sizes but one are known, or the same as at that place of its input, has a constant target.
    2. So has an Expand of which all sizes are, and a Resize whose factors follow from known sizes.
    3. Nodes that nothing reads any more are removed. Free dimensions stay free.
    """

    def call(self, model: ir.Model) -> PassResult:
        """Replace the targets."""
        if not any(operators.of(node).reads_shape for node in model.graph):
            return PassResult(model, modified=False)
        # What follows from a constant target may make another one known.
        replaced = 1
        while replaced:
            ShapeInferencePass()(model)
            replaced = sum(_replaced(model, node) for node in model.graph if _target_port(node) is not None)
        fold_constants(model)  # sizes that have become known
        RemoveUnusedNodesPass()(model)
        return PassResult(model, modified=True)


def _target_port(node: ir.Node) -> int | None:
    """Return the index of the input with a node's computed target; None for other nodes."""
    port = {"Reshape": 1, "Expand": 1, "Resize": 3}.get(node.op_type) if node.domain == "" else None
    value = node.inputs[port] if port is not None and port < len(node.inputs) else None
    return None if value is None or ir.convenience.get_const_tensor(value) is not None else port


def _replaced(model: ir.Model, node: ir.Node) -> bool:
    source, output = node.inputs[0], node.outputs[0]
    if source is None or output.shape is None:
        return False
    if node.op_type == "Resize":
        scales = _scales(node, source.shape, output.shape)
        if scales is not None:
            set_scales(model, node, scales)
        return scales is not None
    find = _reshape_target if node.op_type == "Reshape" else _expand_target
    target = find(source.shape, output.shape)
    if target is not None:
        node.attributes.pop("allowzero", None)
        replace_input(model, node, 1, f"{output.name}_shape", target)
    return target is not None


def _reshape_target(source: ir.Shape | None, output: ir.Shape) -> NDArray[np.int64] | None:
    target = [_size(size, None if source is None else _at(source, place)) for place, size in enumerate(output)]
    if target.count(None) > 1 or any(size == 0 for size in output):
        return None
    return np.array([-1 if size is None else size for size in target], np.int64)


def _size(size: int | ir.SymbolicDim, before: int | ir.SymbolicDim | None) -> int | None:
    """Return a size of a target; 0 for that of the input's at this place, None if neither is known."""
    if isinstance(size, int):
        return size
    return 0 if _is_same(size, before) else None


def _is_same(size: ir.SymbolicDim, other: int | ir.SymbolicDim | None) -> bool:
    return isinstance(other, ir.SymbolicDim) and size.value is not None and size.value == other.value


def _at(shape: ir.Shape, place: int) -> int | ir.SymbolicDim | None:
    return shape[place] if 0 <= place < len(shape) else None


def _expand_target(source: ir.Shape | None, output: ir.Shape) -> NDArray[np.int64] | None:
    if source is None:
        return None
    added = len(output) - len(source)
    sizes = [
        size if isinstance(size, int) else (1 if _is_same(size, _at(source, place - added)) else None)
        for place, size in enumerate(output)
    ]
    return None if None in sizes else np.array(sizes, np.int64)


def _scales(node: ir.Node, source: ir.Shape | None, output: ir.Shape) -> NDArray[np.float32] | None:
    """Return the factors of a Resize by computed sizes; None if they do not follow from known sizes."""
    if source is None or "axes" in node.attributes or len(source) != len(output):
        return None
    if node.attributes.get_string("keep_aspect_ratio_policy", "stretch") != "stretch":
        return None
    sizes: list[tuple[int, int]] = []
    for before, size in zip(source, output, strict=True):
        if isinstance(before, int) and isinstance(size, int):
            sizes.append((before, size))
        elif isinstance(size, ir.SymbolicDim) and _is_same(size, before):
            sizes.append((1, 1))
        else:
            return None
    old, new = np.array(sizes, np.int64).T
    return exact_scales(old, new)

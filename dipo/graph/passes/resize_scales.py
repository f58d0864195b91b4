"""Resize by factors for all axes, in place of sizes for some."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import InPlacePass, PassResult

from dipo.graph.constants import drop_unused, replace_input


class ResizeScales(InPlacePass):
    """Let a Resize that names its axes give a factor for each axis instead.

    ONNX Runtime's change of the memory layout around integer kernels loses the sizes of a Resize with axes, and does
    not load the file; readers of older operator sets do not know them. Sizes for all axes would fix the batch.

    1. No Resize by constants has `axes`, if the sizes that it changes are known and the factors give them exactly.
    """

    def call(self, model: ir.Model) -> PassResult:
        """Replace the constants."""
        modified = False
        for node in model.graph:
            scales = _scales(node) if node.op_type == "Resize" and node.domain == "" else None
            if scales is not None:
                del node.attributes["axes"]
                set_scales(model, node, scales)
                modified = True
        return PassResult(model, modified)


def set_scales(model: ir.Model, node: ir.Node, scales: NDArray[np.float32]) -> None:
    """Give a Resize constant factors in place of its factors or sizes."""
    sizes = node.inputs[3] if len(node.inputs) > 3 else None
    replace_input(model, node, 2, f"{node.outputs[0].name}_scales", scales)
    node.resize_inputs(3)
    drop_unused(model, sizes)


def exact_scales(old: NDArray[np.int64], new: NDArray[np.int64]) -> NDArray[np.float32] | None:
    """Return the factors by which a Resize makes the sizes `new` of `old`; None if no factor is exact.

    ONNX Runtime multiplies in float32 and rounds down, so a quotient may fall short by one step of its precision.
    """
    scales = (new / old).astype(np.float32)
    short = np.floor(old.astype(np.float32) * scales) < new
    scales[short] = np.nextafter(scales[short], np.float32(np.inf))
    return scales if np.array_equal(np.floor(old.astype(np.float32) * scales), new) else None


def _scales(node: ir.Node) -> NDArray[np.float32] | None:
    """Return the factors for all axes; None if the node names no axes, or its sizes are not known."""
    source = node.inputs[0]
    if "axes" not in node.attributes or source is None or source.shape is None:
        return None
    if node.attributes.get_string("keep_aspect_ratio_policy", "stretch") != "stretch":
        return None
    rank = len(source.shape)
    axes = [axis % rank for axis in node.attributes["axes"].as_ints()]
    scales, sizes = (_constant(node, port) for port in (2, 3))
    if scales is None and sizes is not None:
        old = [source.shape[axis] for axis in axes]
        known = np.array([size for size in old if isinstance(size, int)], np.int64)
        scales = exact_scales(known, sizes.astype(np.int64)) if len(known) == len(axes) else None
    if scales is None:
        return None
    full = np.ones(rank, np.float32)
    full[axes] = scales
    return full


def _constant(node: ir.Node, port: int) -> NDArray[np.generic] | None:
    """Return a constant input; None if it is absent, empty as some exporters leave it, or computed."""
    value = node.inputs[port] if port < len(node.inputs) else None
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return None if tensor is None or tensor.size == 0 else tensor.numpy()

"""The axis of each value that counts the samples, in a network whose sizes are all fixed.

Behind a Reshape that joins the batch with another axis, an axis counts the rows of all samples, and the samples are its
outer part: in a shuffle of channels, [batch, 2 c, h, w] becomes [batch * c, 2, h w], transposed [2, batch * c, h w].
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import onnx_ir as ir

from dipo.graph import operators
from dipo.graph.operators import Channels, Kind, Moves


def batch_axes(model: ir.Model, batch: int) -> dict[ir.Value, int]:
    """Return the axis of each value whose outer part is the batch; values without one or of unknown shape are left out.

    Args:
        model: A model whose shapes are inferred, all inputs of which begin with the batch.
        batch: Its size.
    """
    axes = {value: 0 for value in model.graph.inputs if value.shape is not None and len(value.shape)}
    for node in model.graph:
        for value in node.outputs:
            axis = _axis_behind(node, value, axes, batch)
            if axis is not None:
                axes[value] = axis
    return axes


def reshaped_axis(source: ir.Shape, target: ir.Shape, axis: int, *, batch: int) -> int | None:
    """Return the axis behind a Reshape whose outer part is that of `axis` before; None if no axis begins there.

    Of several, as beside sizes of 1, it is the first one of the batch's size, else the first.

    Args:
        source: Static shape before.
        target: Static shape behind.
        axis: The axis before.
        batch: Size of the batch.
    """
    before, sizes = source.numpy(), target.numpy()
    found = [i for i in range(len(sizes)) if math.prod(sizes[:i]) == math.prod(before[:axis])]
    alone = [i for i in found if sizes[i] == batch]
    return next(iter(alone or found), None)


def _axis_behind(node: ir.Node, output: ir.Value, axes: Mapping[ir.Value, int], batch: int) -> int | None:
    source = next((value for value in node.inputs if value is not None and value in axes), None)
    if source is None or source.shape is None or output.shape is None:
        return None
    axis, before, behind = axes[source], len(source.shape), len(output.shape)
    operator = operators.of(node)
    if node.op_type == "Transpose":
        perm = node.attributes.get("perm")
        return before - 1 - axis if perm is None else list(perm.as_ints()).index(axis)
    named = _named_axes(node, max(before, behind)) if operator.kind in {Kind.MOVEMENT, Kind.REDUCTION} else None
    if named is not None and behind < before:
        return None if axis in named else axis - sum(other < axis for other in named)
    if named is not None and behind > before:
        for added in sorted(named):
            axis += added <= axis
        return axis
    if operator.moves is Moves.ALL and operator.channels is Channels.REARRANGED and named is None:
        static = source.shape.is_static() and output.shape.is_static()
        return reshaped_axis(source.shape, output.shape, axis, batch=batch) if static else None
    # As numpy broadcasts, and as layers and poolings keep their axes.
    moved = axis + behind - before
    return moved if 0 <= moved < behind else None


def _named_axes(node: ir.Node, rank: int) -> set[int] | None:
    """Return the axes that the node drops, or adds; None if it does not name them."""
    if node.op_type == "Gather":
        return {node.attributes.get_int("axis", 0) % rank}
    attribute = node.attributes.get("axes")
    if attribute is not None:
        return {axis % rank for axis in attribute.as_ints()}
    value = node.inputs[1] if len(node.inputs) > 1 and node.op_type != "Reshape" else None
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return None if tensor is None else {int(axis) % rank for axis in tensor.numpy().reshape(-1)}

"""The axis of an output that counts classes, where it has one.

Along it a top-1 makes sense, one for each of the other axes' positions. An output has one

1. where it is [batch, classes];
2. where a Softmax or LogSoftmax makes it: that operator's axis;
3. where a layer makes it that does not move through space, a MatMul or Gemm: the last axis, if there are more than
   `FEW` channels, as many as a box has sides or an image colours;
4. where a convolution makes it, and it has the resolution of a network input, as a segmentation has, or a single
   position: the axis of the channels, in the first case if there are more than `FEW`.

Behind the layer may lie additions of constants, Casts, interpolations, poolings and transpositions. All other outputs,
such as boxes, embeddings of positions and what several heads are joined to, have none.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase

import onnx_ir as ir

from dipo.errors import UserError
from dipo.graph import operators
from dipo.graph.accessors import name_of
from dipo.graph.layers import Layer, layer_of
from dipo.graph.operators import Channels, Kind, Moves, Operand

FEW = 4
"""Channels at a position that are not taken for classes unless a Softmax makes them."""


def class_axes(model: ir.Model, given: Mapping[str, int]) -> dict[str, int | None]:
    """Return the axis of the classes of each network output, by name; None where it has none.

    Args:
        model: A model that `graph.load` has normalised.
        given: The user's, by name of the output or a pattern of names, counted from 0 or, where negative, from the
            end; 0, the samples' axis, says that there are no classes. The first pattern that matches counts.

    Raises:
        UserError: A pattern matches no output, or an output has no such axis.
    """
    names = [name_of(value) for value in model.graph.outputs]
    for pattern in given:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UserError(f"data.class_axis: no output is called {pattern!r}, choose from {', '.join(names)}")
    found: dict[str, int | None] = {}
    for name, value in zip(names, model.graph.outputs, strict=True):
        wanted = next((axis for pattern, axis in given.items() if fnmatchcase(name, pattern)), None)
        found[name] = _own_axis(value) if wanted is None else _checked(value, wanted)
    return found


def _checked(value: ir.Value, axis: int) -> int | None:
    """Return the axis that the user gave, counted from the front; None for that of the samples."""
    rank = None if value.shape is None else len(value.shape)
    if rank is not None and not -rank < axis < rank:
        raise UserError(
            f"data.class_axis: output {value.name!r} has {rank} axes, give one from 1 to {rank - 1}, or 0 for none"
        )
    if axis == 0:
        return None
    return axis if axis > 0 or rank is None else axis + rank


def _own_axis(value: ir.Value) -> int | None:
    """Return the axis by the rules of this module."""
    if value.shape is None or (value.dtype is not None and not value.dtype.is_floating_point()):
        return None
    sizes, rank = list(value.shape), len(value.shape)
    if rank == 2:
        return None if sizes[1] == 1 else 1
    axes = list(range(rank))
    at: ir.Value | None = value
    while at is not None and (node := at.producer()) is not None:
        if operators.of(node).distribution:
            return _at(axes, node.attributes.get_int("axis", -1), rank)
        if (layer := layer_of(node)) is not None:
            return _layer_axis(layer, value, axes)
        if node.op_type == "Transpose":
            order = node.attributes.get("perm")
            perm = list(range(rank))[::-1] if order is None else list(order.as_ints())
            axes = [perm[axis] for axis in axes]
        elif not _keeps_axes(node):
            return None
        at = _data(node)
    return None


def _at(axes: list[int], axis: int, rank: int) -> int | None:
    """Return where an axis of an inner value is in the output; None for the samples' axis."""
    where = axes.index(axis % rank) if -rank <= axis < rank else 0
    return where or None


def _layer_axis(layer: Layer, output: ir.Value, axes: list[int]) -> int | None:
    """Return where the layer's channels are in the output, if they may be classes."""
    assert output.shape is not None
    sizes, rank = list(output.shape), len(axes)
    axis = axes.index(1 if layer.layout.spatial else rank - 1)
    channels = sizes[axis]
    if not axis or not isinstance(channels, int) or channels == 1 or layer.is_stack:
        return None
    if not layer.layout.spatial:
        return axis if channels > FEW else None
    others = [size for index, size in enumerate(sizes) if index not in (0, axis)]
    if all(size == 1 for size in others):
        return axis
    graph = layer.node.graph
    inputs = [] if graph is None else [value.shape for value in graph.inputs if value.shape is not None]
    known = all(isinstance(size, int) or size.value is not None for size in others)
    whole = known and any(len(shape) == rank and _spatial(list(shape), others) for shape in inputs)
    return axis if whole and channels > FEW else None


def _spatial(sizes: list[int | ir.SymbolicDim], wanted: list[int | ir.SymbolicDim]) -> bool:
    """Return whether an input has these sizes behind or in front of its channels."""
    return wanted in (sizes[2:], sizes[1:-1])


def _keeps_axes(node: ir.Node) -> bool:
    """Return whether the node's output has the axes of its only input that is no constant, in the same order."""
    operator = operators.of(node)
    if operator.operand is Operand.SUMMAND:
        return sum(value is not None and value.const_value is None for value in node.inputs) == 1
    same = operator.moves is Moves.ALL and operator.channels is Channels.KEPT
    return same or operator.kind is Kind.POOLING or node.op_type == "Cast"


def _data(node: ir.Node) -> ir.Value | None:
    return next((value for value in node.inputs if value is not None and value.const_value is None), None)

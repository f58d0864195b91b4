"""New constants for nodes, and unused names."""

from __future__ import annotations

import itertools
from collections.abc import Container
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

_KEY = "dipo.constants_in_file"


def fresh_name(wish: str, taken: Container[str | None], *, first: int = 2) -> str:
    """Return `wish` if it is not taken, else `<wish>_<i>` with the first free number i from `first` on."""
    numbered = (f"{wish}_{i}" for i in itertools.count(first))
    return next(name for name in itertools.chain((wish,), numbered) if name not in taken)


def replace_input(model: ir.Model, node: ir.Node, index: int, name: str, array: NDArray[Any]) -> ir.Value:
    """Give the node a constant of its own, and remove its former one from the graph if nothing else reads it.

    Args:
        model: The node's model; changed in place.
        node: The node.
        index: Position among its inputs.
        name: Name of the constant; a number is appended if it is taken.
        array: The constant.

    Returns:
        The constant's value.
    """
    old = node.inputs[index]
    produced = {value.name or "" for other in model.graph for value in other.outputs}
    taken = produced | {value.name or "" for value in model.graph.inputs} | set(model.graph.initializers)
    name = fresh_name(name, taken)
    shape, kind = ir.Shape(array.shape), ir.TensorType(ir.DataType.from_numpy(array.dtype))
    value = ir.val(name, const_value=ir.tensor(array, name=name), shape=shape, type=kind)
    model.graph.register_initializer(value)
    node.replace_input_with(index, value)
    drop_unused(model, old)
    return value


def record_constants(node: ir.Node) -> None:
    """Record the constants that a node reads behind its first input, for `restore_constants`."""
    node.meta[_KEY] = tuple(
        None if value is None or value.const_value is None else (value.name, value.const_value)
        for value in node.inputs[1:]
    )


def restore_constants(model: ir.Model, node: ir.Node) -> None:
    """Give a node the constants back that `record_constants` has recorded, if it has; in place."""
    recorded: tuple[tuple[str, ir.TensorProtocol] | None, ...] | None = node.meta.pop(_KEY, None)
    if recorded is None:
        return
    node.resize_inputs(1 + len(recorded))
    for index, constant in enumerate(recorded, start=1):
        if constant is not None:
            replace_input(model, node, index, constant[0], constant[1].numpy())
        elif (made := node.inputs[index]) is not None:
            node.replace_input_with(index, None)
            drop_unused(model, made)


def drop_unused(model: ir.Model, value: ir.Value | None) -> None:
    """Remove a constant from the graph if nothing reads it; in place."""
    if value is not None and value.name and value.is_initializer() and not value.uses() and not value.is_graph_output():
        del model.graph.initializers[value.name]


def single_rows(node: ir.Node) -> list[int]:
    """Return the positions of constants that a Concat joins to the data of every sample; none for other nodes.

    A network that was exported for a batch of 1 joins a constant of one row, [1, ...], to its activations along another
    axis: a class token, coordinates, anchors. With another batch, it stands for each sample's row.
    """
    if node.op_type != "Concat" or node.domain != "":
        return []
    tensors = [None if value is None else ir.convenience.get_const_tensor(value) for value in node.inputs]
    shapes = {port: tuple(tensor.shape.numpy()) for port, tensor in enumerate(tensors) if tensor is not None}
    axis = node.attributes.get_int("axis", 1)
    return [port for port, shape in shapes.items() if shape and shape[0] == 1 and axis % len(shape) != 0]

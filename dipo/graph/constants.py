"""New constants for nodes, and unused names."""

from __future__ import annotations

import itertools
from collections.abc import Container
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray


def fresh_name(wish: str, taken: Container[str | None], *, first: int = 2) -> str:
    """Return `wish` if it is not taken, else `<wish>_<i>` with the first free number i from `first` on."""
    numbered = (f"{wish}_{i}" for i in itertools.count(first))
    return next(name for name in itertools.chain((wish,), numbered) if name not in taken)


def replace_input(model: ir.Model, node: ir.Node, index: int, name: str, array: NDArray[Any]) -> None:
    """Give the node a constant of its own, and remove its former one from the graph if nothing else reads it.

    Args:
        model: The node's model; changed in place.
        node: The node.
        index: Position among its inputs.
        name: Name of the constant; a number is appended if it is taken.
        array: The constant.
    """
    old = node.inputs[index]
    produced = {value.name or "" for other in model.graph for value in other.outputs}
    taken = produced | {value.name or "" for value in model.graph.inputs} | set(model.graph.initializers)
    name = fresh_name(name, taken)
    shape, kind = ir.Shape(array.shape), ir.TensorType(ir.DataType.from_numpy(array.dtype))
    value = ir.val(name, const_value=ir.tensor(array, name=name), shape=shape, type=kind)
    model.graph.register_initializer(value)
    node.replace_input_with(index, value)
    if old is not None and old.name and old.is_initializer() and not old.uses() and not old.is_graph_output():
        del model.graph.initializers[old.name]

"""`bind`, which turns a node into a torch function of its inputs, by its operator's record."""

from __future__ import annotations

import onnx_ir as ir

from dipo.errors import UserError
from dipo.graph import operators
from dipo.graph.operators import Kind
from dipo.graph.ops.reader import NodeReader, TorchOp
from dipo.graph.ops.types import COMPUTED, CONVERTED, LOW


def bind(node: ir.Node, opset: int) -> TorchOp:
    """Turn a node into a torch function of its inputs.

    Attributes are read now, and so are the options among its inputs (shapes, axes, pads, limits) that are constant. The
    function takes all of the node's inputs by position, None for absent optional ones, and looks at computed options
    alone. It is differentiable where the operator is, changes no argument, and keeps the memory format of
    convolutional tensors.

    Args:
        node: The node; its constants are initializers or Constant nodes.
        opset: Version of the default domain that the model imports.

    Returns:
        A function that returns a tensor, or a tuple of tensors for a node with several outputs (and for Split).

    Raises:
        UserError: torch does not compute this operator, or not with these attributes or inputs.
    """
    reader = NodeReader(node, opset)
    builder = operators.of(node).torch
    if builder is None:
        raise reader.refusal("this operator is not computed in torch")
    _refuse_types(reader)
    op = builder(reader)
    reader.check_all_read()
    return op


def _refuse_types(reader: NodeReader) -> None:
    """Refuse values of types that torch does not compute with; types that are not known pass."""
    node = reader.node
    known = COMPUTED if operators.of(node).kind is not Kind.CONVERSION else COMPUTED | CONVERTED
    for value in (*node.inputs, *node.outputs):
        if value is not None and value.dtype is not None and value.dtype.name not in known:
            raise reader.refusal(f"'{value.name}' is of type {value.dtype.name}, which torch does not compute with")


def supported(node: ir.Node, opset: int | None = None) -> bool:
    """Return whether torch computes a node of a network: `bind` takes it, and all that share its low types.

    A value of a type that numpy lacks passes between torch's conversions only, not from or to ONNX Runtime, a constant
    or the network's inputs and outputs.

    Args:
        node: The node.
        opset: Version of the default domain; None: the one that the node's graph imports.
    """
    if opset is None:
        opset = _imported_opset(node)
    return all(_binds(each, opset) and not _meets_outside(each) for each in _sharing_low_types(node))


def _binds(node: ir.Node, opset: int) -> bool:
    try:
        bind(node, opset)
    except UserError:
        return False
    return True


def _sharing_low_types(node: ir.Node) -> list[ir.Node]:
    """Return the node, and those that values of low types lead to from it."""
    found = {node: None}
    todo = [node]
    while todo:
        for value in _low_values(todo.pop()):
            maker = value.producer()
            near = [*value.consumers(), *([] if maker is None else [maker])]
            todo += [each for each in near if each not in found]
            found.update(dict.fromkeys(near))
    return list(found)


def _low_values(node: ir.Node) -> list[ir.Value]:
    values = (value for value in (*node.inputs, *node.outputs) if value is not None)
    return [value for value in values if value.dtype is not None and value.dtype.name in LOW]


def _meets_outside(node: ir.Node) -> bool:
    return any(value.producer() is None or value.is_graph_output() for value in _low_values(node))


def _imported_opset(node: ir.Node) -> int:
    assert node.graph is not None, f"node '{node.name}' belongs to no graph: name the opset"
    return node.graph.opset_imports[""]

"""`bind`, which turns a node into a torch function of its inputs, by its operator's record."""

from __future__ import annotations

import onnx_ir as ir

from dipo.errors import UserError
from dipo.graph import operators
from dipo.graph.ops.reader import NodeReader, TorchOp

OLDEST_OPSET = 7
"""Oldest supported opset: before it, operators broadcast by attributes."""


def bind(node: ir.Node, opset: int) -> TorchOp:
    """Turn a node into a torch function of its inputs.

    Attributes and inputs that have to be constant (shapes, axes, pads, limits) are read now. The function takes all of
    the node's inputs by position, None for absent optional ones, and does not look at those constants again. It is
    differentiable, changes no argument, and keeps the memory format of convolutional tensors.

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
    if opset < OLDEST_OPSET:
        raise reader.refusal(f"opset {opset} is too old: convert the model to opset {OLDEST_OPSET} or later")
    op = builder(reader)
    reader.check_all_read()
    return op


def supported(node: ir.Node, opset: int | None = None) -> bool:
    """Return whether `bind` would succeed.

    Args:
        node: The node.
        opset: Version of the default domain; None: the one that the node's graph imports.
    """
    if opset is None:
        opset = _imported_opset(node)
    try:
        bind(node, opset)
    except UserError:
        return False
    return True


def _imported_opset(node: ir.Node) -> int:
    assert node.graph is not None, f"node '{node.name}' belongs to no graph: name the opset"
    return node.graph.opset_imports[""]

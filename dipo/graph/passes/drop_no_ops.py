"""Removal of nodes that change nothing."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult

from dipo.graph import operators
from dipo.graph.constants import drop_unused


class DropNoOps(InPlacePass):
    """Remove arithmetic with zeros or ones, Dropout at inference, and Casts of what has the type already.

    Runtimes remove these, too: two grids, in front of the node and behind it, would then stand in a row, which they
    merge to one that nobody simulated. The optimizer removes them for scalar constants alone.

    1. No constant of zeros is added or subtracted, and none of ones multiplied or divided by, where the other operand
       has the result's shape.
    2. No Dropout is left but one in training mode, or one whose mask is read.
    3. No Cast is left of a value that is known to have the type.
    4. Names of the network's outputs stay.
    """

    def call(self, model: ir.Model) -> PassResult:
        """Let what read each node read its input."""
        modified = False
        for node in list(model.graph):
            source = _kept_by(node)
            if source is not None:
                _drop(model, node, source)
                modified = True
        return PassResult(model, modified)


def _drop(model: ir.Model, node: ir.Node, source: ir.Value) -> None:
    """Remove a node whose output equals `source`; an Identity stays where both have names that must stay."""
    output, read = node.outputs[0], list(node.inputs)
    name, is_output = output.name, output.is_graph_output()
    if is_output and (source.producer() is None or source.is_graph_output()):
        identity = ir.node("Identity", [source], name=node.name)
        source, result = identity.outputs[0], output
        source.shape, source.type = result.shape, result.type
        model.graph.insert_before(node, identity)
    ir.convenience.replace_all_uses_with(output, source, replace_graph_outputs=True)
    model.graph.remove(node, safe=True)
    if is_output:
        source.name = name
    for value in read:
        drop_unused(model, value)


def _kept_by(node: ir.Node) -> ir.Value | None:
    """Return the input that the node's output equals; None if it computes something."""
    operator = operators.of(node)
    if operator.key == "Dropout":
        return _dropped_out(node)
    if operator.key == "Cast":
        return _cast_already(node)
    if operator.neutral is None:
        return None
    first, second = node.inputs
    operands = [(first, second), (second, first)] if operator.operand is not None else [(first, second)]
    for source, operand in operands:
        if source is not None and operand is not None and _is_neutral(operand, operator.neutral, source):
            return source
    return None


def _dropped_out(node: ir.Node) -> ir.Value | None:
    if any(value.uses() or value.is_graph_output() for value in node.outputs[1:]):
        return None
    training = node.inputs[2] if len(node.inputs) > 2 else None
    mode = None if training is None else ir.convenience.get_const_tensor(training)
    is_off = training is None or (mode is not None and not mode.numpy().any())
    return node.inputs[0] if is_off else None


def _cast_already(node: ir.Node) -> ir.Value | None:
    source = node.inputs[0]
    return source if source is not None and source.dtype == node.attributes.get_int("to") else None


def _is_neutral(operand: ir.Value, number: int, source: ir.Value) -> bool:
    """Return whether the operand is a constant of that number that broadcasts to the source's shape."""
    tensor = ir.convenience.get_const_tensor(operand)
    if tensor is None or operand.is_graph_input() or source.const_value is not None:
        return False
    if len(tensor.shape) and not _broadcasts_to(tuple(tensor.shape.numpy()), source.shape):
        return False
    return bool(np.all(tensor.numpy() == number))


def _broadcasts_to(shape: tuple[int, ...], target: ir.Shape | None) -> bool:
    if target is None or len(shape) > len(target):
        return False
    return all(size in (1, wide) for size, wide in zip(reversed(shape), reversed(list(target)), strict=False))

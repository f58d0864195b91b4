"""Folding of weights that are computed from constants, whatever their size."""

from __future__ import annotations

from collections.abc import Set
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from onnx_ir.passes import InPlacePass, PassResult
from onnx_ir.passes.common import RemoveUnusedNodesPass

from dipo.errors import UserError
from dipo.graph import operators
from dipo.graph.accessors import name_of


class FoldWeights(InPlacePass):
    """Make initializers of weights and biases that are computed from constants alone.

    The optimizer folds small tensors only, so that nothing large is stored twice; a weight behind a Transpose (a head
    tied to its embedding), Slice, Reshape, Cast or arithmetic (weight normalization) would not be a layer's.

    1. No weight or bias of a node is computed from constants by ONNX's own operators, unless randomly.
    2. It keeps the name of its value. Nothing else is computed, so no tensor grows that no layer multiplies.
    """

    def call(self, model: ir.Model) -> PassResult:
        """Compute the weights, and remove what only they needed.

        Raises:
            UserError: A weight cannot be computed.
        """
        derived = _derived(model)
        wanted = {value: None for node in model.graph for value in _parameters(node) if value in derived}
        for value in wanted:
            _fold(model, value, derived)
        if wanted:
            RemoveUnusedNodesPass()(model)
        return PassResult(model, modified=bool(wanted))


def _parameters(node: ir.Node) -> list[ir.Value]:
    """Return the node's weight and bias, if its operator has them."""
    facts = operators.of(node).weight
    ports = () if facts is None else (facts.port, facts.bias_port)
    values = [node.inputs[port] for port in ports if port is not None and port < len(node.inputs)]
    return [value for value in values if value is not None]


def _derived(model: ir.Model) -> Set[ir.Value]:
    """Return the values that are computed from constants alone."""
    derived: set[ir.Value] = set()
    for node in model.graph:
        read = [value for value in node.inputs if value is not None]
        if read and _is_foldable(node, model.opset_imports[""]) and all(v in derived or _is_constant(v) for v in read):
            derived.update(value for value in node.outputs if not value.is_graph_output())
    return derived


def _is_constant(value: ir.Value) -> bool:
    return not value.is_graph_input() and ir.convenience.get_const_tensor(value) is not None


def _is_foldable(node: ir.Node, opset: int) -> bool:
    """Return whether the node is ONNX's own, without subgraphs, and always gives the same."""
    if node.domain != "" or operators.of(node).random or not onnx.defs.has(node.op_type, opset, ""):
        return False
    return all(attribute.type not in _GRAPHS for attribute in node.attributes.values())


_GRAPHS = {ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS}


def _fold(model: ir.Model, value: ir.Value, derived: Set[ir.Value]) -> None:
    array = _computed(model, value, derived)
    tensor = ir.tensor(array, name=value.name)
    constant = ir.val(
        value.name, const_value=tensor, shape=ir.Shape(array.shape), type=ir.TensorType(ir.DataType(tensor.dtype))
    )
    ir.convenience.replace_all_uses_with(value, constant)
    producer = value.producer()
    assert producer is not None
    if not any(output.uses() or output.is_graph_output() for output in producer.outputs):
        model.graph.remove(producer, safe=True)
    else:
        value.name = f"{value.name}_computed"
    model.graph.register_initializer(constant)


def _computed(model: ir.Model, value: ir.Value, derived: Set[ir.Value]) -> NDArray[Any]:
    """Return the numbers of a derived value, by ONNX's reference implementation."""
    nodes, leaves = _ancestry(value, derived)
    feeds = {name_of(leaf): tensor.numpy() for leaf in leaves if (tensor := ir.convenience.get_const_tensor(leaf))}
    inputs = [_info(name, array) for name, array in feeds.items()]
    output = onnx.ValueInfoProto(name=value.name)
    graph = onnx.helper.make_graph([ir.serde.serialize_node(node) for node in nodes], "weight", inputs, [output])
    opset = onnx.helper.make_opsetid("", model.opset_imports[""])
    try:
        results = ReferenceEvaluator(onnx.helper.make_model(graph, opset_imports=[opset])).run(None, feeds)
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(
            f"weight {value.name!r} is computed from constants in a way that cannot be followed ({reason}), export the "
            "model with its constants folded"
        ) from error
    return np.asarray(next(iter(results)), order="C")


def _info(name: str, array: NDArray[Any]) -> onnx.ValueInfoProto:
    return onnx.helper.make_tensor_value_info(name, ir.DataType.from_numpy(array.dtype).value, array.shape)


def _ancestry(value: ir.Value, derived: Set[ir.Value]) -> tuple[list[ir.Node], list[ir.Value]]:
    """Return the nodes that compute the value, in topological order, and the constants that they read."""
    nodes: dict[ir.Node, None] = {}
    leaves: dict[ir.Value, None] = {}
    waiting = [value]
    while waiting:
        current = waiting.pop()
        producer = current.producer()
        if current not in derived or producer is None:
            leaves[current] = None
        elif producer not in nodes:
            nodes[producer] = None
            waiting.extend(read for read in producer.inputs if read is not None)
    assert value.graph is not None
    order = {node: index for index, node in enumerate(value.graph)}
    return sorted(nodes, key=order.__getitem__), list(leaves)

"""Nodes with subgraphs (If, Loop, Scan), as calls of functions that take what these read."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult
from onnx_ir.passes.common import InlinePass

from dipo.graph.accessors import name_of
from dipo.graph.constants import fresh_name
from dipo.graph.opset import ENCLOSED


class EncloseSubgraphs(InPlacePass):
    """Replace each node with subgraphs by a call of a function that holds it.

    A subgraph reads values of the graph around it by their names. As inputs of a call they are seen by everything that
    asks what a node reads.

    1. No node of the graph has a subgraph, and none is read from inside one.
    2. The call has the node's name and outputs.
    """

    def call(self, model: ir.Model) -> PassResult:
        """Move the nodes into functions."""
        nodes = [node for node in model.graph if any(_subgraphs(node))]
        taken: set[str | None] = {name for _, name, _ in model.functions}
        for node in nodes:
            _enclose(model, node, taken)
        if nodes:
            model.opset_imports[ENCLOSED] = 1
        return PassResult(model, modified=bool(nodes))


class DiscloseSubgraphs(InPlacePass):
    """Put the nodes that `EncloseSubgraphs` has moved back into the graph."""

    def call(self, model: ir.Model) -> PassResult:
        """Inline the functions."""
        modified = InlinePass(criteria=lambda function: function.domain == ENCLOSED)(model).modified
        model.opset_imports.pop(ENCLOSED, None)
        return PassResult(model, modified)


def _enclose(model: ir.Model, node: ir.Node, taken: set[str | None]) -> None:
    captured = dict.fromkeys(value for value in (*node.inputs, *_captured(node, model.graph)) if value is not None)
    name = fresh_name(node.op_type, taken)
    taken.add(name)
    function = onnx.helper.make_function(
        ENCLOSED,
        name,
        [name_of(value) for value in captured],
        [name_of(value) for value in node.outputs],
        [ir.serde.serialize_node(node)],
        [onnx.helper.make_opsetid(domain, version) for domain, version in model.opset_imports.items()],
    )
    model.functions[(ENCLOSED, name, "")] = ir.serde.deserialize_function(function)
    outputs = [_like(value) for value in node.outputs]
    call = ir.Node(ENCLOSED, name, list(captured), outputs=outputs, name=node.name)
    ir.convenience.replace_nodes_and_values(
        model.graph,
        insertion_point=node,
        old_nodes=[node],
        new_nodes=[call],
        old_values=node.outputs,
        new_values=outputs,
    )
    _detach(node)


def _like(value: ir.Value) -> ir.Value:
    return ir.Value(name=value.name, shape=value.shape, type=value.type)


def _subgraphs(node: ir.Node) -> Iterator[ir.Graph]:
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def _captured(node: ir.Node, outer: ir.Graph) -> Iterator[ir.Value]:
    """Return the values of the graph around a node that its subgraphs read, at any depth."""
    for graph in _subgraphs(node):
        for inner in graph:
            yield from (value for value in inner.inputs if value is not None and value.graph is outer)
            yield from _captured(inner, outer)
        yield from (value for value in graph.outputs if value.graph is outer)


def _detach(node: ir.Node) -> None:
    """Let the subgraphs of a removed node read nothing."""
    for graph in _subgraphs(node):
        for inner in graph:
            for index in range(len(inner.inputs)):
                inner.replace_input_with(index, None)
            _detach(inner)

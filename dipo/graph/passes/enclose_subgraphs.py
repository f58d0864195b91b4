"""Nodes with subgraphs (If, Loop, Scan), as calls of functions that take what these read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx
import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult
from onnx_ir.passes.common import InlinePass

from dipo.graph import operators
from dipo.graph.accessors import name_of
from dipo.graph.constants import fresh_name
from dipo.graph.layers import layer_of
from dipo.graph.opset import ENCLOSED
from dipo.graph.recurrent import AXIS, set_inner_port_axes


class EncloseSubgraphs(InPlacePass):
    """Replace each node with subgraphs by a call of a function that holds it.

    A subgraph reads values of the graph around it by their names. As inputs of a call they are seen by everything that
    asks what a node reads.

    1. No node of the graph has a subgraph, and none is read from inside one.
    2. The call has the node's name and outputs.
    3. A constant that nothing but layers inside multiply by is an initializer of the graph, and the call says which of
       its inputs are such weights (`recurrent.inner_port_axes`).
    """

    def call(self, model: ir.Model) -> PassResult:
        """Move the nodes into functions."""
        nodes = [node for node in model.graph if any(_subgraphs(node))]
        taken: set[str | None] = {name for _, name, _ in model.functions}
        for node in nodes:
            _lift_weights(model, node)
            _enclose(model, node, taken)
        if nodes:
            model.opset_imports[ENCLOSED] = 1
        return PassResult(model, modified=bool(nodes))


class DiscloseSubgraphs(InPlacePass):
    """Put the nodes that `EncloseSubgraphs` has moved back into the graph."""

    def call(self, model: ir.Model) -> PassResult:
        """Inline the functions."""
        for node in model.graph:
            set_inner_port_axes(node, {})  # inlined nodes are given what the call has
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
    axes = {value: _weight_axis(value, node) for value in captured}
    set_inner_port_axes(call, {port: axis for port, value in enumerate(captured) if (axis := axes[value]) is not None})
    ir.convenience.replace_nodes_and_values(
        model.graph,
        insertion_point=node,
        old_nodes=[node],
        new_nodes=[call],
        old_values=node.outputs,
        new_values=outputs,
    )
    _detach(node)


def _lift_weights(model: ir.Model, node: ir.Node) -> None:
    """Make initializers of the graph of constants inside a node's subgraphs that are weights of layers there."""
    for value in list(_inner_constants(node)):
        tensor = ir.convenience.get_const_tensor(value)
        if tensor is None or _axis_in(value.uses()) is None or value.is_graph_output():
            continue
        names = {each.name for graph in model.graphs() for each in _named(graph)}
        name = name_of(value) if value.is_initializer() else fresh_name(f"{value.name}_weight", names)
        lifted = ir.val(name, const_value=ir.tensor(tensor.numpy(), name=name))
        if value.is_initializer():
            assert value.graph is not None
            value.graph.initializers.pop(name)
        ir.convenience.replace_all_uses_with(value, lifted)
        model.graph.register_initializer(lifted)
        producer = value.producer()
        if producer is not None:
            assert producer.graph is not None
            producer.graph.remove(producer, safe=True)


def _named(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from (*graph.inputs, *graph.initializers.values())
    for node in graph:
        yield from node.outputs


def _inner_constants(node: ir.Node) -> Iterator[ir.Value]:
    for graph in _subgraphs(node):
        yield from graph.initializers.values()
        for inner in graph:
            if inner.op_type == "Constant" and inner.domain == "":
                yield inner.outputs[0]
            yield from _inner_constants(inner)


def _weight_axis(value: ir.Value, node: ir.Node) -> int | None:
    """Return the axis of a captured weight's scales; None where the node's subgraphs read it as something else."""
    inside = {inner for graph in _subgraphs(node) for inner in graph.all_nodes()}
    returned = any(each is value for graph in _graphs_in(node) for each in graph.outputs)
    return None if returned or value in node.inputs else _axis_in(use for use in value.uses() if use.node in inside)


def _axis_in(uses: Iterable[tuple[ir.Node, int]]) -> int | None:
    axes = {_axis_of(reader, port) for reader, port in uses}
    return axes.pop() if len(axes) == 1 else None


def _axis_of(reader: ir.Node, port: int) -> int | None:
    """Return the axis of the scales of what a node multiplies by; None if it does something else with it."""
    if port in operators.of(reader).recurrent_weights:
        return AXIS
    weight, layer = operators.of(reader).weight, layer_of(reader)
    return None if layer is None or weight is None or port != weight.port else layer.scale_axis


def _graphs_in(node: ir.Node) -> Iterator[ir.Graph]:
    for graph in _subgraphs(node):
        yield graph
        for inner in graph:
            yield from _graphs_in(inner)


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

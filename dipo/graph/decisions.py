"""Whether numbers of the samples decide which way a network goes: conditions of If and Loop."""

from __future__ import annotations

from collections.abc import Container, Iterable

import onnx_ir as ir

from dipo.graph import operators
from dipo.graph.opset import ENCLOSED


def decided_by_samples(model: ir.Model, batched: Container[str]) -> bool:
    """Return whether an If or Loop goes one way or another by numbers of its samples, so that several cannot share it.

    Sizes are not such numbers, nor are inputs that have one value for all samples.

    Args:
        model: The network, its subgraphs enclosed.
        batched: Names of the inputs that have a batch.
    """
    follow = _following({value for value in model.graph.inputs if value.name in batched}, model.graph)
    calls = (node for node in model.graph if node.domain == ENCLOSED)
    return any(_is_decided(model.functions[(ENCLOSED, call.op_type, "")], call, follow) for call in calls)


def _is_decided(function: ir.Function, call: ir.Node, follow: Container[ir.Value]) -> bool:
    given = {own for own, value in zip(function.inputs, call.inputs, strict=True) if value in follow}
    node = function[0]
    if node.op_type == "If":
        return node.inputs[0] in given
    if node.op_type != "Loop":
        return False
    body = node.attributes["body"].as_graph()
    inside = given | {own for own, value in zip(body.inputs, node.inputs, strict=False) if value in given}
    while True:
        found = _following(inside, body)
        carried = {own for own, value in zip(body.inputs[1:], body.outputs, strict=False) if value in found}
        if carried <= inside:
            break
        inside |= carried
    return body.outputs[0] in found or any(value in given for value in node.inputs[:2])


def _following(values: set[ir.Value], nodes: Iterable[ir.Node]) -> set[ir.Value]:
    """Return some values and those whose numbers follow from theirs; what a nested subgraph makes may."""
    found = set(values)
    for node in nodes:
        nested = any(attribute.type in {ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS} for attribute in _own(node))
        if nested or (not operators.of(node).reads_shape and any(value in found for value in node.inputs)):
            found.update(node.outputs)
    return found


def _own(node: ir.Node) -> list[ir.Attr]:
    return [attribute for attribute in node.attributes.values() if isinstance(attribute, ir.Attr)]

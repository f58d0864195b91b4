"""Placement of the quantizers of activations."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence

import onnx_ir as ir

from dipo.graph import operators, torch_ops
from dipo.graph.accessors import array_of, name_of, sole_consumer
from dipo.graph.compared_outputs import outputs_in_file
from dipo.graph.layers import is_layer
from dipo.graph.operators import Kind, Moves, Operand
from dipo.graph.scalar_functions import behind_floats
from dipo.graph.target_spec import TargetSpec


def quantized_values(nodes: Iterable[ir.Node], rules: TargetSpec, *, placement: str) -> set[str]:
    """Return the names of the quantized values: those with a quantizer, and rearrangements of these, which share codes.

    Args:
        nodes: The nodes that the target runs on integers.
        rules: What the target takes.
        placement: `input`: the inputs of these nodes. `output`: also their outputs, where something reads them, after
            the activation function that they are fused with.
    """
    nodes = list(nodes)
    if rules.ends_on_codes and placement == "input":
        nodes = _ending_on_codes(nodes, rules)
    names = _names_read(nodes, rules)
    made = [_made(node, rules) for node in nodes]
    if rules.quantize_outputs:
        # Such a device has codes wherever a kernel ends, so also where a head's output is cut into pieces.
        names |= {name_of(value) for value in made if is_float(value) and len(_pieces(value, names)) > 1}
    if placement == "input":
        return names
    fused = {_fused_summand(node, rules) for node in nodes}
    return names | {name_of(value) for value in made if value.uses() and is_float(value) and value not in fused}


def _ending_on_codes(nodes: Sequence[ir.Node], rules: TargetSpec) -> list[ir.Node]:
    """Return the products, and the other nodes whose output is quantized for a node that stays, at once or rearranged.

    A piece of a function that is computed with floats does not stay.
    """
    within = behind_floats(nodes[0].graph, rules) if nodes and nodes[0].graph is not None else set()
    nodes = [node for node in nodes if node not in within]
    while True:
        names = _names_read(nodes, rules)
        kept = [node for node in nodes if _multiplies(node) or _is_quantized(_made(node, rules), names)]
        if len(kept) == len(nodes):
            return kept
        nodes = kept


def _multiplies(node: ir.Node) -> bool:
    """Return whether a node multiplies matrices: those of integers end on floats where nobody wants codes."""
    return is_layer(node) or operators.of(node).kind in {Kind.WEIGHTED, Kind.PRODUCT}


def _is_quantized(value: ir.Value, names: Container[str]) -> bool:
    return name_of(value) in names or bool(_pieces(value, names, outputs=False))


def is_float(value: ir.Value) -> bool:
    """Return whether the value may hold floats; one of unknown type may."""
    return value.dtype is None or value.dtype == ir.DataType.FLOAT


def final_floats(model: ir.Model) -> set[str]:
    """Return the names of the floats with which the network ends for a device that computes with integers alone.

    These are its outputs; values that go only into nodes which make integers, booleans or floats of another width of
    them, such as the logits before an ArgMax or a Cast; and what enters a part that stays float, since torch does not
    compute it.
    """
    values = [*model.graph.inputs, *(value for node in model.graph for value in node.outputs)]
    outputs = outputs_in_file(model)
    return {name_of(v) for v in values if v.name and is_float(v) and (v.name in outputs or _is_last_float(v))}


def _is_last_float(value: ir.Value) -> bool:
    readers = [use.node for use in value.uses()]
    maker = value.producer()
    if any(not torch_ops.supported(node) for node in readers):
        return maker is None or torch_ops.supported(maker)
    ends = [not operators.of(node).reads_shape and not any(map(is_float, node.outputs)) for node in readers]
    return bool(ends) and all(ends)


def _names_read(nodes: Iterable[ir.Node], rules: TargetSpec) -> set[str]:
    return {name_of(value) for node in nodes for value in _read(node, rules)}


def _read(node: ir.Node, rules: TargetSpec) -> list[ir.Value]:
    """Return the activations that a quantized kernel of this node reads as integers."""
    data = node.inputs[:1] if is_layer(node) or operators.of(node).on_codes else node.inputs
    fused = _fused_summand(node, rules)
    return [v for v in data if v is not None and v.const_value is None and is_float(v) and v is not fused]


def _fused_summand(node: ir.Node, rules: TargetSpec) -> ir.Value | None:
    """Return the layer output that this sum adds within that layer's kernel, and that stays float; None if none."""
    if not rules.fuse_residual_add or operators.of(node).operand is not Operand.SUMMAND:
        return None
    values = [v for v in node.inputs if v is not None and v.const_value is None and is_float(v)]
    return next((v for v in reversed(values) if _only_feeds_a_sum(v)), None) if len(values) == 2 else None


def _only_feeds_a_sum(value: ir.Value) -> bool:
    producer = value.producer()
    return producer is not None and is_layer(producer) and len(value.uses()) == 1


def _made(node: ir.Node, rules: TargetSpec) -> ir.Value:
    """Return a node's output after its fused activation functions: sole consumers that are not quantized themselves."""
    value = node.outputs[0]
    while (reader := sole_consumer(value)) is not None:
        if operators.of(reader).kind is not Kind.ACTIVATION or operators.key_of(reader) in rules.operators:
            break
        value = reader.outputs[0]
    return value


def _pieces(value: ir.Value, quantized: Container[str], *, outputs: bool = True) -> set[ir.Value]:
    """Return what is moved from a value and quantized behind that, or an output of the network where these count."""
    found = set()
    for use in value.uses():
        if use.idx == 0 and is_moved(use.node):
            for output in use.node.outputs:
                ends = name_of(output) in quantized or (outputs and output.is_graph_output())
                found |= {output} if ends else _pieces(output, quantized, outputs=outputs)
    return found


def pass_through_source(value: ir.Value, quantized: Container[str]) -> str | None:
    """Return the quantized value of which this one is a rearrangement."""
    node = value.producer()
    while node is not None and operators.of(node).on_codes and node.inputs[0] is not None:
        if not is_moved(node):
            return None
        if name_of(node.inputs[0]) in quantized:
            return name_of(node.inputs[0])
        node = node.inputs[0].producer()
    return None


def is_moved(node: ir.Node) -> bool:
    """Return whether every output element is an element of the first input or zero, and so has a code on its grid."""
    moves = operators.of(node).moves
    return moves is not None and (moves is not Moves.PADDED or _pads_with_zeros(node))


def _pads_with_zeros(node: ir.Node) -> bool:
    if node.attributes.get_string("mode", "constant") != "constant":
        return True
    value = node.inputs[2] if len(node.inputs) > 2 else None
    if value is not None:
        return value.const_value is not None and not array_of(value).any()
    return node.attributes.get_float("value", 0.0) == 0

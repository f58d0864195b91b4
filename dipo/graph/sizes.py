"""Values that hold sizes, or are computed from sizes alone: they depend on no number of any sample."""

from __future__ import annotations

from collections.abc import Container

import onnx_ir as ir

from dipo.graph import operators


def computed_from_sizes(model: ir.Model) -> frozenset[str]:
    """Return the names of the values of a network that are computed from sizes and constants alone.

    The size of what was itself sized by numbers, such as the boxes that are left of a detector's, does not count; nor
    does anything behind operators of which nothing is known.
    """
    sizes: set[ir.Value] = set()
    unsized: set[ir.Value] = set()
    for node in model.graph:
        read = [value for value in node.inputs if value is not None and value.const_value is None]
        if any(value in unsized for value in read) or _makes_sizes(node, sizes):
            unsized.update(node.outputs)
        elif operators.of(node).reads_shape or (not operators.of(node).random and all(v in sizes for v in read)):
            sizes.update(node.outputs)
    return frozenset(value.name for value in sizes if value.name)


def _makes_sizes(node: ir.Node, sizes: Container[ir.Value]) -> bool:
    """Return whether the sizes of the node's outputs may depend on the numbers that it reads."""
    operator = operators.of(node)
    if operator.sized_by_numbers or node.op_type in _WITH_GRAPHS or node.domain != "":
        return True
    options = [node.inputs[port] for port in operator.sized_by if port < len(node.inputs)]
    return any(value is not None and value.const_value is None and value not in sizes for value in options)


_WITH_GRAPHS = frozenset({"If", "Loop", "Scan", "SequenceMap"})

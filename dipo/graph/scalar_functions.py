"""Functions of one number that a file has in pieces: GELU by Erf or Tanh, Mish, HardSwish.

Each piece computes an element from the same element of one value, and from constants, so the whole is a function of
one number. Where a piece has no kernel on integers, the function runs with floats, and a quantizer in the middle of it
costs accuracy and time alike: a GELU of five pieces would be rounded five times.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import onnx_ir as ir

from dipo.graph import operators
from dipo.graph.operators import Kind
from dipo.graph.target_spec import TargetSpec

PIECES = {Kind.ACTIVATION, Kind.ELEMENTWISE}


@dataclass(frozen=True)
class _Function:
    """What a value is a function of."""

    of: ir.Value
    in_floats: bool = False
    """Whether a piece of it has no kernel on integers."""


def behind_floats(nodes: Iterable[ir.Node], rules: TargetSpec) -> set[ir.Node]:
    """Return the nodes that are a piece of a function of one number, behind another that has no kernel on integers.

    Args:
        nodes: All of the graph, sorted topologically.
        rules: What the target takes.
    """
    functions: dict[ir.Value, _Function] = {}
    found = set()
    for node in nodes:
        function = _function(node, functions, rules)
        if function is not None:
            functions[node.outputs[0]] = function
            if function.in_floats and operators.key_of(node) in rules.operators:
                found.add(node)
    return found


def _function(node: ir.Node, functions: dict[ir.Value, _Function], rules: TargetSpec) -> _Function | None:
    """Return what a node's output is a function of; None where it is more than one value, or no elements meet."""
    operator = operators.of(node)
    if operator.kind not in PIECES:
        return None
    read = [value for value in node.inputs if value is not None and value.const_value is None]
    parts = [functions.get(value, _Function(value)) for value in read]
    if len({part.of for part in parts}) != 1:
        return None
    # What cuts off, such as a Relu, is part of the kernel in front of it.
    floats = operators.key_of(node) not in rules.operators and operator.limits is None
    return _Function(parts[0].of, floats or any(part.in_floats for part in parts))

"""Values that cannot be negative."""

from __future__ import annotations

from collections.abc import Set

import onnx_ir as ir

from dipo.graph import operators
from dipo.graph.accessors import array_of, name_of
from dipo.graph.limits import clip_limits
from dipo.graph.operators import Sign
from dipo.graph.placement import is_float


def positive_values(model: ir.Model) -> set[str]:
    """Return the names of the values that cannot be negative, by the operators that compute them."""
    positive: set[str] = set()
    for node in model.graph:
        if _is_never_negative(node) or _keeps_sign(node, positive):
            positive |= {name_of(value) for value in node.outputs}
    return positive


def _is_never_negative(node: ir.Node) -> bool:
    limits = clip_limits(node)
    return operators.of(node).sign is Sign.NEVER_NEGATIVE or (limits is not None and limits.low >= 0)


def _keeps_sign(node: ir.Node, positive: Set[str]) -> bool:
    operator = operators.of(node)
    # A kernel with its own grid writes all of it, below zero too; cubic interpolation overshoots.
    if operator.sign is not Sign.KEPT or operator.own_grid or node.attributes.get_string("mode", "") == "cubic":
        return False
    data = [value for value in node.inputs[: operator.data_inputs] if value is None or is_float(value)]
    # Integers behind no float may be negative, as those that a Cast converts.
    return bool(data) and all(value is None or _is_positive(value, positive) for value in data)


def _is_positive(value: ir.Value | None, positive: Set[str]) -> bool:
    if value is None:
        return False
    if value.const_value is not None:
        return bool((array_of(value) >= 0).all())
    return value.name in positive

"""Which values cannot be negative."""

from __future__ import annotations

from collections.abc import Set

import onnx_ir as ir

from dipo.graph.accessors import array_of, name_of
from dipo.graph.placement import PASS_THROUGH, is_float

_POSITIVE = frozenset({"Relu", "Sigmoid", "Softmax", "HardSigmoid", "Abs", "Exp", "Softplus", "ReduceL2"})
_KEEPS_SIGN = PASS_THROUGH | {
    "Add", "Sum", "Mul", "Concat", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "ReduceMean", "ReduceMax",
    "Max", "Min", "Split", "Dropout", "DepthToSpace", "SpaceToDepth",
}  # fmt: skip
"""Operators that give nothing negative where they read nothing negative."""


def positive_values(model: ir.Model) -> set[str]:
    """Names of the values that cannot be negative, by the operators that make them."""
    found: set[str] = set()
    for node in model.graph:
        if node.domain == "" and (node.op_type in _POSITIVE or _clips_below(node) or _keeps_sign(node, found)):
            found |= {name_of(value) for value in node.outputs}
    return found


def _keeps_sign(node: ir.Node, positive: Set[str]) -> bool:
    if node.op_type == "Resize":
        return node.attributes.get_string("mode", "nearest") != "cubic" and _is_positive(node.inputs[0], positive)
    if node.op_type not in _KEEPS_SIGN:
        return False
    moved = node.op_type in PASS_THROUGH - {"Pad"} or node.op_type in {"ReduceMean", "ReduceMax", "Split", "Dropout"}
    data = node.inputs[:1] if moved else [value for value in node.inputs if value is None or is_float(value)]
    return all(value is None or _is_positive(value, positive) for value in data)


def _is_positive(value: ir.Value | None, positive: Set[str]) -> bool:
    if value is None:
        return False
    if value.const_value is not None:
        return bool((array_of(value) >= 0).all())
    return value.name in positive


def _clips_below(node: ir.Node) -> bool:
    if node.op_type != "Clip":
        return False
    if "min" in node.attributes:
        return node.attributes.get_float("min", -1.0) >= 0
    low = node.inputs[1] if len(node.inputs) > 1 else None
    return low is not None and low.const_value is not None and bool(array_of(low) >= 0)

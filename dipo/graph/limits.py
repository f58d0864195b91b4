"""Constant limits of Relu and Clip."""

from __future__ import annotations

import math
from dataclasses import replace

import onnx_ir as ir

from dipo.graph import operators
from dipo.graph.operators import Limits, LimitsFrom


def clip_limits(node: ir.Node) -> Limits | None:
    """Return the limits of a Relu or Clip, infinite where absent; None if they are not constant, or for other nodes."""
    limits = operators.of(node).limits
    if limits is None or limits.source is LimitsFrom.OPERANDS:
        return None
    if limits.source is LimitsFrom.ITSELF:
        return limits
    ends = [node.attributes.get_float("min", -math.inf), node.attributes.get_float("max", math.inf)]
    for index, value in enumerate(node.inputs[1:3]):
        if value is None:
            continue
        constant = ir.convenience.get_const_tensor(value)
        if constant is None:
            return None
        ends[index] = float(constant.numpy().item())
    return replace(limits, low=ends[0], high=ends[1])

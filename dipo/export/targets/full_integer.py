"""Shared parts of the targets that run a whole network on integers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dipo.graph import operators
from dipo.graph.target_spec import TargetSpec

if TYPE_CHECKING:
    import onnx_ir as ir

    from dipo.graph.plan import QuantizedModel
    from dipo.quant.spec import QParams

OPERATORS = operators.names(lambda operator: operator.full_integer)
"""All operators that compute with floats, except Relu and Clip, which are part of the kernel before them, and those
that only move values, which have the range of their input."""

FIXED_RANGES = operators.names(lambda operator: operator.own_grid)
"""Operators whose kernels write a fixed grid, [0, 1) or [-1, 1) with a power of two as its step."""


def constants_of_all(model: ir.Model, quantized: QuantizedModel, *, symmetric: bool) -> dict[str, QParams]:
    """Return the grids, by name, of constants that are not weights or biases of layers, such as a PRelu's slopes.

    Each has one scale, from its smallest to its largest finite number, and the width of the widest activation. The
    range of one that flows into Softmaxes alone, such as an attention mask, ends where it no longer counts.

    Args:
        model: The float graph.
        quantized: Its layers and activations.
        symmetric: Whether the target's weights are symmetric.
    """
    import numpy as np

    from dipo.export.ranges import Encoding
    from dipo.graph.accessors import array_of, name_of
    from dipo.graph.layers import layers_of
    from dipo.graph.placement import is_float
    from dipo.graph.saturation import Interval, constant_reach, saturated_parts
    from dipo.quant.spec import QuantSpec, Range, qparams_of

    bits = max((Encoding(each).bits for each in quantized.activations.values()), default=8)
    spec = QuantSpec(bits, signed=symmetric, symmetric=symmetric)
    weights = {name_of(layer.weight) for layer in layers_of(model)}
    saturated = {node for part in saturated_parts(model) for node in part.nodes}
    grids = {name: Encoding(each) for name, each in quantized.activations.items()}
    seen = {name: Interval(float(grid.min), float(grid.max)) for name, grid in grids.items()}
    found = {}
    for node in model.graph:
        for value in node.inputs if operators.of(node).data_constants else ():
            if value is None or value.const_value is None or not is_float(value) or name_of(value) in weights:
                continue
            reach = constant_reach(value, node, seen) if node in saturated else Interval()
            numbers = array_of(value).clip(reach.low, reach.high)
            numbers = numbers[np.isfinite(numbers)]
            if numbers.size:
                found[name_of(value)] = qparams_of(Range(float(numbers.min()), float(numbers.max())), spec)
    return found


def ranges_of_all(spec: TargetSpec, model: ir.Model, quantized: QuantizedModel) -> dict[str, QParams]:
    """Return the grids of all values that hold floats, by name, in topological order.

    Args:
        spec: The target's specification.
        model: The float graph.
        quantized: Its layers and activations.

    Raises:
        UserError: A value or a weight has no range, or a width that the target does not take.
    """
    from dipo.export.ranges import check_coverage, check_widths, float_values, spread
    from dipo.graph.accessors import name_of
    from dipo.graph.layers import layers_of

    check_widths(spec, quantized)
    known, values = spread(model, quantized.activations), float_values(model)
    weights_of_all = [(layer.name, name_of(layer.weight)) for layer in layers_of(model)]
    quantized_weights = {weight for node, weight in weights_of_all if node in quantized.layers}
    check_coverage(spec.name, [*values, *(weight for _, weight in weights_of_all)], {*known, *quantized_weights})
    return {name: known[name] for name in values}

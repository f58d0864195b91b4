"""What the targets have in common that run a whole network on integers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from dipo.export.ranges import Encoding, check_coverage, check_widths, float_values, spread
from dipo.graph import operators
from dipo.graph.accessors import array_of, name_of
from dipo.graph.layers import layers_of
from dipo.graph.placement import is_float
from dipo.graph.plan import QuantizedModel
from dipo.quant.spec import QParams, QuantSpec, Range, qparams_of

OPERATORS = operators.names(lambda operator: operator.full_integer)
"""All that compute with floats. Relu and Clip are not among them: they are part of the kernel before them. Nor is what
only moves values, which has the range of its input."""

FIXED_RANGES = operators.names(lambda operator: operator.own_grid)
"""Operators whose kernels write a grid of their own: [0, 1) or [-1, 1) with a power of two as its step."""


def constants_of_all(model: ir.Model, quantized: QuantizedModel, *, symmetric: bool) -> dict[str, QParams]:
    """Grids of the constants that are no weight and no bias of a layer, such as the slopes of a PRelu, by name.

    They have one scale for all, from the smallest to the largest number, and the width of the widest activation.

    Args:
        model: The float graph.
        quantized: Its layers and activations.
        symmetric: As the target has weights.
    """
    bits = max((Encoding(each).bits for each in quantized.activations.values()), default=8)
    spec = QuantSpec(bits, signed=symmetric, symmetric=symmetric)
    weights = {name_of(layer.weight) for layer in layers_of(model)}
    found = {}
    for node in model.graph:
        for value in node.inputs if operators.of(node).data_constants else ():
            if value is None or value.const_value is None or not is_float(value) or name_of(value) in weights:
                continue
            numbers = array_of(value)
            if numbers.size and np.isfinite(numbers).all():
                found[name_of(value)] = qparams_of(Range(float(numbers.min()), float(numbers.max())), spec)
    return found


def ranges_of_all(
    platform: str, model: ir.Model, quantized: QuantizedModel, *, weights: Sequence[int], activations: Sequence[int]
) -> dict[str, QParams]:
    """The grids of all values that hold floats, by name, in topological order.

    Args:
        platform: Name for messages.
        model: The float graph.
        quantized: Its layers and activations.
        weights: Widths that the target takes.
        activations: The same of activations.

    Raises:
        UserError: A value or a weight has no range, or a width that the target does not take.
    """
    check_widths(platform, quantized, weights=weights, activations=activations)
    known, values = spread(model, quantized.activations), float_values(model)
    weights_of_all = [(layer.name, name_of(layer.weight)) for layer in layers_of(model)]
    quantized_weights = {weight for node, weight in weights_of_all if node in quantized.layers}
    check_coverage(platform, [*values, *(weight for _, weight in weights_of_all)], {*known, *quantized_weights})
    return {name: known[name] for name in values}

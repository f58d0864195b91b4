"""Rockchip RK3566, RK3568, RK3588 (RKNN toolkit 2): the ranges in the form of its `.quantization.cfg`.

The toolkit writes such a file in the first step of its hybrid quantization and reads it in the second.
`dipo.export.rknn_config` puts `min` and `max` of each tensor there (version 2.5.0 takes them, says what it changes, and
derives the scales; it refuses a file in which `scale` or `zero_point` differ). Values and weights have the names that
they have in the ONNX file. Configure the toolkit with `quantized_dtype="w8a8"`, `quantized_method="layer"`. `<node>_W`
and `<node>_b` are the parameters again, by name of their node, for scripts; the toolkit does not look for them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from dipo.export.float_file import write_models
from dipo.export.forms import QDQ, Form
from dipo.export.platforms import rv
from dipo.export.ranges import Encoding, LayerRanges, layer_ranges
from dipo.graph.accessors import name_of, node_name
from dipo.graph.plan import QuantizedModel
from dipo.quant.spec import QParams

RULES = dataclasses.replace(rv.RULES, name="rk")


def write(
    model: ir.Model, quantized: QuantizedModel, folder: Path, *, metadata: Mapping[str, str], form: Form = QDQ
) -> list[Path]:
    """Write `quantized.onnx`, `deploy.onnx`, and the ranges as `rk_quantized_param.yaml` and `.json`.

    Args:
        model: The float graph.
        quantized: Its integer weights and activation scales.
        folder: Where the files go; exists.
        metadata: Goes into the ONNX files.
        form: How `quantized.onnx` is written.

    Returns:
        The files written.

    Raises:
        UserError: A tensor has no range, or not 8 bits; nothing is written.
    """
    known = rv.unified_ranges("rk", model, quantized)
    content = {"custom_quantize_layers": {}, "quantize_parameters": _parameters(model, quantized, known)}
    paths = write_models(model, rv.with_ranges(quantized, known), folder, rules=RULES, metadata=metadata, form=form)
    return [*paths, *rv.write_both(folder, "rk_quantized_param", content)]


def _parameters(model: ir.Model, quantized: QuantizedModel, known: Mapping[str, QParams]) -> dict[str, Any]:
    layers = {layer.node: layer for layer in layer_ranges(model, quantized, known)}
    found = {name_of(v): _range(Encoding(known[name_of(v)])) for v in model.graph.inputs if name_of(v) in known}
    for node in model.graph:
        if node in layers:
            found |= _of_layer(layers[node])
        for value in node.outputs:
            if name_of(value) in known and not rv.feeds_sigmoid(value):
                found[name_of(value)] = _range(Encoding(known[name_of(value)]))
    return found


def _of_layer(layer: LayerRanges) -> dict[str, Any]:
    name = node_name(layer.node)
    found = {layer.weight_name: _range(layer.weight), f"{name}_W": _range(layer.weight)}
    if layer.bias is not None:
        largest = float(np.abs(layer.bias).max())
        found[f"{name}_b"] = {"max": [largest], "min": [-largest]}
    return found


def _range(grid: Encoding) -> dict[str, list[float]]:
    return {"max": [float(grid.max)], "min": [float(grid.min)]}

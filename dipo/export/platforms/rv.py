"""Rockchip RV1126, RV1109, RK1808 and RK3399Pro (RKNN toolkit 1): the ranges in the form of its `.quantization.cfg`.

The toolkit's own file has the same sections; it puts an index behind the names of nodes, which the user's script has to
match. All tensors are unsigned 8 bits with one range; biases are int32, of input step x weight step. The toolkit gives
the input of a Sigmoid a range of its own, so that one is left out, and quantizes the inputs of a Concat as its output.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir
import yaml

from dipo.export.float_file import write_models
from dipo.export.forms import QDQ, Form
from dipo.export.platforms import whole
from dipo.export.ranges import Encoding, layer_ranges, unify_concats
from dipo.export.text_files import write_json, write_text
from dipo.graph.accessors import name_of, node_name
from dipo.graph.plan import QuantizedModel
from dipo.graph.rules import PlatformRules
from dipo.quant.spec import QParams

RULES = PlatformRules(
    name="rv",
    operators=whole.OPERATORS,
    fixed_ranges=whole.FIXED_RANGES,
    weight_symmetric=False,
    weight_per_channel=False,
    act_symmetric=False,
    act_signed=False,
    int32_bias=True,
    fuse_residual_add=False,
    quantize_outputs=True,
    weight_widths=(8,),
    act_widths=(8,),
    unify_concats=True,
)


def write(
    model: ir.Model, quantized: QuantizedModel, folder: Path, *, metadata: Mapping[str, str], form: Form = QDQ
) -> list[Path]:
    """Write `quantized.onnx`, `deploy.onnx`, and the ranges as `rv_quantized_param.yaml` and `.json`.

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
    known = unified_ranges("rv", model, quantized)
    content = {"customized_quantize_layers": {}, "quantize_parameters": _parameters(model, quantized, known)}
    paths = write_models(model, with_ranges(quantized, known), folder, rules=RULES, metadata=metadata, form=form)
    return [*paths, *write_both(folder, "rv_quantized_param", content)]


def unified_ranges(platform: str, model: ir.Model, quantized: QuantizedModel) -> dict[str, QParams]:
    """The grids of all values that hold floats, those of a Concat's inputs the same as its output's.

    Raises:
        UserError: A tensor has no range, or not 8 bits.
    """
    return unify_concats(model, whole.ranges_of_all(platform, model, quantized, weights=[8], activations=[8]))


def with_ranges(quantized: QuantizedModel, known: Mapping[str, QParams]) -> QuantizedModel:
    """The model with its activations on these grids, so that all files say the same."""
    return QuantizedModel(quantized.layers, {name: known[name] for name in quantized.activations})


def write_both(folder: Path, name: str, content: Mapping[str, Any]) -> list[Path]:
    """Write the content as YAML and as JSON."""
    text = yaml.safe_dump(dict(content), sort_keys=False, default_flow_style=False)
    return [write_text(folder / f"{name}.yaml", text), write_json(folder / f"{name}.json", content)]


def feeds_sigmoid(value: ir.Value) -> bool:
    """Whether a Sigmoid alone reads the value."""
    return [use.node.op_type for use in value.uses()] == ["Sigmoid"]


def _parameters(model: ir.Model, quantized: QuantizedModel, known: Mapping[str, QParams]) -> dict[str, Any]:
    layers = {layer.node: layer for layer in layer_ranges(model, quantized, known)}
    found: dict[str, Any] = {}
    for value in model.graph.inputs:
        if name_of(value) in known:
            found[f"@{value.name}:out0"] = _u8(Encoding(known[name_of(value)]))
    for node in model.graph:
        name = node_name(node)
        if node in layers:
            layer = layers[node]
            found[f"@{name}:weight"] = _u8(layer.weight)
            if layer.bias_scale is not None:
                found[f"@{name}:bias"] = _i32(float(layer.bias_scale))
        for index, value in enumerate(node.outputs):
            if name_of(value) in known and not feeds_sigmoid(value):
                found[f"@{name}:out{index}"] = _u8(Encoding(known[name_of(value)]))
    return found


def _u8(grid: Encoding) -> dict[str, Any]:
    return {
        "dtype": "asymmetric_affine",
        "method": "layer",
        "max_value": [float(grid.max)],
        "min_value": [float(grid.min)],
        "qtype": "u8",
        "scale": [float(grid.scale)],
        "zero_point": [int(grid.zero_point)],
    }


def _i32(scale: float) -> dict[str, Any]:
    return {
        "dtype": "asymmetric_affine",
        "method": "layer",
        "max_value": [],
        "min_value": [],
        "zero_point": [0],
        "scale": [scale],
        "qtype": "i32",
    }

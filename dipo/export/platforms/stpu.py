"""STPU: symmetric ranges of all tensors, and the exponents at which its accumulators begin.

`emin` is what the device needs to know of a sum: the biased float32 exponent of the largest value that it may reach,
less the bits of the accumulator that lie below.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from dipo.export.float_file import write_models
from dipo.export.forms import QDQ, Form
from dipo.export.platforms import whole
from dipo.export.ranges import Encoding, LayerRanges, layer_ranges
from dipo.export.text_files import write_json
from dipo.graph.accessors import name_of, node_name
from dipo.graph.layers import Layer, layer_of
from dipo.graph.plan import QuantizedModel
from dipo.graph.rules import PlatformRules

RULES = PlatformRules(
    name="stpu",
    operators=whole.OPERATORS,
    fixed_ranges=whole.FIXED_RANGES,
    weight_symmetric=True,
    weight_per_channel=False,
    act_symmetric=True,
    act_signed=True,
    int32_bias=True,
    fuse_residual_add=False,
    quantize_outputs=True,
    weight_widths=(8,),
    act_widths=(8,),
)

_LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm"})
_SUM_BITS, _RESIZE_BITS = 12, 22
"""Bits of the accumulators: of products, and of interpolations."""
_HEADROOM = 2
_WINOGRAD = np.array([[2, 0, 0], [1, 1, 1], [1, -1, 1], [0, 0, 2]], np.float32)
"""Twice the transform of a 3x3 kernel for 2x2 outputs: the device keeps it in integers."""


def write(
    model: ir.Model,
    quantized: QuantizedModel,
    folder: Path,
    *,
    metadata: Mapping[str, str],
    form: Form = QDQ,
    winograd: bool = False,
) -> list[Path]:
    """Write `quantized.onnx`, `deploy.onnx` and `stpu_minmax.json`.

    The JSON has `{"min", "max"}` for each activation, and `emin` beside it where a layer or a resize makes it; for the
    parameters `<node>_weights: {"min", "max"}` and `<node>_bias: {"alpha", "zero_point"}`. What only a Relu or Clip
    reads has the range behind it.

    Args:
        model: The float graph.
        quantized: Its integer weights and activation scales.
        folder: Where the files go; exists.
        metadata: Goes into the ONNX files.
        form: How `quantized.onnx` is written.
        winograd: Convolutions of 3x3 without stride or groups run as Winograd's: `layer_<node>: {"wg": true}`, and the
            range of their transformed weight.

    Returns:
        The files written.

    Raises:
        UserError: A tensor has no range, or not 8 bits; nothing is written.
    """
    known = whole.ranges_of_all("stpu", model, quantized, weights=[8], activations=[8])
    layers = [each for each in layer_ranges(model, quantized, known) if each.node.op_type in _LAYERS | {"MatMul"}]
    content: dict[str, Any] = {f"{node_name(layer.node)}_weights": _around(layer.weight.amax) for layer in layers}
    content |= {name: _around(Encoding(qparams).amax) for name, qparams in known.items()}
    for layer in layers if winograd else []:
        _take_winograd(content, layer, quantized.layers[node_name(layer.node)].weight)
    for node in model.graph:
        _add_emin(content, node)
    for layer in layers:
        _add_bias(content, layer)
    paths = write_models(model, quantized, folder, rules=RULES, metadata=metadata, form=form)
    return [*paths, write_json(folder / "stpu_minmax.json", content)]


def exponent(value: float) -> int:
    """The biased exponent that float32 stores: 0 for 0, else from 1 to 254."""
    return 0 if value == 0 else min(max(math.frexp(abs(value))[1] + 126, 1), 254)


def _around(amax: NDArray[np.float64] | float) -> dict[str, float]:
    return {"min": -float(amax), "max": float(amax)}


def _take_winograd(content: dict[str, Any], layer: LayerRanges, weight: NDArray[np.float32]) -> None:
    attributes = layer.node.attributes
    plain = layer.node.op_type == "Conv" and weight.shape[2:] == (3, 3) and attributes.get_int("group", 1) == 1
    if plain and set(attributes.get_ints("strides", [1])) == {1} and set(attributes.get_ints("dilations", [1])) == {1}:
        name = node_name(layer.node)
        transformed = np.einsum("ij,ocjk,lk->ocil", _WINOGRAD, weight, _WINOGRAD)
        content[f"layer_{name}"] = {"wg": True}
        content[f"{name}_weights"] = _around(np.abs(transformed).max())


def _add_emin(content: dict[str, Any], node: ir.Node) -> None:
    made = content.get(name_of(node.outputs[0]), {})
    if node.op_type in {"Resize", "Upsample"} and made:
        made["emin"] = exponent(made["max"]) - (_RESIZE_BITS - _HEADROOM)
    layer = layer_of(node)
    if layer is not None and node.op_type in _LAYERS and f"{layer.name}_weights" in content:
        assert layer.input is not None
        terms = math.sqrt(_terms(layer))
        largest = terms * content[name_of(layer.input)]["max"] * content[f"{layer.name}_weights"]["max"]
        made["emin"] = exponent(max(largest, made["max"])) - (_SUM_BITS - _HEADROOM)


def _terms(layer: Layer) -> int:
    """Return the number of products in a sum, as the device counts them."""
    if layer.op_type == "Gemm":
        return layer.shape[1 - layer.channel_axis]
    return math.prod(layer.shape[1:])


def _add_bias(content: dict[str, Any], layer: LayerRanges) -> None:
    node, name = layer.node, node_name(layer.node)
    if layer.bias is not None and node.inputs[0] is not None:
        weight, data = content[f"{name}_weights"], content[name_of(node.inputs[0])]
        alpha = (weight["max"] - weight["min"]) / 254 * ((data["max"] - data["min"]) / 254)
        content[f"{name}_bias"] = {"alpha": alpha, "zero_point": 0}

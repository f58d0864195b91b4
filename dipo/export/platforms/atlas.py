"""Huawei Ascend (Atlas): the record of quantization factors from which AMCT converts a float ONNX model.

`scale_offset_record.txt` is protobuf text, a record for each layer; a layer without one stays float. AMCT takes a scale
for each channel of a convolution alone, so another layer's weight is rounded once more, to one scale.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from dipo.export.float_file import write_models
from dipo.export.forms import QDQ, Form
from dipo.export.ranges import Encoding, LayerRanges, check_coverage, check_widths, layer_ranges, per_tensor, spread
from dipo.export.text_files import Fields, proto_text, write_json, write_text
from dipo.graph.accessors import name_of, node_name
from dipo.graph.layers import is_layer
from dipo.graph.plan import QuantizedModel
from dipo.graph.rules import PlatformRules
from dipo.quant.spec import QParams

_PER_CHANNEL = frozenset({"Conv"})

RULES = PlatformRules(
    name="atlas",
    operators=frozenset({"AveragePool", "Conv", "ConvTranspose", "Gemm", "MatMul"}),
    weight_symmetric=True,
    weight_per_channel=True,
    act_symmetric=False,
    act_signed=True,
    int32_bias=True,
    fuse_residual_add=False,
    weight_widths=(8,),
    act_widths=(8,),
    channel_operators=_PER_CHANNEL,
)


def write(
    model: ir.Model, quantized: QuantizedModel, folder: Path, *, metadata: Mapping[str, str], form: Form = QDQ
) -> list[Path]:
    """Write `quantized.onnx`, `deploy.onnx`, `scale_offset_record.txt` and `atlas_quant_param.json`.

    The JSON is `{tensor: {"scale", "offset"}}` of what the layers read, for scripts; AMCT does not read it.

    Args:
        model: The float graph.
        quantized: Its integer weights and activation scales.
        folder: Where the files go; exists.
        metadata: Goes into the ONNX files.
        form: How `quantized.onnx` is written.

    Returns:
        The files written.

    Raises:
        UserError: What a layer reads has no range, or not 8 bits; nothing is written.
    """
    check_widths("atlas", quantized, weights=[8], activations=[8])
    quantized = _with_scalars(model, quantized)
    known = spread(model, quantized.activations)
    nodes = [node for node in model.graph if _recorded(node, quantized, known)]
    check_coverage("atlas", map(_read, nodes), known)
    layers = {layer.node: layer for layer in layer_ranges(model, quantized, known)}
    record = [("record", _record(node, Encoding(known[_read(node)]), layers.get(node))) for node in nodes]
    params = {_read(node): _factors(Encoding(known[_read(node)])) for node in nodes}
    paths = write_models(model, quantized, folder, rules=RULES, metadata=metadata, form=form)
    return [
        *paths,
        write_text(folder / "scale_offset_record.txt", proto_text(record)),
        write_json(folder / "atlas_quant_param.json", params),
    ]


def _with_scalars(model: ir.Model, quantized: QuantizedModel) -> QuantizedModel:
    kinds = {node_name(node): node.op_type for node in model.graph}
    layers = {
        name: layer if kinds[name] in _PER_CHANNEL else per_tensor(layer) for name, layer in quantized.layers.items()
    }
    return QuantizedModel(layers, quantized.activations)


def _recorded(node: ir.Node, quantized: QuantizedModel, known: Mapping[str, QParams]) -> bool:
    """Layers that were quantized, and the poolings of a window whose input is."""
    if is_layer(node):
        return node_name(node) in quantized.layers
    return node.op_type == "AveragePool" and _read(node) in known


def _read(node: ir.Node) -> str:
    assert node.inputs[0] is not None
    return name_of(node.inputs[0])


def _factors(grid: Encoding) -> dict[str, Any]:
    """`code = round(x / scale) + offset`, from -128 to 127."""
    offset = int(grid.zero_point) - (0 if grid.signed else 128)
    return {"scale": float(grid.scale), "offset": offset}


def _record(node: ir.Node, data: Encoding, layer: LayerRanges | None) -> Fields:
    return [("key", node_name(node)), ("value", list(_value(data, layer)))]


def _value(data: Encoding, layer: LayerRanges | None) -> Iterator[tuple[str, Any]]:
    factors = _factors(data)
    yield "scale_d", factors["scale"]
    yield "offset_d", factors["offset"]
    if layer is not None:
        scales = np.atleast_1d(layer.weight.scale)
        yield from (("scale_w", float(scale)) for scale in scales)
        yield from (("offset_w", 0) for _ in scales)

"""Huawei Ascend (Atlas): the record of quantization factors from which AMCT converts a float ONNX model.

`scale_offset_record.txt` is protobuf text, a record for each layer; a layer without one stays float. AMCT takes a scale
for each channel only of convolutions, so other layers' weights are rounded once more, to one scale.
`atlas_quant_param.json` is `{tensor: {"scale", "offset"}}` of the layers' inputs, for scripts; AMCT does not read it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dipo.export.protobuf_text import Schema, parse
from dipo.export.range_file import Claim, Names, numbers
from dipo.export.target import DEPLOYED, QUANTIZED, Export, Target, TargetFile, TargetOptions
from dipo.export.text_files import Fields, proto_text
from dipo.graph.target_spec import TargetSpec

if TYPE_CHECKING:
    import onnx_ir as ir

    from dipo.export.ranges import Encoding, LayerRanges
    from dipo.graph.plan import QuantizedModel
    from dipo.quant.spec import QParams

_PER_CHANNEL = frozenset({"Conv"})
_CODES = (-128, 127)
RECORD = Schema(
    {
        "SingleLayerRecord": [
            ("scale_d", 1, "FLOAT", "OPTIONAL"),
            ("offset_d", 2, "INT32", "OPTIONAL"),
            ("scale_w", 3, "FLOAT", "REPEATED"),
            ("offset_w", 4, "INT32", "REPEATED"),
            ("shift_bit", 5, "UINT32", "REPEATED"),
            ("skip_fusion", 6, "BOOL", "OPTIONAL"),
        ],
        "MapFiledEntry": [("key", 1, "STRING", "OPTIONAL"), ("value", 2, "SingleLayerRecord", "OPTIONAL")],
        "ScaleOffsetRecord": [("record", 1, "MapFiledEntry", "REPEATED")],
    }
)
"""AMCT's definition of the record."""


def read_record(text: str, names: Names) -> Iterator[Claim]:
    """Read the record back: the factors of each layer's input and weight."""
    for entry in parse(text, RECORD).record:
        value = entry.value
        low, high = (numbers((code - value.offset_d) * value.scale_d) for code in _CODES)
        data = Claim(
            f"{entry.key} (scale_d, offset_d)", names.input_of(entry.key, 0), numbers(value.scale_d), low, high
        )
        yield data if entry.key in names.nodes else Claim(entry.key, None)
        if value.scale_w and names.input_of(entry.key, 1) is not None:
            yield Claim(f"{entry.key} (scale_w)", names.input_of(entry.key, 1), scale=numbers(value.scale_w))


def read_params(text: str, names: Names) -> Iterator[Claim]:
    """Read the JSON back: `x = (code - offset) * scale`."""
    for name, factors in json.loads(text).items():
        scale, offset = float(factors["scale"]), float(factors["offset"])
        low, high = ((code - offset) * scale for code in _CODES)
        yield names.claim(name, scale=scale, low=low, high=high)


class Atlas(Target[TargetOptions]):
    """Huawei Ascend."""

    spec = TargetSpec(
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
    files = (
        QUANTIZED,
        DEPLOYED,
        TargetFile("scale_offset_record.txt", read=read_record, readers=("protobuf, for AMCT",)),
        TargetFile("atlas_quant_param.json", read=read_params, elsewhere="the user's scripts read it"),
    )

    def write(self, export: Export, options: TargetOptions) -> list[Path]:
        """Write the models, the record and the JSON.

        Raises:
            UserError: A layer's input has no range, or not 8 bits; nothing is written.
        """
        from dipo.export.ranges import Encoding, check_coverage, check_widths, layer_ranges, spread

        del options
        check_widths(self.spec, export.quantized)
        model, quantized = export.model, _with_scalars(export.model, export.quantized)
        known = spread(model, quantized.activations)
        nodes = [node for node in model.graph if _recorded(node, quantized, known)]
        check_coverage(self.name, map(_read, nodes), known)
        layers = {layer.node: layer for layer in layer_ranges(model, quantized, known)}
        record = [("record", _record(node, Encoding(known[_read(node)]), layers.get(node))) for node in nodes]
        params = {_read(node): _factors(Encoding(known[_read(node)])) for node in nodes}
        return [
            *dataclasses.replace(export, quantized=quantized).write_models(self.spec),
            export.write_text("scale_offset_record.txt", proto_text(record)),
            export.write_json("atlas_quant_param.json", params),
        ]


TARGET = Atlas()


def _with_scalars(model: ir.Model, quantized: QuantizedModel) -> QuantizedModel:
    from dipo.export.ranges import per_tensor
    from dipo.graph.accessors import node_name

    kinds = {node_name(node): node.op_type for node in model.graph}
    layers = {
        name: layer if kinds[name] in _PER_CHANNEL else per_tensor(layer) for name, layer in quantized.layers.items()
    }
    return dataclasses.replace(quantized, layers=layers)


def _recorded(node: ir.Node, quantized: QuantizedModel, known: Mapping[str, QParams]) -> bool:
    """Return whether the node is a quantized layer, or a window pooling with a quantized input."""
    from dipo.graph.accessors import node_name
    from dipo.graph.layers import is_layer

    if is_layer(node):
        return node_name(node) in quantized.layers
    return node.op_type == "AveragePool" and _read(node) in known


def _read(node: ir.Node) -> str:
    from dipo.graph.accessors import name_of

    assert node.inputs[0] is not None
    return name_of(node.inputs[0])


def _factors(grid: Encoding) -> dict[str, Any]:
    """Return the factors of `code = round(x / scale) + offset`, from -128 to 127."""
    offset = int(grid.zero_point) - (0 if grid.signed else 128)
    return {"scale": float(grid.scale), "offset": offset}


def _record(node: ir.Node, data: Encoding, layer: LayerRanges | None) -> Fields:
    from dipo.graph.accessors import node_name

    return [("key", node_name(node)), ("value", list(_value(data, layer)))]


def _value(data: Encoding, layer: LayerRanges | None) -> Iterator[tuple[str, Any]]:
    factors = _factors(data)
    yield "scale_d", factors["scale"]
    yield "offset_d", factors["offset"]
    if layer is not None:
        scales = layer.weight.scale.reshape(-1)
        yield from (("scale_w", float(scale)) for scale in scales)
        yield from (("offset_w", 0) for _ in scales)

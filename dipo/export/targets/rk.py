"""Rockchip RK3566, RK3568, RK3588 (RKNN toolkit 2): the ranges in the form of its `.quantization.cfg`.

The toolkit writes such a file in the first step of its hybrid quantization and reads it in the second.
`dipo.export.rknn_config` puts `min` and `max` of each tensor there (version 2.5.0 takes them, reports changes, and
derives the scales; it refuses a file in which `scale` or `zero_point` differ). Values and weights have their names of
the ONNX file. Configure the toolkit with `quantized_dtype="w8a8"`, `quantized_method="layer"`. `<node>_W` and
`<node>_b` are the parameters again, by name of their node, for scripts; the toolkit does not read them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import yaml

from dipo.export.range_file import Claim, Names
from dipo.export.target import DEPLOYED, QUANTIZED, TargetFile
from dipo.export.targets.rockchip import PARAMETERS, SPEC, Rockchip, feeds_sigmoid

if TYPE_CHECKING:
    import onnx_ir as ir

    from dipo.export.ranges import Encoding, LayerRanges
    from dipo.graph.plan import QuantizedModel
    from dipo.quant.spec import QParams


def read_parameters(text: str, names: Names) -> Iterator[Claim]:
    """Read the ranges back, from YAML or from JSON, which is YAML too."""
    for name, ends in yaml.safe_load(text)[PARAMETERS].items():
        claim = names.claim(name, low=ends["min"], high=ends["max"])
        node, _, which = name.rpartition("_")
        if claim.tensor is None and which in {"W", "b"}:
            claim = dataclasses.replace(claim, tensor=names.input_of(node, 1 if which == "W" else 2))
        yield claim


class Rk(Rockchip):
    """RKNN toolkit 2."""

    spec = dataclasses.replace(SPEC, name="rk")
    layers_section = "custom_quantize_layers"
    files = (
        QUANTIZED,
        DEPLOYED,
        TargetFile("rk_quantized_param.yaml", read=read_parameters, readers=("RKNN toolkit 2",)),
        TargetFile("rk_quantized_param.json", read=read_parameters, elsewhere="the same as the YAML, for scripts"),
    )

    def parameters(self, model: ir.Model, quantized: QuantizedModel, known: Mapping[str, QParams]) -> dict[str, Any]:
        """Return the entries: `{"max", "min"}` of each value, weight and bias."""
        from dipo.export.ranges import Encoding, layer_ranges
        from dipo.graph.accessors import name_of

        layers = {layer.node: layer for layer in layer_ranges(model, quantized, known)}
        found = {name_of(v): _range(Encoding(known[name_of(v)])) for v in model.graph.inputs if name_of(v) in known}
        for node in model.graph:
            if node in layers:
                found |= _of_layer(layers[node])
            for value in node.outputs:
                if name_of(value) in known and not feeds_sigmoid(value):
                    found[name_of(value)] = _range(Encoding(known[name_of(value)]))
        return found


TARGET = Rk()


def _of_layer(layer: LayerRanges) -> dict[str, Any]:
    from dipo.graph.accessors import node_name

    name = node_name(layer.node)
    found: dict[str, Any] = {layer.weight_name: _range(layer.weight), f"{name}_W": _range(layer.weight)}
    if layer.bias is not None:
        largest = float(abs(layer.bias).max())
        found[f"{name}_b"] = {"max": [largest], "min": [-largest]}
    return found


def _range(grid: Encoding) -> dict[str, list[float]]:
    return {"max": [float(grid.max)], "min": [float(grid.min)]}

"""Rockchip RV1126, RV1109, RK1808 and RK3399Pro (RKNN toolkit 1): the ranges in the form of its `.quantization.cfg`.

The toolkit's own file has the same sections; it appends an index to the names of nodes, which the user's script has to
match. All tensors are unsigned 8 bits with one range; biases are int32, of input step x weight step.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import yaml

from dipo.export.range_file import Claim, Names, numbers
from dipo.export.target import DEPLOYED, QUANTIZED, TargetFile
from dipo.export.targets.rockchip import PARAMETERS, SPEC, Rockchip, feeds_sigmoid

if TYPE_CHECKING:
    import onnx_ir as ir

    from dipo.export.ranges import Encoding
    from dipo.graph.plan import QuantizedModel
    from dipo.quant.spec import QParams

_ELSEWHERE = "RKNN toolkit 1 reads it, which no registry has for today's Python"


def read_parameters(text: str, names: Names) -> Iterator[Claim]:
    """Read the ranges back, from YAML or from JSON, which is YAML too."""
    for name, entry in yaml.safe_load(text)[PARAMETERS].items():
        found = re.fullmatch("@(.+):(weight|bias|out([0-9]+))", name)
        if not found:
            raise ValueError(f"{name!r} names no tensor of a node")
        said = {"scale": numbers(entry["scale"])}
        if entry["qtype"] != "i32":
            said |= {"low": numbers(entry["min_value"]), "high": numbers(entry["max_value"])}
            said["offset"] = -numbers(entry["zero_point"])
        yield Claim(name, _tensor(names, *found.groups()), **said)


class Rv(Rockchip):
    """RKNN toolkit 1."""

    spec = SPEC
    layers_section = "customized_quantize_layers"
    files = (
        QUANTIZED,
        DEPLOYED,
        TargetFile("rv_quantized_param.yaml", read=read_parameters, elsewhere=_ELSEWHERE),
        TargetFile("rv_quantized_param.json", read=read_parameters, elsewhere=_ELSEWHERE),
    )

    def parameters(self, model: ir.Model, quantized: QuantizedModel, known: Mapping[str, QParams]) -> dict[str, Any]:
        """Return the entries: `@<input>:out0`, and of each node `@<node>:weight`, `:bias` and `:out<index>`."""
        from dipo.export.ranges import Encoding, layer_ranges
        from dipo.graph.accessors import name_of, node_name

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


TARGET = Rv()


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


def _tensor(names: Names, node: str, which: str, output: str | None) -> str | None:
    """Return the tensor of an entry; None if there is none."""
    if output is None:
        return names.input_of(node, 1 if which == "weight" else 2)
    found = names.nodes.get(node)
    if found is None:
        return node if node in names.values else None
    return found.output[int(output)] if int(output) < len(found.output) else None

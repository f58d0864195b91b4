"""STPU: symmetric ranges of all tensors, and the exponents at which its accumulators begin.

`stpu_minmax.json` has `{"min", "max"}` for each activation, and `emin` beside it where a layer or a resize makes it;
for the parameters `<node>_weights: {"min", "max"}` and `<node>_bias: {"alpha", "zero_point"}`. The input of a fused
Relu or Clip has the range of its output. `emin` describes a sum to the device: the biased float32 exponent of the
largest value that it may reach, less the bits of the accumulator that lie below.

With `platform.winograd` convolutions of 3x3 without stride or groups run as Winograd's: `layer_<node>: {"wg": true}`,
and the range of their transformed weight.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dipo.export.range_file import Claim, Names, numbers
from dipo.export.target import DEPLOYED, QUANTIZED, Export, PlatformOptions, Target, TargetFile
from dipo.export.targets import full_integer
from dipo.graph.target_spec import TargetSpec

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir
    from numpy.typing import NDArray

    from dipo.export.ranges import LayerRanges
    from dipo.graph.layers import Layer

_LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm"})
_SUM_BITS, _RESIZE_BITS = 12, 22
"""Widths of the accumulators of products and of interpolations, in bits."""
_HEADROOM = 2
_WINOGRAD = ((2, 0, 0), (1, 1, 1), (1, -1, 1), (0, 0, 2))
"""Twice the transform of a 3x3 kernel for 2x2 outputs, because the device has it in integers."""


@dataclass(frozen=True)
class StpuOptions(PlatformOptions):
    """Options of the STPU."""

    winograd: bool = False
    """Convolutions of 3x3 run as Winograd's (stpu)."""


def read_minmax(text: str, names: Names) -> Iterator[Claim]:
    """Read the ranges back, without those of transformed weights, which do not describe the grid."""
    content, nodes = json.loads(text), names.nodes
    for name, entry in content.items():
        node, _, kind = name.rpartition("_")
        if name.startswith("layer_") and name.removeprefix("layer_") in nodes and set(entry) == {"wg"}:
            continue
        said = {"scale": entry["alpha"]} if "alpha" in entry else {"low": entry["min"], "high": entry["max"]}
        if node not in nodes or kind not in {"weights", "bias"}:
            yield names.claim(name, **said)
            continue
        given = {} if f"layer_{node}" in content else {key: numbers(value) for key, value in said.items()}
        yield Claim(name, names.input_of(node, 1 if kind == "weights" else 2), **given)


class Stpu(Target[StpuOptions]):
    """STPU."""

    spec = TargetSpec(
        name="stpu",
        operators=full_integer.OPERATORS,
        fixed_ranges=full_integer.FIXED_RANGES,
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
    options_class = StpuOptions
    files = (
        QUANTIZED,
        DEPLOYED,
        TargetFile(
            "stpu_minmax.json",
            read=read_minmax,
            elsewhere="the compiler of the STPU reads it, which comes with its SDK alone",
        ),
    )

    def write(self, export: Export, options: StpuOptions) -> list[Path]:
        """Write the models and the ranges.

        Raises:
            UserError: A tensor has no range, or not 8 bits; nothing is written.
        """
        from dipo.export.ranges import Encoding, layer_ranges
        from dipo.graph.accessors import node_name

        model, quantized = export.model, export.quantized
        known = full_integer.ranges_of_all(self.spec, model, quantized)
        layers = [each for each in layer_ranges(model, quantized, known) if each.node.op_type in _LAYERS | {"MatMul"}]
        content: dict[str, Any] = {f"{node_name(layer.node)}_weights": _around(layer.weight.amax) for layer in layers}
        content |= {name: _around(Encoding(qparams).amax) for name, qparams in known.items()}
        for layer in layers if options.winograd else []:
            _take_winograd(content, layer, quantized.layers[node_name(layer.node)].weight)
        for node in model.graph:
            _add_emin(content, node)
        for layer in layers:
            _add_bias(content, layer)
        return [*export.write_models(self.spec), export.write_json("stpu_minmax.json", content)]


TARGET = Stpu()


def exponent(value: float) -> int:
    """Return the biased float32 exponent of a number: 0 for 0, else from 1 to 254."""
    return 0 if value == 0 else min(max(math.frexp(abs(value))[1] + 126, 1), 254)


def _around(amax: NDArray[np.float64] | float) -> dict[str, float]:
    return {"min": -float(amax), "max": float(amax)}


def _take_winograd(content: dict[str, Any], layer: LayerRanges, weight: NDArray[np.float32]) -> None:
    import numpy as np

    from dipo.graph.accessors import node_name

    attributes = layer.node.attributes
    plain = layer.node.op_type == "Conv" and weight.shape[2:] == (3, 3) and attributes.get_int("group", 1) == 1
    if plain and set(attributes.get_ints("strides", [1])) == {1} and set(attributes.get_ints("dilations", [1])) == {1}:
        name = node_name(layer.node)
        transform = np.array(_WINOGRAD, np.float32)
        transformed = np.einsum("ij,ocjk,lk->ocil", transform, weight, transform)
        content[f"layer_{name}"] = {"wg": True}
        content[f"{name}_weights"] = _around(np.abs(transformed).max())


def _add_emin(content: dict[str, Any], node: ir.Node) -> None:
    from dipo.graph.accessors import name_of
    from dipo.graph.layers import layer_of

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
    from dipo.graph.accessors import name_of, node_name

    node, name = layer.node, node_name(layer.node)
    if layer.bias is not None and node.inputs[0] is not None:
        weight, data = content[f"{name}_weights"], content[name_of(node.inputs[0])]
        alpha = (weight["max"] - weight["min"]) / 254 * ((data["max"] - data["min"]) / 254)
        content[f"{name}_bias"] = {"alpha": alpha, "zero_point": 0}
